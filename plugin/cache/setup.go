package cache

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	clog "github.com/coredns/coredns/plugin/pkg/log"

	"github.com/trackless-dns/trackless/plugin/cache/budget"
	"github.com/trackless-dns/trackless/plugin/cache/fingerprint"
)

var log = clog.NewWithPlugin("cache")

func init() { plugin.Register("cache", setup) }

// ZoneBypasser is a plugin with zones that must not be cached. CoreDNS's cache has the
// same interface.
type ZoneBypasser interface {
	CacheBypassZones() []string
}

func setup(controller *caddy.Controller) error {
	c, err := parse(controller)
	if err != nil {
		return plugin.Error("cache", err)
	}
	cfg := dnsserver.GetConfig(controller)
	if c.size == 0 {
		instanceOf(controller).defaultSized++
	}
	reading := fingerprint.Begin(controller)
	controller.OnStartup(func() error {
		c.viewLabel = cfg.ViewName
		c.keys = controller.ServerBlockKeys
		c.countsAll = cfg.Handler("grpc") != nil
		c.bind = slices.DeleteFunc(slices.Clone(cfg.ListenHosts), func(host string) bool { return host == "" })
		for _, h := range cfg.Handlers() {
			b, ok := h.(ZoneBypasser)
			if !ok {
				continue
			}
			zones, err := wireZones(b.CacheBypassZones())
			if err != nil {
				return err
			}
			c.bypass = append(c.bypass, zones...)
		}
		c.trustDenials(cfg)
		sum, err := reading.End(cfg)
		if err != nil {
			log.Warningf("A reload will empty the cache: %v; make the file readable for trackless, or remove it from the Corefile", err)
		}
		if err := c.openShared(controller, sum); err != nil {
			return plugin.Error("cache", err)
		}
		go c.sweep()
		return nil
	})
	controller.OnRestartFailed(func() error { c.disownNewer(); return nil })
	controller.OnShutdown(func() error { c.disown(); return nil })

	cfg.AddPlugin(func(next plugin.Handler) plugin.Handler {
		c.Next = next
		return c
	})
	return nil
}

