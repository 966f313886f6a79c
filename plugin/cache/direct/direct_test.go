package direct

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/pkg/nonwriter"
	"github.com/coredns/coredns/request"
	"github.com/miekg/dns"
)

// Bytes may be written only through writers that are known. The test fails when CoreDNS or
// miekg/dns moves the fields that udp reads.
func TestWriters(t *testing.T) {
	scrub := func(w dns.ResponseWriter, r *dns.Msg) dns.ResponseWriter { return request.NewScrubWriter(r, w) }
	for name, tc := range map[string]struct {
		network string
		wrap    func(w dns.ResponseWriter, r *dns.Msg) dns.ResponseWriter
		want    bool

		decorate dns.DecorateWriter
	}{
		"CoreDNS":         {network: "udp", wrap: scrub, want: true},
		"through plugins": {network: "udp", wrap: func(w dns.ResponseWriter, r *dns.Msg) dns.ResponseWriter { return tracked(tracked(scrub(w, r))) }, want: true},
		"through a recorder": {network: "udp", wrap: func(w dns.ResponseWriter, r *dns.Msg) dns.ResponseWriter {
			return tracked(recorder{tracked(scrub(w, r))})
		}, want: true},
		"a server without its bound": {network: "udp", wrap: func(w dns.ResponseWriter, _ *dns.Msg) dns.ResponseWriter { return tracked(w) }},
		"a plugin's writer":          {network: "udp", wrap: func(w dns.ResponseWriter, r *dns.Msg) dns.ResponseWriter { return tracked(changer{scrub(w, r)}) }},
		"a plugin's writer outside":  {network: "udp", wrap: func(w dns.ResponseWriter, r *dns.Msg) dns.ResponseWriter { return changer{scrub(w, r)} }},
		"a plugin's query":           {network: "udp", wrap: func(w dns.ResponseWriter, r *dns.Msg) dns.ResponseWriter { return scrub(nonwriter.New(w), r) }},
		"no writer beneath":          {network: "udp", wrap: func(_ dns.ResponseWriter, r *dns.Msg) dns.ResponseWriter { return tracked(scrub(nil, r)) }},
		"a plugin's socket":          {network: "udp", wrap: scrub, decorate: func(w dns.Writer) dns.Writer { return socket{w} }},
		"TCP":                        {network: "tcp", wrap: scrub},
	} {
		t.Run(name, func(t *testing.T) {
			got := make(chan bool, 1)
			serve(t, tc.network, tc.decorate, func(w dns.ResponseWriter, r *dns.Msg) {
				got <- udp(tc.wrap(w, r))
				_ = w.WriteMsg(new(dns.Msg).SetReply(r))
			})
			if got := <-got; got != tc.want {
				t.Errorf("udp says %v", got)
			}
		})
	}
}

// changer is the writer of a plugin that changes messages.
type changer struct{ dns.ResponseWriter }

type recorder struct{ dns.ResponseWriter }

func (r recorder) Beneath() dns.ResponseWriter { return r.ResponseWriter }

// socket is the writer of a plugin that sends itself.
type socket struct{ dns.Writer }

// tracked is w as the next plugin gets it.
func tracked(w dns.ResponseWriter) (tracked dns.ResponseWriter) {
	_, _ = plugin.NextOrFailure("", plugin.HandlerFunc(func(_ context.Context, w dns.ResponseWriter, _ *dns.Msg) (int, error) {
		tracked = w
		return 0, nil
	}), context.Background(), w, nil)
	return tracked
}

// serve asks a server with the handler one question.
func serve(t *testing.T, network string, decorate dns.DecorateWriter, handler dns.HandlerFunc) {
	t.Helper()
	server := &dns.Server{Net: network, Addr: "127.0.0.1:0", Handler: handler, DecorateWriter: decorate}
	started := make(chan struct{})
	server.NotifyStartedFunc = func() { close(started) }
	done := make(chan error, 1)
	go func() { done <- server.ListenAndServe() }()
	select {
	case <-started:
	case err := <-done:
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Shutdown() })
	var addr net.Addr
	if network == "udp" {
		addr = server.PacketConn.LocalAddr()
	} else {
		addr = server.Listener.Addr()
	}
	client := dns.Client{Net: network, Timeout: 10 * time.Second}
	if _, _, err := client.Exchange(new(dns.Msg).SetQuestion(".", dns.TypeNS), addr.String()); err != nil {
		t.Fatal(err)
	}
}
