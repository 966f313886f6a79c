package fastpath

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/bufsize"
	"github.com/coredns/coredns/plugin/metrics"
	"github.com/coredns/coredns/plugin/pkg/transport"
	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/fastpath"
	"github.com/trackless-dns/trackless/plugin/cache/engine"
	cachemetrics "github.com/trackless-dns/trackless/plugin/cache/metrics"
	"github.com/trackless-dns/trackless/plugin/cache/wire"
	"github.com/trackless-dns/trackless/plugin/querymetrics"
)

// cacher is the plugin cache.
type cacher interface {
	Engine() *engine.Engine
	KeepsTTL() bool
	Announce(*fastpath.Announcer)
	HitAt(netip.AddrPort, wire.Key)
	Counters(server string) *cachemetrics.Counters
}

// decided is a server block with its policy.
type decided struct {
	configs []*dnsserver.Config // of each key
	policy  fastpath.Policy
	keys    string
	cache   cacher
	metrics *metrics.Metrics // nil: the block has no prometheus
	listen  []netip.AddrPort
}

// decide returns the policy of each block. It runs when all plugins have started.
func (c *configuration) decide() []*decided {
	var out []*decided
	for _, b := range c.blocks {
		out = append(out, b.decide())
	}
	return out
}

func (b *block) decide() *decided {
	cfg := b.config
	chain := fastpath.Chain{Count: b.above, Leased: cfg.Handler("notrack") != nil, Filtered: len(cfg.FilterFuncs) > 0}
	for _, h := range cfg.Handlers() {
		if h.Name() == "cache" {
			break
		}
		chain.Above = append(chain.Above, h.Name())
		chain.BufSize = cmp.Or(bufSize(h), chain.BufSize)
	}
	d := &decided{configs: b.configs, keys: b.keys, listen: listenersOf(cfg)}
	if c, ok := cfg.Handler("cache").(cacher); ok && c.Engine() != nil {
		d.cache, chain.Cached, chain.KeepTTL = c, true, c.KeepsTTL()
	}
	d.metrics, _ = cfg.Handler("prometheus").(*metrics.Metrics)
	d.policy = fastpath.Decide(chain)
	if d.policy.Eligible() && len(d.listen) == 0 {
		d.policy.Reason = "the block listens at no address of its own for plain DNS"
	}
	return d
}

func bufSize(h plugin.Handler) uint16 {
	switch b := h.(type) {
	case bufsize.Bufsize:
		return uint16(b.Size)
	case *bufsize.Bufsize:
		return uint16(b.Size)
	}
	return 0
}

// listenersOf returns the addresses and ports of a block for plain DNS. A block that
// listens at all addresses has none.
func listenersOf(cfg *dnsserver.Config) []netip.AddrPort {
	port, err := strconv.ParseUint(cfg.Port, 10, 16)
	if err != nil || cfg.Transport != transport.DNS {
		return nil
	}
	var out []netip.AddrPort
	for _, host := range cfg.ListenHosts {
		if a, err := netip.ParseAddr(host); err == nil && !a.IsUnspecified() {
			out = append(out, netip.AddrPortFrom(a.Unmap().WithZone(""), uint16(port)))
		}
	}
	slices.SortFunc(out, netip.AddrPort.Compare)
	return slices.Compact(out)
}

// serverAt is the address of CoreDNS's server at a listener, as labels have it.
func serverAt(at netip.AddrPort) string { return transport.DNS + "://" + at.String() }

// zone implements the Zone of fastpath.Block.
func (d *decided) zone(name []byte) string {
	if d.metrics == nil {
		return ""
	}
	text, _, err := dns.UnpackDomainName(name, 0)
	if err != nil {
		return "."
	}
	return querymetrics.Zone(d.metrics, strings.ToLower(text))
}

// counters implements the Counters of fastpath.Block.
func (d *decided) counters(c fastpath.Class) fastpath.Counters {
	server := serverAt(c.Listener)
	k := &counters{cache: d.cache.Counters(server), denial: c.Denial, hits: requestsTotal.WithLabelValues(server, "hit")}
	if d.metrics != nil {
		k.queries = querymetrics.NewBatch(d.metrics, querymetrics.Kind{
			Server: server, Zone: c.Zone, Type: c.Type, Rcode: c.Rcode, DO: c.DO, Query: c.Query, Reply: c.Reply,
		})
	}
	return k
}
