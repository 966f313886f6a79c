package upstream

import (
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/kubeapi"
)

func init() {
	plugin.Register(directive, setup)
	// As for forward: without it, the server refuses all classes but IN
	// (dnsserver.Server.ServeDNS), which the upstream may serve.
	dnsserver.EnableChaos[directive] = struct{}{}
}

func setup(c *caddy.Controller) error {
	u, err := parse(c)
	if err != nil {
		return plugin.Error(directive, err)
	}
	c.OnStartup(u.start)
	c.OnShutdown(u.stop)
	dnsserver.GetConfig(c).AddPlugin(func(next plugin.Handler) plugin.Handler {
		u.Next = next
		return u
	})
	return nil
}

// dnsPort is the port of addresses without one.
const dnsPort = 53

// label is a name of a namespace or of a Service (RFC 1123).
var label = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

func parse(c *caddy.Controller) (*Upstream, error) {
	u := newUpstream()
	seen := false
	for c.Next() {
		if seen {
			return nil, c.Err("a server block can have only one upstream directive")
		}
		seen = true
		args := c.RemainingArgs()
		if len(args) != 2 || !slices.Contains([]string{string(service), string(endpoints)}, args[0]) {
			return nil, c.Err("want `upstream service [NAMESPACE/]NAME` or `upstream endpoints [NAMESPACE/]NAME`")
		}
		u.name.kind = kind(args[0])
		namespace, name, found := strings.Cut(args[1], "/")
		if !found {
			namespace, name = kubeapi.Namespace("/"), args[1]
		}
		if !label.MatchString(namespace) || !label.MatchString(name) {
			return nil, c.Errf("%q is no Service: want [NAMESPACE/]NAME", args[1])
		}
		u.name.namespace, u.name.service = namespace, name
		for c.NextBlock() {
			if err := parseOption(c, u); err != nil {
				return nil, err
			}
		}
	}
	if a := u.name.clusterIP(); a.IsValid() && len(u.fallback) == 0 {
		u.fallback = []netip.AddrPort{netip.AddrPortFrom(a, dnsPort)}
	}
	return u, nil
}

func parseOption(c *caddy.Controller, u *Upstream) error {
	option, args := c.Val(), c.RemainingArgs()
	if !slices.Contains([]string{"fallback", "failover", "health_check"}, option) {
		flag := slices.Contains([]string{"force_tcp", "prefer_udp", "tracked", "failfast_all_unhealthy_upstreams"}, option)
		switch {
		case flag && len(args) != 0:
			return c.Errf("%s takes no value", option)
		case !flag && len(args) != 1:
			return c.Errf("%s takes one value, not %d", option, len(args))
		}
	}
	duration := func(d *time.Duration, low, high time.Duration) error {
		v, err := time.ParseDuration(args[0])
		if err != nil || v < low || v > high {
			return c.Errf("%s %q: want a duration from %s to %s", option, args[0], low, high)
		}
		*d = v
		return nil
	}
	number := func(least uint64) (uint64, error) {
		n, err := strconv.ParseUint(args[0], 10, 31)
		if err != nil || n < least {
			return 0, c.Errf("%s %q: want a number of at least %d", option, args[0], least)
		}
		return n, nil
	}
	switch option {
	case "force_tcp":
		u.options.ForceTCP = true
	case "prefer_udp":
		u.options.PreferUDP = true
	case "tracked":
		u.tracked = true
	case "expire":
		return duration(&u.expire, time.Second, time.Hour)
	case "read_timeout":
		return duration(&u.timeout, 50*time.Millisecond, queryTimeout)
	case "max_fails":
		n, err := number(0)
		u.maxFails = uint32(n)
		return err
	case "max_concurrent":
		n, err := number(0)
		u.limit = int64(n)
		return err
	case "max_age":
		return duration(&u.maxAge, time.Second, 24*time.Hour)
	case "max_idle_conns":
		n, err := number(0)
		u.maxIdle = int(n)
		return err
	case "max_connect_attempts":
		n, err := number(1)
		u.attempts = int(n)
		return err
	case "failfast_all_unhealthy_upstreams":
		u.failFast = true
	case "policy":
		u.policy = policy(args[0])
		if all := []policy{random, roundRobin, sequential}; !slices.Contains(all, u.policy) {
			return c.Errf("policy %q: want random, round_robin or sequential", args[0])
		}
	case "failover":
		return parseFailover(c, u, args)
	case "health_check":
		return parseHealthCheck(c, u, args)
	case "fallback":
		return parseFallback(c, u, args)
	default:
		return c.Errf("unknown option %q: use force_tcp, prefer_udp, tracked, expire, max_age, max_idle_conns, read_timeout, max_fails, max_connect_attempts, max_concurrent, policy, failover, health_check, failfast_all_unhealthy_upstreams or fallback", option)
	}
	return nil
}

func parseFallback(c *caddy.Controller, u *Upstream, args []string) error {
	if len(args) == 0 {
		return c.Err("fallback: want ADDRESS or ADDRESS:PORT, one or more")
	}
	for _, arg := range args {
		ap, err := netip.ParseAddrPort(arg)
		if err != nil {
			a, addrErr := netip.ParseAddr(arg)
			if addrErr != nil {
				return c.Errf("fallback %q: want ADDRESS or ADDRESS:PORT", arg)
			}
			ap = netip.AddrPortFrom(a, dnsPort)
		}
		u.fallback = append(u.fallback, ap)
	}
	return nil
}

func parseFailover(c *caddy.Controller, u *Upstream, args []string) error {
	if len(args) == 0 {
		return c.Err("failover: want response codes such as SERVFAIL, or none")
	}
	u.failover = nil
	if len(args) == 1 && args[0] == "none" {
		return nil
	}
	for _, arg := range args {
		code, ok := dns.StringToRcode[strings.ToUpper(arg)]
		if !ok || code == dns.RcodeSuccess {
			return c.Errf("failover %q: want response codes such as SERVFAIL, but not NOERROR; or only none", arg)
		}
		u.failover = append(u.failover, code)
	}
	return nil
}

func parseHealthCheck(c *caddy.Controller, u *Upstream, args []string) error {
	const want = "want a duration from 10ms to 1m, then no_rec or domain NAME"
	if len(args) == 0 {
		return c.Err("health_check: " + want)
	}
	interval, err := time.ParseDuration(args[0])
	if err != nil || interval < 10*time.Millisecond || interval > time.Minute {
		return c.Errf("health_check %q: %s", args[0], want)
	}
	u.checkInterval = interval
	for args = args[1:]; len(args) > 0; args = args[1:] {
		switch {
		case args[0] == "no_rec":
			u.options.HCRecursionDesired = false
		case args[0] == "domain" && len(args) > 1:
			if _, ok := dns.IsDomainName(args[1]); !ok {
				return c.Errf("health_check domain %q: not a domain name", args[1])
			}
			u.options.HCDomain = dns.Fqdn(args[1])
			args = args[1:]
		default:
			return c.Errf("health_check %q: %s", args[0], want)
		}
	}
	return nil
}