// parse reads the directive.
func parse(d *caddy.Controller) (*Cache, error) {
	c := New()
	for n := 0; d.Next(); n++ {
		if n > 0 {
			return nil, d.Errf("%v; remove one of the two", plugin.ErrOnce)
		}
		args := d.RemainingArgs()
		if len(args) > 0 {
			if ttl, err := strconv.Atoi(args[0]); err == nil {
				if ttl <= 0 {
					return nil, d.Errf("cache %s: the TTL must be at least 1 second; use cache [TTL] [ZONES...]", args[0])
				}
				c.pttl = time.Duration(ttl) * time.Second
				c.nttl = c.pttl
				args = args[1:]
			}
		}
		c.Zones = plugin.OriginsFromArgsOrServerBlock(args, d.ServerBlockKeys)
		c.zonesLabel = strings.Join(c.Zones, ",")
		if err := c.parseBlock(d); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// parser reads one option with its arguments.
type parser func(c *Cache, args []string) error

// success and denial are the options for answers of each kind.
const (
	success = "success"
	denial  = "denial"
)

var options = map[string]parser{
	success: func(c *Cache, args []string) error { return parseLimits(args, &c.pcap, &c.pttl, &c.minpttl) },
	denial:  func(c *Cache, args []string) error { return parseLimits(args, &c.ncap, &c.nttl, &c.minnttl) },

	"prefetch":           parsePrefetch,
	"serve_stale":        parseServeStale,
	"serve_stale_policy": parsePolicy,
	"servfail":           parseServfail,
	"disable":            parseDisable,
	"keepttl":            parseKeepTTL,
	"size":               parseSizeOption,
	"coalesce":           parseCoalesce,
	"nxdomain":           parseNXDOMAIN,
}

// syntax describes the arguments of each option, for errors.
var syntax = map[string]string{
	success:              "CAPACITY [TTL [MINTTL]], whole numbers of entries and seconds",
	denial:               "CAPACITY [TTL [MINTTL]], whole numbers of entries and seconds",
	"prefetch":           "AMOUNT [DURATION [PERCENTAGE%]], such as 10 1m 20%",
	"serve_stale":        "[DURATION [immediate [TTL [RECHECK]] | verify [TIMEOUT [TTL [RECHECK]]]]], such as 1h immediate 30s",
	"serve_stale_policy": "prefer_positive, once, beside serve_stale",
	"servfail":           "DURATION, from 0s to 5m",
	"disable":            "success or denial, then [ZONES...]",
	"keepttl":            "nothing",
	"size":               "BYTES, such as 64Mi",
	"coalesce":           "[on|off]",
	"nxdomain":           "type, name, cut or learn, then [ZONES...]",
}

var errArgs = errors.New("wrong number of arguments")

// optionError returns an error with the file and line, the option with its arguments,
// the reason, and the syntax of the option.
func optionError(d *caddy.Controller, name string, args []string, reason error) error {
	given := strings.Join(append([]string{name}, args...), " ")
	if usage, ok := syntax[name]; ok {
		return d.Errf("cache: %s: %v; %s takes %s", given, reason, name, usage)
	}
	return d.Errf("cache: %s: %v", given, reason)
}

func (c *Cache) parseBlock(d *caddy.Controller) error {
	seen := make(map[string]bool)
	for d.NextBlock() {
		name := d.Val()
		option, ok := options[name]
		args := d.RemainingArgs()
		if !ok {
			return optionError(d, name, args, fmt.Errorf("unknown option; use one of %s", strings.Join(slices.Sorted(maps.Keys(options)), ", ")))
		}
		if name == "serve_stale_policy" && seen[name] {
			return optionError(d, name, args, errors.New("the option is repeated"))
		}
		seen[name] = true
		if err := option(c, args); err != nil {
			return optionError(d, name, args, err)
		}
	}
	if seen["serve_stale_policy"] && !seen["serve_stale"] {
		return optionError(d, "serve_stale_policy", nil, errors.New("the option needs serve_stale in the same block"))
	}
	// With a memory budget there is no default number of entries: CoreDNS's would fill
	// only a few MiB of it.
	if seen["size"] {
		if !seen[success] {
			c.pcap = noCap
		}
		if !seen[denial] {
			c.ncap = noCap
		}
	}
	return nil
}

// parseLimits reads CAPACITY [TTL [MINTTL]].
func parseLimits(args []string, capacity *int, ttl, minimum *time.Duration) error {
	if len(args) == 0 {
		return errArgs
	}
	n, err := number(args[0])
	if err != nil {
		return err
	}
	*capacity = n
	if len(args) > 1 {
		n, err := number(args[1])
		if err != nil {
			return err
		}
		if n <= 0 {
			return fmt.Errorf("the TTL must be at least 1 second: %d", n)
		}
		*ttl = time.Duration(n) * time.Second
	}
	if len(args) > 2 {
		n, err := number(args[2])
		if err != nil {
			return err
		}
		if n < 0 {
			return fmt.Errorf("the MINTTL must not be negative: %d", n)
		}
		*minimum = time.Duration(n) * time.Second
	}
	return nil
}

// number reads a whole number.
func number(s string) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil {
		return 0, fmt.Errorf("%q is not a whole number", s)
	}
	return n, nil
}

// parsePrefetch reads AMOUNT [DURATION [PERCENTAGE%]].
func parsePrefetch(c *Cache, args []string) error {
	if len(args) == 0 || len(args) > 3 {
		return errArgs
	}
	amount, err := number(args[0])
	if err != nil {
		return err
	}
	if amount < 0 {
		return fmt.Errorf("the AMOUNT must not be negative: %d", amount)
	}
	c.prefetch = amount
	if len(args) > 1 {
		if c.duration, err = time.ParseDuration(args[1]); err != nil {
			return fmt.Errorf("%q is not a duration", args[1])
		}
	}
	if len(args) > 2 {
		digits, ok := strings.CutSuffix(args[2], "%")
		if !ok {
			return fmt.Errorf("the PERCENTAGE must end with %%: %q", args[2])
		}
		percentage, err := number(digits)
		if err != nil {
			return err
		}
		if percentage < 10 || percentage > 90 {
			return fmt.Errorf("the PERCENTAGE must be from 10 to 90: %d", percentage)
		}
		c.percentage = percentage
	}
	return nil
}

// parseServeStale reads
// [DURATION [immediate [TTL [RECHECK]] | verify [TIMEOUT [TTL [RECHECK]]]]].
func parseServeStale(c *Cache, args []string) error {
	c.staleUpTo, c.verifyStale = time.Hour, false
	c.verifyTimeout, c.staleTTL, c.staleRecheck = 0, 0, 0
	if len(args) == 0 {
		return nil
	}
	var err error
	if c.staleUpTo, err = duration(args[0], "DURATION"); err != nil {
		return err
	}
	if len(args) == 1 {
		return nil
	}
	mode := strings.ToLower(args[1])
	rest := args[2:]
	switch mode {
	case "immediate":
	case "verify":
		c.verifyStale = true
		if len(rest) > 0 {
			if c.verifyTimeout, err = duration(rest[0], "TIMEOUT"); err != nil {
				return err
			}
			rest = rest[1:]
		}
	default:
		return fmt.Errorf("unknown mode %q: use immediate or verify", mode)
	}
	if len(rest) > 2 {
		return errArgs
	}
	if len(rest) > 0 {
		if c.staleTTL, err = duration(rest[0], "TTL"); err != nil {
			return err
		}
		if c.staleTTL%time.Second != 0 {
			return fmt.Errorf("the TTL %s has a fraction of a second; give whole seconds", rest[0])
		}
		if c.staleTTL/time.Second > 1<<32-1 {
			return errors.New("the TTL must be less than 2^32 seconds")
		}
	}
	if len(rest) > 1 {
		if c.staleRecheck, err = duration(rest[1], "RECHECK"); err != nil {
			return err
		}
		if c.staleRecheck > 5*time.Minute {
			return errors.New("the RECHECK must be at most 5 minutes (RFC 8767 section 5)")
		}
	}
	return nil
}

// duration reads a duration that is not negative. The error names the argument.
func duration(s, argument string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil {
		return 0, fmt.Errorf("%s %q is not a duration", argument, s)
	}
	if d < 0 {
		return 0, fmt.Errorf("%s %s is negative", argument, s)
	}
	return d, nil
}

func parsePolicy(c *Cache, args []string) error {
	if len(args) != 1 {
		return errArgs
	}
	if strings.ToLower(args[0]) != "prefer_positive" {
		return fmt.Errorf("unknown policy %q", args[0])
	}
	c.preferPositive = true
	return nil
}

func parseServfail(c *Cache, args []string) error {
	if len(args) != 1 {
		return errArgs
	}
	d, err := duration(args[0], "DURATION")
	if err != nil {
		return err
	}
	if d > maxFail {
		return errors.New("the DURATION must be at most 5 minutes (RFC 2308 section 7.1)")
	}
	c.failttl = d
	return nil
}

// parseDisable reads success|denial [ZONES...].
func parseDisable(c *Cache, args []string) error {
	if len(args) == 0 {
		return errArgs
	}
	zones := []string{"."}
	if len(args) > 1 {
		zones = nil
		for _, z := range args[1:] {
			zones = append(zones, plugin.Name(z).Normalize())
		}
	}
	switch args[0] {
	case denial:
		c.nexcept = zones
	case success:
		c.pexcept = zones
	default:
		return fmt.Errorf("unknown kind %q", args[0])
	}
	return nil
}

func parseKeepTTL(c *Cache, args []string) error {
	if len(args) != 0 {
		return errArgs
	}
	c.keepttl = true
	return nil
}

func parseSizeOption(c *Cache, args []string) (err error) {
	if len(args) != 1 {
		return errArgs
	}
	c.size, err = budget.Parse(args[0])
	return err
}

func parseCoalesce(c *Cache, args []string) error {
	if len(args) > 1 {
		return errArgs
	}
	c.coalesce = true
	if len(args) == 0 || args[0] == "on" {
		return nil
	}
	if args[0] != "off" {
		return fmt.Errorf("unknown value %q", args[0])
	}
	c.coalesce = false
	return nil
}
