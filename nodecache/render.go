package nodecache

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
)

// Variables of the template.
const (
	varClusterDNS = "__PILLAR__CLUSTER__DNS__"
	varUpstreams  = "__PILLAR__UPSTREAM__SERVERS__"
	varLocalIPs   = "__PILLAR__LOCAL__DNS__"
	varDNSServer  = "__PILLAR__DNS__SERVER__"
	varPrometheus = "__PROMETHEUS__ENDPOINT__"
	varDomain     = "__PILLAR__DNS__DOMAIN__"
)

// forcedTCP is the template's block that forces TCP to the upstream servers. For custom
// servers Render replaces it with withoutForce, as node-cache does.
const (
	forcedTCP    = "\n    forward . " + varUpstreams + " {\n            force_tcp\n    }\n"
	withoutForce = "\n    forward . " + varUpstreams + "\n"
)

// stubTTL is how long answers for stub domains are cached, in seconds.
const stubTTL = 30

// stubErrors logs the first failure of a kind and the number of the others. While a name
// server is away, every query fails.
const stubErrors = `    errors {
        consolidate 10s "timeout" error show_first
        consolidate 10s "refused" error show_first
        consolidate 10s "." error show_first
    }
`

// ErrNoUpstream is the error if the template needs the upstream Service and its address is
// not known.
var ErrNoUpstream = errors.New("no ClusterIP is known")

// UsesUpstream reports whether the template refers to the upstream Service.
func UsesUpstream(template []byte) bool { return strings.Contains(string(template), varClusterDNS) }

// Render makes a Corefile from the template. upstream is the ClusterIP of
// o.UpstreamService; it may be the zero Addr if the template does not use it, and the
// error wraps ErrNoUpstream if it does. port is the port of stub domains.
func (o *Options) Render(template []byte, k KubeDNS, upstream netip.Addr, port uint16) (string, error) {
	text := string(template)
	if strings.Contains(text, varDomain) {
		return "", fmt.Errorf("%s: %s is still in it: replace it with the cluster's domain before the manifest is applied", o.BaseCorefile, varDomain)
	}
	if UsesUpstream(template) && !upstream.IsValid() {
		return "", fmt.Errorf("-upstreamsvc %s: %w, since the environment has no %s; create the Service in this namespace before the pod starts", o.UpstreamService, ErrNoUpstream, serviceVariable(o.UpstreamService))
	}
	servers := "/etc/resolv.conf"
	if len(k.UpstreamNameservers) > 0 {
		servers = strings.Join(k.UpstreamNameservers, " ")
		text = strings.ReplaceAll(text, forcedTCP, withoutForce)
	}
	text = strings.NewReplacer(
		varUpstreams, servers,
		varClusterDNS, upstream.String(),
		varLocalIPs, addressList(o.LocalIPs),
		varDNSServer, "", // its address is in -localip
		varPrometheus, o.Prometheus,
	).Replace(text)

	var b strings.Builder
	b.WriteString(text)
	for _, domain := range sortedKeys(k.StubDomains) {
		fmt.Fprintf(&b, "\n%s:%d {\n%s    cache %d\n    bind %s\n    forward . %s\n}\n",
			domain, port, stubErrors, stubTTL, addressList(o.LocalIPs), strings.Join(k.StubDomains[domain], " "))
	}
	return b.String(), nil
}

// UpstreamFromEnvironment returns the ClusterIP that kubelet wrote to the environment when
// the container started, or the zero Addr.
func (o *Options) UpstreamFromEnvironment() netip.Addr {
	a, _ := netip.ParseAddr(os.Getenv(serviceVariable(o.UpstreamService)))
	return a
}

func serviceVariable(service string) string {
	return strings.ToUpper(strings.ReplaceAll(service, "-", "_")) + "_SERVICE_HOST"
}

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }
