// Package recall tells which names the caches of a process are asked most, and asks for those
// that another process was asked most: see package names.
//
// The package does not import CoreDNS.
package recall

import (
	"context"
	"net"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/agent/names"
	"github.com/trackless-dns/trackless/agent/recorder"
	"github.com/trackless-dns/trackless/iptables/control"
	"github.com/trackless-dns/trackless/plugin/cache/engine"
	"github.com/trackless-dns/trackless/plugin/cache/store"
	"github.com/trackless-dns/trackless/plugin/cache/warm"
	"github.com/trackless-dns/trackless/plugin/cache/wire"
)

// Handed is what the caches of a process give to other processes.
type Handed struct {
	warm.Caches
	Names
}

// Block is the cache of a server block.
type Block struct {
	control.CacheBlock
	Cache
}

// Cache is the cache as this package needs it.
type Cache interface {
	ServeDNS(context.Context, dns.ResponseWriter, *dns.Msg) (int, error)
	Engine() *engine.Engine
	// Caches reports whether answers for the name are cached.
	Caches(name []byte) bool
}

// label names the server block, for another process that has the same one.
func (b Block) label() string {
	words := append([]string{b.ServerBlock}, b.Bind...)
	if b.View != "" {
		words = append(words, "view", b.View)
	}
	return strings.Join(words, " ")
}

// Names are the names that the caches of a process are asked. It implements names.Asker.
type Names struct {
	// Blocks returns the caches that are in use, the newest first.
	Blocks func() []Block
}

// Hottest returns the questions that the caches answer most, hottest first, at most so many.
func (n Names) Hottest(limit int) []names.Name {
	var all []hot
	for _, b := range n.Blocks() {
		for _, h := range hottest(b.Engine(), time.Now(), limit) {
			h.block = b.label()
			all = append(all, h)
		}
	}
	all = first(all, limit)
	out := make([]names.Name, 0, len(all))
	for _, h := range all {
		bits := h.key.Bits()
		out = append(out, names.Name{
			Block: h.block, Text: wire.NameText(h.key.Name()), Type: h.key.Type(), DO: bits&wire.DO != 0, CD: bits&wire.CD != 0,
		})
	}
	return out
}

// Need implements names.Asker.
func (n Names) Need(name names.Name) names.Need {
	c, key := n.holder(name)
	switch {
	case c == nil:
		return names.Gone
	case c.Engine().Has(key, time.Now()):
		return names.Cached
	}
	return names.Wanted
}

// holder returns the cache for a name of another process, and the key of its answer.
func (n Names) holder(name names.Name) (Cache, wire.Key) {
	var bits wire.Bits
	if name.DO {
		bits |= wire.DO
	}
	if name.CD {
		bits |= wire.CD
	}
	key, err := wire.AppendKey(nil, name.Text, name.Type, dns.ClassINET, bits)
	if err != nil || !key.Valid() {
		return nil, nil
	}
	for _, b := range n.Blocks() {
		if b.label() == name.Block && b.Caches(key.Name()) {
			return b.Cache, key
		}
	}
	return nil, nil
}

// Ask implements names.Asker.
func (n Names) Ask(name names.Name) bool {
	c, key := n.holder(name)
	if c == nil {
		return false
	}
	r := new(dns.Msg).SetQuestion(wire.NameText(key.Name()), name.Type)
	r.CheckingDisabled = name.CD
	r.SetEdns0(largest, name.DO)
	m := ask(c, r, &net.UDPAddr{})
	if m != nil && m.Truncated {
		m = ask(c, r, &net.TCPAddr{})
	}
	if m != nil && (m.Rcode == dns.RcodeSuccess || m.Rcode == dns.RcodeNameError) {
		return true
	}
	c.Engine().Store().Remove(key, store.Negative) // a failure: the first client tries again
	return false
}

// largest is the size of the largest response over UDP: no router need fragment it.
const largest = 1232

// ask passes a question to a cache. It returns nil if there is no answer.
func ask(c Cache, r *dns.Msg, from net.Addr) (answer *dns.Msg) {
	w := &writer{from: from}
	// In no server, nobody recovers from the panic of a plugin.
	defer func() {
		if recover() != nil {
			answer = nil
		}
	}()
	if _, err := c.ServeDNS(context.Background(), w, r.Copy()); err != nil {
		return nil
	}
	return w.Answer
}

// writer takes the answer to a query of nobody.
type writer struct {
	recorder.Recorder
	from net.Addr
}

// LocalAddr implements dns.ResponseWriter.
func (w *writer) LocalAddr() net.Addr { return w.from }

// RemoteAddr implements dns.ResponseWriter.
func (w *writer) RemoteAddr() net.Addr { return w.from }
