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

	"github.com/trackless-dns/trackless/kubeapi"
)

func init() { plugin.Register(directive, setup) }

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

// dnsPort is the port of addresses that name none.
const dnsPort = 53

// label is a name of a namespace or of a Service (RFC 1123).
var label = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

func parse(c *caddy.Controller) (*Upstream, error) {
	u := newUpstream()
	seen := false
	for c.Next() {
		if seen {
			return nil, c.Err("upstream may stand only once in a server block")
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
	if option != "fallback" {
		want := 1
		if option == "force_tcp" || option == "prefer_udp" || option == "tracked" {
			want = 0
		}
		if len(args) != want {
			return c.Errf("%s takes %d values, not %d", option, want, len(args))
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
	number := func() (uint64, error) {
		n, err := strconv.ParseUint(args[0], 10, 31)
		if err != nil {
			return 0, c.Errf("%s %q: want a number", option, args[0])
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
		n, err := number()
		u.maxFails = uint32(n)
		return err
	case "max_concurrent":
		n, err := number()
		u.limit = int64(n)
		return err
	case "fallback":
		if len(args) == 0 {
			return c.ArgErr()
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
	default:
		return c.Errf("unknown option %q: use force_tcp, prefer_udp, tracked, expire, read_timeout, max_fails, max_concurrent or fallback", option)
	}
	return nil
}
