//go:build privileged

package clients

import (
	"context"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/lab"
)

// streamServer answers as kube-dns would, for the names that streams ask, in
// a namespace of its own.
type streamServer struct {
	ns     *lab.Namespace
	addr   netip.Addr
	ttl    atomic.Uint32
	silent atomic.Bool

	// closeAfter closes every TCP connection after so many answers, if not 0.
	closeAfter int
}

func startStreamServer(t *testing.T, closeAfter int) *streamServer {
	t.Helper()
	testns.Root(t)
	ns, err := lab.NewNamespace("streams")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ns.Close() })
	s := &streamServer{ns: ns, addr: netip.MustParseAddr("127.0.0.1"), closeAfter: closeAfter}
	s.ttl.Store(lab.KubeDNSTTL)
	var packets net.PacketConn
	var listener net.Listener
	err = ns.Do(func() (err error) {
		at := netip.AddrPortFrom(s.addr, lab.DNSPort)
		if packets, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at)); err == nil {
			listener, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, server := range []*dns.Server{
		{PacketConn: packets, Handler: s},
		{Listener: listener, Handler: s, MaxTCPQueries: closeAfter},
	} {
		started := make(chan struct{})
		server.NotifyStartedFunc = func() { close(started) }
		go func() { _ = server.ActivateAndServe() }()
		<-started
		t.Cleanup(func() { _ = server.Shutdown() })
	}
	return s
}

func (s *streamServer) ServeDNS(w dns.ResponseWriter, query *dns.Msg) {
	if s.silent.Load() {
		return
	}
	response := new(dns.Msg).SetReply(query)
	header := dns.RR_Header{Name: query.Question[0].Name, Rrtype: query.Question[0].Qtype, Class: dns.ClassINET, Ttl: s.ttl.Load()}
	for n := range StreamNames {
		if asked := lab.HostName(n); asked.Text == header.Name {
			response.Answer = []dns.RR{&dns.A{Hdr: header, A: asked.A.AsSlice()}}
			if header.Rrtype == dns.TypeAAAA {
				response.Answer = []dns.RR{&dns.AAAA{Hdr: header, AAAA: asked.AAAA.AsSlice()}}
			}
		}
	}
	_ = w.WriteMsg(response)
}

func (s *streamServer) streams(rate float64) []Stream {
	var streams []Stream
	for _, kind := range StreamKinds() {
		streams = append(streams, Stream{Kind: kind, From: s.ns, Target: s.addr, Rate: rate})
	}
	return streams
}

func awaitResponder(t *testing.T, streams *Streams, want lab.Responder) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := streams.AwaitResponder(ctx, want); err != nil {
		t.Fatal(err)
	}
}

// awaitSent waits until enough holds for the queries of every client.
func awaitSent(t *testing.T, streams *Streams, enough func([]*Sent) bool) {
	t.Helper()
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	deadline := time.After(time.Minute)
	for _, client := range streams.clients {
		for {
			client.mu.Lock()
			done := enough(client.sent)
			client.mu.Unlock()
			if done {
				break
			}
			select {
			case <-ticker.C:
			case <-deadline:
				t.Fatalf("%s: waited in vain", client.Kind)
			}
		}
	}
}

// TestStreamsKeepTheirFlows holds every kind against what it says of its ports
// and connections, through a change of who answers.
func TestStreamsKeepTheirFlows(t *testing.T) {
	server := startStreamServer(t, 0)
	plan := server.streams(50)
	streams := StartStreams(plan, time.Minute)
	awaitResponder(t, streams, lab.KubeDNS)
	server.ttl.Store(5)
	awaitResponder(t, streams, lab.Trackless)
	queries, err := streams.Stop()
	if err != nil {
		t.Fatal(err)
	}
	for i, stream := range plan {
		ports, flows := map[uint16]bool{}, map[time.Time]bool{}
		answers := map[lab.Responder]int{}
		for _, sent := range queries[i] {
			if sent.Loss != "" {
				t.Errorf("%s: lost: %s", stream.Kind, sent.Loss)
			}
			ports[sent.Port], flows[sent.Flow] = true, true
			answers[sent.By]++
		}
		want := len(queries[i])
		if stream.Kind == SinglePort || stream.Kind == LongTCP {
			want = 1
		}
		if len(ports) != want || len(flows) != want {
			t.Errorf("%s: %d ports and %d flows for %d queries, want %d", stream.Kind, len(ports), len(flows), len(queries[i]), want)
		}
		// AwaitResponder waits for all but long connections.
		if stream.Kind != LongTCP && (answers[lab.KubeDNS] < settled || answers[lab.Trackless] == 0) {
			t.Errorf("%s: answered %v", stream.Kind, answers)
		}
	}
}

// TestLongTCPOutlivesOrderlyCloses loses nothing when the server closes a
// connection between two queries.
func TestLongTCPOutlivesOrderlyCloses(t *testing.T) {
	// Between two queries is time for the end to arrive, unless the machine
	// stalls: one run of many has to be without a loss.
	const perConnection, rate, runs = 2, 10, 20
	server := startStreamServer(t, perConnection)
	for run := 1; ; run++ {
		streams := StartStreams([]Stream{{Kind: LongTCP, From: server.ns, Target: server.addr, Rate: rate}}, time.Minute)
		awaitSent(t, streams, func(sent []*Sent) bool { return len(sent) >= 4*perConnection })
		queries, err := streams.Stop()
		if err != nil {
			t.Fatal(err)
		}
		lost, flows := map[string]int{}, map[time.Time]int{}
		for _, sent := range queries[0] {
			if sent.Loss != "" {
				lost[sent.Loss]++
			}
			flows[sent.Flow]++
		}
		if len(lost) > 0 && run < runs {
			continue
		}
		if len(lost) > 0 {
			t.Errorf("lost in each of %d runs, in the last one: %v", runs, lost)
		}
		if len(flows) < 4 {
			t.Errorf("%d connections for %d queries, want one for every %d", len(flows), len(queries[0]), perConnection)
		}
		return
	}
}

// TestStreamsCountLosses gives up every query that is not answered within the
// timeout, and answers that come when the server is back count again.
func TestStreamsCountLosses(t *testing.T) {
	server := startStreamServer(t, 0)
	server.silent.Store(true)
	plan := server.streams(20)
	streams := StartStreams(plan, 200*time.Millisecond)
	awaitSent(t, streams, func(sent []*Sent) bool { return len(sent) > 0 && sent[0].Loss != "" && sent[0].Loss != underWay })
	server.silent.Store(false)
	awaitResponder(t, streams, lab.KubeDNS)
	queries, err := streams.Stop()
	if err != nil {
		t.Fatal(err)
	}
	for i, stream := range plan {
		lost, answered := 0, 0
		for _, sent := range queries[i] {
			switch sent.Loss {
			case "":
				answered++
			case "timeout", errClosed.Error():
				lost++
			default:
				t.Errorf("%s: lost to %q", stream.Kind, sent.Loss)
			}
		}
		if lost == 0 || answered == 0 {
			t.Errorf("%s: %d lost and %d answered, want some of both", stream.Kind, lost, answered)
		}
	}
}
