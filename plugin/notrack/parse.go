package notrack

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin/pkg/transport"

	"github.com/trackless-dns/trackless/agent/ruleset"
	"github.com/trackless-dns/trackless/agent/services"
	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/binaries"
	"github.com/trackless-dns/trackless/iptables/hostaddr"
)

// parse reads the notrack block of one server block.
func parse(c *caddy.Controller) (block, error) {
	b := block{
		plan:     iptables.Plan{Link: hostaddr.DefaultLink, Lease: defaultLease},
		backend:  ruleset.Choice{Name: ruleset.Auto},
		failover: services.FailoverAuto,
		sync:     defaultSync,
		warm:     defaultWarm,
		zones:    map[iptables.Endpoint]string{},
	}
	var addrs []netip.Addr
	for c.Next() {
		if b.line != 0 {
			return b, c.Err("a server block can have only one notrack directive")
		}
		b.line = c.Line()
		var err error
		if addrs, err = parseAddresses(c, c.RemainingArgs()); err != nil {
			return b, err
		}
		for c.NextBlock() {
			if err := parseOption(c, &b); err != nil {
				return b, err
			}
		}
	}
	if len(addrs) == 0 {
		var err error
		if addrs, err = boundAddresses(c); err != nil {
			return b, err
		}
	}
	listenOnLink(c, b.plan.Link, addrs)
	if err := b.listen(c, addrs); err != nil {
		return b, err
	}
	if b.backend.Name == ruleset.IPTables && b.plan.Lease != binaries.Lease && !b.plan.DryRun {
		return b, c.Errf("lease: backend iptables needs the lease %s: xt_recent counts whole seconds, and only the lease ends the rules of a killed process; remove the option", binaries.Lease)
	}
	b.plan = b.plan.Normalize()
	if err := b.plan.Validate(); err != nil {
		return b, c.Err(err.Error())
	}
	return b, nil
}

func parseAddresses(c *caddy.Controller, args []string) ([]netip.Addr, error) {
	var addrs []netip.Addr
	for _, arg := range args {
		a, err := netip.ParseAddr(arg)
		if err != nil {
			return nil, c.Errf("%q is not an IP address", arg)
		}
		addrs = append(addrs, a)
	}
	return addrs, nil
}

// boundAddresses returns the addresses of the block's bind directive, which is set up
// before.
func boundAddresses(c *caddy.Controller) ([]netip.Addr, error) {
	var hosts []string
	for _, h := range dnsserver.GetConfig(c).ListenHosts {
		if h != "" {
			hosts = append(hosts, h)
		}
	}
	if len(dnsserver.GetConfig(c).ListenHosts) == 0 {
		return nil, c.Err("no address: the interfaces of bind have none yet; add the addresses that clients ask (notrack 169.254.20.10)")
	}
	if len(hosts) == 0 {
		return nil, c.Err("no address: add the addresses that clients ask (notrack 169.254.20.10), or a bind directive")
	}
	return parseAddresses(c, hosts)
}

func parseOption(c *caddy.Controller, b *block) error {
	option, args := c.Val(), c.RemainingArgs()
	one := func() (string, error) {
		if len(args) != 1 {
			return "", c.Errf("%s takes one value, not %d", option, len(args))
		}
		return args[0], nil
	}
	duration := func(parse func(string) (time.Duration, error), to *time.Duration) error {
		v, err := one()
		if err != nil {
			return err
		}
		if *to, err = parse(v); err != nil {
			return c.Err(err.Error())
		}
		return nil
	}
	switch option {
	case "backend":
		var err error
		if b.backend, err = ruleset.Parse(args); err != nil {
			return c.Err(err.Error())
		}
	case "interface":
		v, err := one()
		if err != nil {
			return err
		}
		if b.plan.Link, err = parseInterface(v); err != nil {
			return c.Err(err.Error())
		}
	case "untrack":
		if len(args) == 0 {
			return c.ArgErr()
		}
		return parseUntrack(c, b, args)
	case "lease":
		return duration(parseLease, &b.plan.Lease)
	case "failover":
		v, err := one()
		if err != nil {
			return err
		}
		if v != services.FailoverAuto && v != services.FailoverOff {
			if _, err := netip.ParseAddr(v); err != nil {
				return c.Errf("failover %q: want auto, off or the ClusterIP of a DNS Service that answers while this process is down", v)
			}
		}
		b.failover = v
	case "sync":
		return duration(parseSync, &b.sync)
	case "warm":
		return parseWarm(c, b, args)
	case "sources":
		if len(args) == 0 {
			return c.ArgErr()
		}
		return parseSources(c, b, args)
	case "uplinks":
		if len(args) == 0 {
			return c.ArgErr()
		}
		return parseUplinks(c, b, args)
	case "dry-run", "keep":
		if len(args) != 0 {
			return c.Errf("%s takes no value", option)
		}
		b.plan.DryRun = b.plan.DryRun || option == "dry-run"
		b.keep = b.keep || option == "keep"
	default:
		return c.Errf("unknown option %q: use backend, interface, lease, failover, untrack, sync, warm, sources, uplinks, dry-run or keep", option)
	}
	return nil
}

const (
	defaultLease = time.Second
	defaultSync  = 10 * time.Second
	defaultWarm  = 2 * time.Second
)

func parseSync(v string) (time.Duration, error) {
	d, err := time.ParseDuration(v)
	if err != nil || d < time.Second || d > time.Hour {
		return 0, fmt.Errorf("sync %q: want a duration from 1s to 1h", v)
	}
	return d, nil
}

