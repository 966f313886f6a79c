package notrack

import (
	"bytes"
	"net/netip"
	"os"
	"path"
	"strings"

	"github.com/coredns/caddy"
	"github.com/coredns/caddy/caddyfile"
	hostparse "github.com/coredns/coredns/plugin/pkg/parse"
)

// forwardEndpoints are the servers to which the notrack blocks of the running load
// forward, in the order of the Corefile: those of `forward`, and those that `upstream`
// falls back to.
func forwardEndpoints(config *configuration) []netip.AddrPort {
	var input caddy.Input
	for _, i := range caddy.Instances() {
		i.StorageMu.RLock()
		found := i.Storage[configurationKey{}] == config
		i.StorageMu.RUnlock()
		if found {
			input = i.Caddyfile()
		}
	}
	if input == nil {
		return nil
	}
	blocks, err := caddyfile.Parse(input.Path(), bytes.NewReader(input.Body()), nil)
	if err != nil {
		return nil // caddy has parsed it before
	}
	var out []netip.AddrPort
	for _, b := range blocks {
		if len(b.Tokens[directive]) == 0 {
			continue
		}
		for _, token := range b.Tokens["forward"] {
			out = append(out, endpointsOf(token.Text)...)
		}
		for i, token := range b.Tokens["upstream"] {
			out = append(out, endpointsOf(token.Text)...)
			if i == 2 { // the Service
				name := strings.ToUpper(strings.ReplaceAll(path.Base(token.Text), "-", "_"))
				for _, variable := range []string{name + "_UPSTREAM_SERVICE_HOST", name + "_SERVICE_HOST"} {
					out = append(out, endpointsOf(os.Getenv(variable))...)
				}
			}
		}
	}
	return out
}

// endpointsOf returns the servers that a word of a forward directive names: as
// ADDRESS, TRANSPORT://ADDRESS:PORT, or in a file such as /etc/resolv.conf; none
// for its other words.
func endpointsOf(word string) []netip.AddrPort {
	servers, err := hostparse.HostPortOrFile(word)
	if err != nil {
		return nil
	}
	var out []netip.AddrPort
	for _, s := range servers {
		_, s = hostparse.Transport(s)
		if ap, err := netip.ParseAddrPort(s); err == nil {
			out = append(out, netip.AddrPortFrom(ap.Addr().WithZone(""), ap.Port()))
		}
	}
	return out
}
