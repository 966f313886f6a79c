// Package direct makes replies in bytes where they may be written so.
//
// A plugin answers with a message. The server checks its size, packs it and sends it. For
// an answer that is stored in wire format, this is about a tenth of the CPU time of a query.
// But a plugin above the cache may read or change what others answer, as `rewrite` and `log`
// do: it puts a writer of its own around the server's, and sees messages only. So every
// writer must be one that is known to pass bytes on as they are.
package direct

import (
	"context"
	"net"
	"reflect"
	"sync/atomic"

	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/request"
	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/plugin/cache/wire"
)

// maxLen is the size of the largest reply in bytes: what fits a packet on Ethernet.
const maxLen = 1472

// Reply has room for a reply. It is reused.
type Reply struct {
	query wire.Query
	out   [maxLen]byte
}

// Pack makes the reply to the query r in wire format, with an answer whose records have the
// TTL, in seconds. It returns nil if the reply to w must be a message. The reply is valid
// until the next Pack.
func (p *Reply) Pack(w dns.ResponseWriter, r *dns.Msg, key wire.Key, a *wire.Answer, ttl uint32) []byte {
	if !udp(w) || !p.query.FromMessage(p.out[:], r, key) {
		return nil
	}
	if size := p.query.ReplyLen(a); size > int(p.query.Size) || size > len(p.out) {
		return nil
	}
	return p.out[:p.query.Reply(p.out[:], p.out[:], a, ttl)]
}

// Recorder is a writer that notes what is written, in bytes as well as in messages, and
// passes it on as it is.
type Recorder interface {
	dns.ResponseWriter
	// Beneath returns the writer to which it is passed on.
	Beneath() dns.ResponseWriter
}

// udp reports whether bytes written to w go to a client over UDP as they are. The server
// bounds the size of a message to what the client accepts; here the caller does.
func udp(w dns.ResponseWriter) bool {
	bounded := false
	for {
		switch t := w.(type) {
		case *request.ScrubWriter:
			bounded = true
			w = t.ResponseWriter
			continue
		case Recorder:
			w = t.Beneath()
			continue
		}
		t := reflect.TypeOf(w)
		switch {
		case t == nil:
			return false
		case t != tracker:
			return bounded && isServers(w) && overUDP(w)
		}
		inner, ok := reflect.ValueOf(w).Elem().Field(trackerField).Interface().(dns.ResponseWriter)
		if !ok {
			return false
		}
		w = inner
	}
}

func overUDP(w dns.ResponseWriter) bool {
	_, ok := w.RemoteAddr().(*net.UDPAddr)
	return ok
}

// tracker is the type of the writer with which plugin.NextOrFailure notes which plugin
// answers, nil if it has no field for the next writer. CoreDNS does not export it.
var tracker, trackerField = findTracker()

func findTracker() (found reflect.Type, field int) {
	_, _ = plugin.NextOrFailure("", plugin.HandlerFunc(func(_ context.Context, w dns.ResponseWriter, _ *dns.Msg) (int, error) {
		t := reflect.TypeOf(w)
		if t.Kind() != reflect.Pointer || t.Elem().Kind() != reflect.Struct {
			return 0, nil
		}
		inner, ok := t.Elem().FieldByName("ResponseWriter")
		if ok && inner.IsExported() && len(inner.Index) == 1 && inner.Type == reflect.TypeFor[dns.ResponseWriter]() {
			found, field = t, inner.Index[0]
		}
		return 0, nil
	}), context.Background(), nil, nil)
	return found, field
}

// server is the type of the writer of dns.Server, which does not export it, and the field
// with the writer that gets the bytes of its messages.
type server struct {
	t      reflect.Type
	writer int
}

var known atomic.Pointer[server]

// isServers reports whether w is the writer of dns.Server, and sends messages itself: a
// plugin may have put a writer of its own behind it (dns.Server.DecorateWriter).
func isServers(w dns.ResponseWriter) bool {
	v := reflect.ValueOf(w)
	s := known.Load()
	if s == nil || v.Type() != s.t {
		if s = newServer(v.Type()); s == nil {
			return false
		}
		known.Store(s)
	}
	sender := v.Elem().Field(s.writer).Elem()
	return sender.Kind() == reflect.Pointer && sender.Pointer() == v.Pointer()
}

func newServer(t reflect.Type) *server {
	if t.String() != "*dns.response" || t.Elem().PkgPath() != reflect.TypeFor[dns.Msg]().PkgPath() {
		return nil
	}
	writer, ok := t.Elem().FieldByName("writer")
	if !ok || writer.Type != reflect.TypeFor[dns.Writer]() {
		return nil
	}
	return &server{t, writer.Index[0]}
}
