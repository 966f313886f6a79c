package cache

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/netip"
	"slices"

	"github.com/coredns/caddy"
	"github.com/coredns/caddy/caddyfile"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	zoneparse "github.com/coredns/coredns/plugin/pkg/parse"
	"github.com/coredns/coredns/plugin/pkg/transport"
)

// fingerprint stands for everything on which the answers of the server block
// depend: which names its listeners bring to it rather than to another block,
// and the directives below the cache. It is empty if the Corefile is not to
// be had, as in tests of a single directive.
func fingerprint(controller *caddy.Controller) string {
	corefile := corefileOf(controller)
	if corefile == nil {
		return ""
	}
	blocks, err := caddyfile.Parse(corefile.Path(), bytes.NewReader(corefile.Body()), nil)
	if err != nil || controller.ServerBlockIndex >= len(blocks) {
		return ""
	}
	own := blocks[controller.ServerBlockIndex]
	facts := struct {
		Block   blockFacts
		Routing []blockFacts
		Below   map[string][]string
	}{Block: factsOf(own), Below: directivesBelow(own)}
	for _, b := range blocks {
		if f := factsOf(b); f.meets(facts.Block) {
			facts.Routing = append(facts.Routing, f)
		}
	}
	text, err := json.Marshal(facts)
	if err != nil {
		return ""
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}

// blockFacts say which queries a server block takes.
type blockFacts struct {
	Zones     []string // transport, zone and port of each key
	Listeners []string // transport and port of each key
	Bind      []string // arguments of bind
	View      []string // arguments of view, which lets only some queries in
}

func factsOf(b caddyfile.ServerBlock) blockFacts {
	f := blockFacts{View: textOf(b.Tokens["view"])}
	for _, t := range b.Tokens["bind"] {
		if t.Text != "bind" {
			f.Bind = append(f.Bind, t.Text)
		}
	}
	for _, key := range b.Keys {
		trans, rest := zoneparse.Transport(key)
		hosts, port, err := plugin.SplitHostPort(rest)
		if err != nil {
			hosts = []string{rest}
		}
		if port == "" {
			port = defaultPort(trans)
		}
		listener := trans + "://:" + port
		if !slices.Contains(f.Listeners, listener) {
			f.Listeners = append(f.Listeners, listener)
		}
		for _, h := range hosts {
			f.Zones = append(f.Zones, listener+"/"+plugin.Name(h).Normalize())
		}
	}
	slices.Sort(f.Zones)
	return f
}

func defaultPort(trans string) string {
	switch trans {
	case transport.TLS:
		return transport.TLSPort
	case transport.QUIC:
		return transport.QUICPort
	case transport.GRPC:
		return transport.GRPCPort
	case transport.HTTPS, transport.HTTPS3:
		return transport.HTTPSPort
	}
	return dnsserver.Port
}

// meets reports whether queries to one block may come to the other instead,
// because they have a listener in common. Where bind has something else than addresses,
// it is assumed.
func (f blockFacts) meets(other blockFacts) bool {
	if !slices.ContainsFunc(f.Listeners, func(l string) bool { return slices.Contains(other.Listeners, l) }) {
		return false
	}
	return slices.Equal(f.Bind, other.Bind) || !onlyAddresses(f.Bind) || !onlyAddresses(other.Bind) ||
		slices.ContainsFunc(f.Bind, func(a string) bool { return slices.Contains(other.Bind, a) })
}

func onlyAddresses(bind []string) bool {
	if len(bind) == 0 {
		return false
	}
	for _, a := range bind {
		if addr, err := netip.ParseAddr(a); err != nil || addr.IsUnspecified() {
			return false
		}
	}
	return true
}

// directivesBelow returns the directives of the block that come after the
// cache, with their arguments and blocks.
func directivesBelow(b caddyfile.ServerBlock) map[string][]string {
	below := make(map[string][]string)
	order := dnsserver.Directives[slices.Index(dnsserver.Directives, "cache")+1:]
	for _, directive := range order {
		if tokens, ok := b.Tokens[directive]; ok {
			below[directive] = textOf(tokens)
		}
	}
	return below
}

// textOf returns the tokens with the line breaks between them, which end
// arguments.
func textOf(tokens []caddyfile.Token) []string {
	text := make([]string, 0, len(tokens))
	for i, t := range tokens {
		if i > 0 && t.Line != tokens[i-1].Line {
			text = append(text, "\n")
		}
		text = append(text, t.Text)
	}
	return text
}

// inInstance finds what this package keeps with a caddy instance.
type inInstance struct{}

// perInstance is it: how many caches take their share of the default size.
type perInstance struct{ defaultSized int }

func instanceOf(controller *caddy.Controller) *perInstance {
	p, _ := controller.Get(inInstance{}).(*perInstance)
	if p == nil {
		p = new(perInstance)
		controller.Set(inInstance{}, p)
	}
	return p
}

// corefileOf returns the Corefile that the controller's instance is made from.
// A controller does not give its instance away, but what it keeps with it is
// seen from outside.
func corefileOf(controller *caddy.Controller) caddy.Input {
	mine := instanceOf(controller)
	for _, inst := range caddy.Instances() {
		inst.StorageMu.RLock()
		p, _ := inst.Storage[inInstance{}].(*perInstance)
		inst.StorageMu.RUnlock()
		if p == mine {
			return inst.Caddyfile()
		}
	}
	return nil
}
