// Package fingerprint tells whether a reload changes what a server block answers. A
// fingerprint stands for everything on which the answers depend: the names that the
// block's listeners bring to it, the directives below the cache, and the files that
// these read. Two caches with equal fingerprints may use the same answers.
package fingerprint

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/coredns/caddy"
	"github.com/coredns/caddy/caddyfile"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/forward"
	zoneparse "github.com/coredns/coredns/plugin/pkg/parse"
	"github.com/coredns/coredns/plugin/pkg/transport"
)

// Reading is a fingerprint that is being taken, while the directives of a server
// block are set up.
type Reading struct {
	controller *caddy.Controller
	before     *facts
	err        error
}

// Begin reads the facts before the directives below the cache are set up, which read
// their files then.
func Begin(controller *caddy.Controller) *Reading {
	before, err := readFacts(controller, readersOf(controller).before)
	return &Reading{controller: controller, before: before, err: err}
}

// End reads the facts again, when all directives of the block are set up, and returns
// the fingerprint. It is empty, which equals that of no other cache, if the facts
// could not be read or changed meanwhile. The error says why they could not be read.
func (r *Reading) End(cfg *dnsserver.Config) (string, error) {
	after, err := readFacts(r.controller, readersOf(r.controller).after)
	if after != nil {
		after.Upstreams = upstreamsOf(cfg)
	}
	return fingerprint(r.before, after), cmp.Or(r.err, err)
}

// facts are everything on which the answers of a server block depend: the names that
// its listeners bring to it and not to another block, the directives below the cache,
// and what these directives read when they are set up.
type facts struct {
	Block   blockFacts
	Routing []blockFacts
	Below   map[string][]string
	// Options is the directive rewrite if it adds EDNS options to queries. It stands
	// above the cache, and the options are not part of the key of an answer.
	Options []string `json:",omitempty"`
	// Asked are the blocks that a directive below the cache may ask.
	Asked []map[string][]string `json:",omitempty"`
	// Files are the contents of the files that all these directives name.
	Files contents
	// Upstreams are the addresses that forward asks, with host names resolved.
	Upstreams []string
}

// readFacts returns the facts of the controller's server block, with files read by
// files. It returns nil if there is no Corefile, as in tests of a single directive.
// Environment variables, imports and snippets are expanded as caddy does it.
func readFacts(controller *caddy.Controller, files *reader) (*facts, error) {
	corefile := corefileOf(controller)
	if corefile == nil {
		return nil, nil
	}
	blocks, err := caddyfile.Parse(corefile.Path(), bytes.NewReader(corefile.Body()), nil)
	if err != nil {
		return nil, err
	}
	if controller.ServerBlockIndex >= len(blocks) {
		return nil, nil
	}
	own := blocks[controller.ServerBlockIndex]
	f := &facts{Block: factsOf(own), Files: contents{}}
	below := tokensBelow(own)
	f.Below = textsOf(below)
	if err := files.directives(f.Files, below, rootOf(own)); err != nil {
		return nil, err
	}
	if rewrite := textOf(own.Tokens["rewrite"]); slices.Contains(rewrite, "edns0") {
		f.Options = rewrite
	}
	asks := slices.ContainsFunc(askServer, func(directive string) bool { return below[directive] != nil })
	for _, b := range blocks {
		other := factsOf(b)
		if !other.meets(f.Block) {
			continue
		}
		f.Routing = append(f.Routing, other)
		if asks {
			f.Asked = append(f.Asked, textsOf(b.Tokens))
			if err := files.directives(f.Files, b.Tokens, rootOf(b)); err != nil {
				return nil, err
			}
		}
	}
	return f, nil
}

// askServer are the directives that look other names up, such as the target of
// an alias, by asking the server that they are part of.
var askServer = []string{"auto", "etcd", "file", "kubernetes", "secondary", "template"}