// parseWarm reads `warm DURATION|off [names FILE]`. The duration is how long a start waits for
// the state of another instance.
func parseWarm(c *caddy.Controller, b *block, args []string) error {
	if len(args) != 1 && (len(args) != 3 || args[1] != "names") {
		return c.Errf("%s: want off or a duration, then names FILE or nothing", strings.Join(append([]string{"warm"}, args...), " "))
	}
	b.warm, b.names = 0, ""
	if args[0] != "off" {
		d, err := time.ParseDuration(args[0])
		if err != nil || d < 100*time.Millisecond || d > time.Minute {
			return c.Errf("warm %q: want off or a duration from 100ms to 1m", args[0])
		}
		b.warm = d
	}
	if len(args) == 3 {
		if b.names = args[2]; !filepath.IsAbs(b.names) {
			return c.Errf("warm names %q: want the whole path of a file, for example /var/lib/trackless/names", b.names)
		}
	}
	return nil
}

// warmText returns what parseWarm has read.
func warmText(b block) string {
	text := "off"
	if b.warm > 0 {
		text = b.warm.String()
	}
	if b.names != "" {
		text += " names " + b.names
	}
	return text
}

// parseLease bounds the lease. Five lease probes must fit into it, and clients give up
// after five seconds.
func parseLease(v string) (time.Duration, error) {
	if v == "off" {
		return 0, nil
	}
	d, err := time.ParseDuration(v)
	if err != nil || d < 250*time.Millisecond || d > 5*time.Second {
		return 0, fmt.Errorf("lease %q: want off or a duration from 250ms to 5s", v)
	}
	return d, nil
}

// parseSources reads `sources local|any|CIDR...`.
func parseSources(c *caddy.Controller, b *block, args []string) error {
	if len(args) == 1 && (args[0] == "local" || args[0] == "any") {
		b.plan.AnySource = args[0] == "any"
		return nil
	}
	for _, arg := range args {
		prefix, err := netip.ParsePrefix(arg)
		if err != nil {
			return c.Errf("sources %q: want local, any, or prefixes such as 10.244.0.0/16", arg)
		}
		for _, p := range b.plan.Sources {
			if p.Overlaps(prefix) {
				return c.Errf("sources %s and %s overlap; use only the larger one", p, prefix)
			}
		}
		b.plan.Sources = append(b.plan.Sources, prefix.Masked())
	}
	return nil
}

// parseUntrack reads `untrack ADDRESS:PORT...`.
func parseUntrack(c *caddy.Controller, b *block, args []string) error {
	for _, arg := range args {
		ap, err := netip.ParseAddrPort(arg)
		if err != nil {
			return c.Errf("untrack %q: want ADDRESS:PORT, for example 169.254.20.10:8080 or [fd00::10]:8080", arg)
		}
		for _, p := range []iptables.Proto{iptables.TCP, iptables.UDP} {
			b.plan.Untrack = append(b.plan.Untrack, iptables.Endpoint{Addr: ap.Addr(), Port: ap.Port(), Proto: p})
		}
	}
	return nil
}

// parseUplinks reads `uplinks NAME...`.
func parseUplinks(c *caddy.Controller, b *block, args []string) error {
	for _, name := range args {
		if link, err := parseInterface(name); err != nil || link == "" {
			return c.Errf("uplinks %q: want names of interfaces", name)
		}
	}
	b.plan.Uplinks = args
	return nil
}

// parseInterface checks a link name as the kernel does (dev_valid_name in
// net/core/dev.c).
func parseInterface(name string) (string, error) {
	if name == "none" {
		return "", nil
	}
	if len(name) > 15 || name == "." || name == ".." {
		return "", fmt.Errorf("%q is no interface name: want 1 to 15 characters", name)
	}
	for _, r := range name {
		if r == '/' || r == ':' || r <= ' ' {
			return "", fmt.Errorf("%q is no interface name: it must not contain %q", name, r)
		}
	}
	return name, nil
}

func interfaceName(link string) string {
	if link == "" {
		return "none"
	}
	return link
}

func conflict(option, a, b string, line int) error {
	return fmt.Errorf("%s %s conflicts with %s %s of the notrack block in line %d: all blocks must have the same %s",
		option, a, option, b, line, option)
}

// listen sets the endpoints: every address with the port and transport of each key of the
// block. caddy has the keys as TRANSPORT://ZONE:PORT, and sets up directives only for the
// first key.
func (b *block) listen(c *caddy.Controller, addrs []netip.Addr) error {
	keys := c.ServerBlockKeys
	if len(keys) == 0 {
		keys = []string{c.Key}
	}
	for _, key := range keys {
		trans, zone, portText, err := dnsserver.SplitProtocolHostPort(key)
		if err != nil {
			return c.Errf("server block key %q: %v", key, err)
		}
		port, err := strconv.ParseUint(portText, 10, 16)
		if err != nil {
			return c.Errf("server block key %q: port %q is not a number from 1 to 65535", key, portText)
		}
		protos, checkZone := []iptables.Proto{iptables.UDP, iptables.TCP}, zone
		switch trans {
		case transport.DNS, "":
		case transport.TLS, transport.HTTPS, transport.GRPC:
			protos, checkZone = []iptables.Proto{iptables.TCP}, ""
		default:
			return c.Errf("notrack cannot untrack %s://; use a server block without notrack for it", trans)
		}
		for _, a := range addrs {
			for _, p := range protos {
				e := iptables.Endpoint{Addr: a, Port: uint16(port), Proto: p}
				b.plan.Listen = append(b.plan.Listen, e)
				b.zones[e] = checkZone
			}
		}
	}
	return nil
}