// fingerprint returns the fingerprint of the facts. It is empty if they could not be
// read, or if a file changed while the directives were set up: it is unknown which
// contents they use then.
func fingerprint(before, after *facts) string {
	if before == nil || after == nil || !maps.Equal(before.Files, after.Files) {
		return ""
	}
	text, err := json.Marshal(after)
	if err != nil {
		return ""
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}

// Answering lists the plugins below the cache that answer queries, a forward once for each
// time that it is in the block.
func Answering(cfg *dnsserver.Config) []string {
	var names []string
	for _, name := range dnsserver.Directives[slices.Index(dnsserver.Directives, "cache")+1:] {
		h := cfg.Handler(name)
		if h == nil || slices.Contains(passesOn, name) {
			continue
		}
		names = append(names, name)
		f, ok := h.(*forward.Forward)
		for ok {
			if f, ok = f.Next.(*forward.Forward); ok {
				names = append(names, name)
			}
		}
	}
	return names
}

// passesOn are the plugins that change queries and responses of others, or answer queries of
// their own only.
var passesOn = []string{"header", "loop", "minimal"}

// upstreamsOf lists the addresses of every forward below the cache.
func upstreamsOf(cfg *dnsserver.Config) []string {
	var addrs []string
	// CoreDNS knows the first forward of a block. The others follow it in the chain.
	for f, ok := cfg.Handler("forward").(*forward.Forward); ok; f, ok = f.Next.(*forward.Forward) {
		var list []string
		for _, p := range f.List() {
			list = append(list, p.Addr())
		}
		slices.Sort(list)
		addrs = append(addrs, strings.Join(list, " "))
	}
	return addrs
}

// blockFacts are the facts that decide which queries a server block gets.
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

// meets reports whether the blocks share a listener, so that a query for one block may
// come to the other. If bind has anything but addresses, such as an interface, they
// are assumed to share it.
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

// tokensBelow returns the directives of the block that come after the cache.
func tokensBelow(b caddyfile.ServerBlock) map[string][]caddyfile.Token {
	below := make(map[string][]caddyfile.Token)
	order := dnsserver.Directives[slices.Index(dnsserver.Directives, "cache")+1:]
	for _, directive := range order {
		if tokens, ok := b.Tokens[directive]; ok {
			below[directive] = tokens
		}
	}
	return below
}

// rootOf returns the argument of the directive root, the folder of files that other
// directives name.
func rootOf(b caddyfile.ServerBlock) string {
	if tokens := b.Tokens["root"]; len(tokens) > 1 {
		return tokens[1].Text
	}
	return ""
}

// textsOf returns directives with their arguments and blocks.
func textsOf(directives map[string][]caddyfile.Token) map[string][]string {
	texts := make(map[string][]string, len(directives))
	for directive, tokens := range directives {
		texts[directive] = textOf(tokens)
	}
	return texts
}

// textOf returns the texts of the tokens. Line breaks are kept, since they end the
// arguments of an option.
func textOf(tokens []caddyfile.Token) []string {
	text := make([]string, 0, len(tokens))
	for i, t := range tokens {
		if i > 0 && newLine(tokens[i-1], t) {
			text = append(text, "\n")
		}
		text = append(text, t.Text)
	}
	return text
}

// newLine reports whether the token t is on another line than the token before it.
func newLine(before, t caddyfile.Token) bool { return t.Line != before.Line || t.File != before.File }

// inInstance is the key under which a caddy instance keeps its readers.
type inInstance struct{}

// readers read the files of an instance before and after its directives are set up.
type readers struct{ before, after *reader }

func readersOf(controller *caddy.Controller) *readers {
	p, _ := controller.Get(inInstance{}).(*readers)
	if p == nil {
		p = &readers{before: newReader(), after: newReader()}
		controller.Set(inInstance{}, p)
	}
	return p
}

// corefileOf returns the Corefile of the controller's instance. A controller does not
// say which instance it belongs to, but their storage holds the same readers.
func corefileOf(controller *caddy.Controller) caddy.Input {
	mine := readersOf(controller)
	for _, inst := range caddy.Instances() {
		inst.StorageMu.RLock()
		p, _ := inst.Storage[inInstance{}].(*readers)
		inst.StorageMu.RUnlock()
		if p == mine {
			return inst.Caddyfile()
		}
	}
	return nil
}
