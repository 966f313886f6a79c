// Package clients asks a DNS server as programs in pods do, for as long as a test
// lasts: at a steady rate ([Streams]), for names nobody asked for before ([Flood]),
// over TCP without reading ([Deaf]), and as glibc's resolver does ([Lookups]). Only
// tests use it.
package clients

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/lab"
	"github.com/trackless-dns/trackless/lab/load"
)

// A StreamKind is how a steady client asks.
type StreamKind string

// The kinds of clients that differ in what a change of rules does to them.
const (
	// FreshPort sends every query from a UDP socket of its own, as stub
	// resolvers do.
	FreshPort StreamKind = "udp-fresh-port"

	// SinglePort sends all queries from one UDP socket that is not connected,
	// as many forwarders do. To conntrack they are one flow.
	SinglePort StreamKind = "udp-single-port"

	// ShortTCP makes a connection for every query.
	ShortTCP StreamKind = "tcp-short"

	// LongTCP sends all queries over one connection, without waiting for the
	// answers (RFC 7766 section 6.2.1.1), and makes another one only when that
	// one was closed or has let a query time out.
	LongTCP StreamKind = "tcp-long"
)

// StreamKinds lists them all.
func StreamKinds() []StreamKind { return []StreamKind{FreshPort, SinglePort, ShortTCP, LongTCP} }

// Protocol is what carries the queries of the kind.
func (k StreamKind) Protocol() lab.Protocol {
	if k == ShortTCP || k == LongTCP {
		return lab.TCP
	}
	return lab.UDP
}

// A Stream is a client that asks at a steady rate, whatever becomes of its
// queries. Each is a first and only attempt.
type Stream struct {
	Kind   StreamKind
	From   *lab.Namespace
	Target netip.Addr // port 53

	// Rate is the number of queries a second.
	Rate float64

	// Names is how many different names it asks for, 40 if 0, so that a cache knows
	// them all after a moment.
	Names int
}

// Sent is one query of a stream and what became of it.
type Sent struct {
	// At is when it was sent. For ShortTCP that is the SYN.
	At time.Time

	// Latency is the time from At to the answer, 0 if it was lost.
	Latency time.Duration

	// By is who answered, "" if it was lost.
	By lab.Responder

	// Loss says why there was no right answer within the time limit, "" if
	// there was one.
	Loss string

	// Port is the local port, and Flow the time when the client began to use
	// it with this socket: that of the query itself except for SinglePort and
	// LongTCP.
	Port uint16
	Flow time.Time
}

// StreamNames is the default of Stream.Names: a cache knows them all after a moment.
const StreamNames = 40

// underWay is the Loss of a query until its end is known.
const underWay = "under way"

// Streams are steady clients at work.
type Streams struct {
	timeout time.Duration
	began   time.Time
	clients []*streamClient
	stop    context.CancelFunc
	stopped context.Context
	senders sync.WaitGroup
	waiting sync.WaitGroup // queries under way
	paused  atomic.Bool

	mu  sync.Mutex
	err error
}

// StartStreams lets the clients ask until Stop. A query without an answer is
// lost after the timeout, 5 s if 0.
func StartStreams(streams []Stream, timeout time.Duration) *Streams {
	if timeout == 0 {
		timeout = lab.DefaultTimeout
	}
	s := &Streams{timeout: timeout, began: time.Now()}
	s.stopped, s.stop = context.WithCancel(context.Background())
	random := rand.New(rand.NewPCG(uint64(len(streams)), 53))
	walks := make(map[streamPorts]*load.PortWalk)
	byOrigin := make(map[*lab.Namespace][]*streamClient)
	for i, stream := range streams {
		key := streamPorts{stream.From, stream.Kind.Protocol(), stream.Target.Is6()}
		if walks[key] == nil {
			// The ports below the ephemeral range are nobody's on the node,
			// and as good as any others in a pod.
			walks[key] = load.NewPortWalk(random, load.FromNode)
		}
		stream.Names = cmp.Or(stream.Names, StreamNames)
		interval := time.Duration(float64(time.Second) / stream.Rate)
		client := &streamClient{
			Stream: stream, run: s, ports: walks[key], interval: interval,
			// Spread over the interval, so that the clients do not ask in step.
			due: s.began.Add(interval * time.Duration(i) / time.Duration(len(streams))),
			// Each begins elsewhere, so that together they soon have asked for all.
			number: random.IntN(2 * stream.Names),
		}
		s.clients = append(s.clients, client)
		byOrigin[stream.From] = append(byOrigin[stream.From], client)
	}
	for origin, clients := range byOrigin {
		s.senders.Go(func() {
			if err := origin.Do(func() error { return s.send(clients) }); err != nil {
				s.fail(err)
			}
		})
	}
	return s
}

// streamPorts tells apart which clients must not use the same local port.
type streamPorts struct {
	from     *lab.Namespace
	protocol lab.Protocol
	ipv6     bool
}

// Pause has the clients ask nothing until Resume. What they would have asked meanwhile
// they leave out.
func (s *Streams) Pause() { s.paused.Store(true) }

// Resume ends a pause.
func (s *Streams) Resume() { s.paused.Store(false) }

// Stop ends the sending, waits until every query was answered or is lost, and
// returns the queries of each stream in the order of the streams and of their
// sending. An error means that queries could not be sent as they should.
func (s *Streams) Stop() ([][]Sent, error) {
	s.stop()
	s.senders.Wait()
	s.waiting.Wait()
	all := make([][]Sent, len(s.clients))
	for i, client := range s.clients {
		client.close()
		for _, sent := range client.sent {
			all[i] = append(all[i], *sent)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return all, fmt.Errorf("ask steadily: %w", s.err)
	}
	return all, nil
}

// settled is how many answers in a row make AwaitResponder believe.
const settled = 3

// AwaitResponder waits until the last few queries of every stream, sent after
// it was called, were answered by the given responder. Long connections are not
// waited for: they may last.
func (s *Streams) AwaitResponder(ctx context.Context, want lab.Responder) error {
	began := time.Now()
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	for {
		waiting := slices.IndexFunc(s.clients, func(c *streamClient) bool { return !c.settledOn(want, began) })
		if waiting < 0 {
			return nil
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			c := s.clients[waiting]
			return fmt.Errorf("%s did not take over: %s from %s to %s: %w",
				want, c.Kind, c.From.Name(), c.Target, context.Cause(ctx))
		}
	}
}

// send asks for all clients of one origin when they are due. It runs on a
// thread inside the origin's namespace, where the sockets are made.
func (s *Streams) send(clients []*streamClient) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		next := slices.MinFunc(clients, func(a, b *streamClient) int { return a.due.Compare(b.due) })
		timer.Reset(max(0, time.Until(next.due)))
		select {
		case <-timer.C:
		case <-s.stopped.Done():
			return nil
		}
		next.due = next.due.Add(next.interval)
		if s.paused.Load() {
			continue
		}
		if err := next.ask(); err != nil {
			return fmt.Errorf("%s to %s: %w", next.Kind, next.Target, err)
		}
	}
}

func (s *Streams) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = errors.Join(s.err, err)
}

// streamClient is one Stream at work.
type streamClient struct {
	Stream
	run      *Streams
	ports    *load.PortWalk
	interval time.Duration
	due      time.Time // used by the sender alone, as are number and channel
	number   int
	channel  channel // of SinglePort and LongTCP, nil before the first query

	mu   sync.Mutex
	sent []*Sent
}

// A channel carries the queries of one client over one socket.
type channel interface {
	// usable is false when the client has to make another one.
	usable() bool
	// send sends the query and calls done once with what became of it.
	send(query []byte, done func(response []byte, err error))
	close()
}

// ask sends one query. An error means that none could be sent.
func (c *streamClient) ask() error {
	c.number++
	asked := lab.HostName(c.number % c.Names)
	qtype := dns.TypeA
	if c.number/c.Names%2 == 1 {
		qtype = dns.TypeAAAA
	}
	message := new(dns.Msg).SetQuestion(asked.Text, qtype)
	message.Id = uint16(c.number)
	query, err := message.Pack()
	if err != nil {
		return err
	}

	sent := &Sent{Loss: underWay}
	done := func(response []byte, err error) {
		latency := time.Since(sent.At)
		by, loss := judgeAnswer(asked, qtype, response, err)
		c.mu.Lock()
		defer c.mu.Unlock()
		sent.By, sent.Loss = by, loss
		if loss == "" {
			sent.Latency = latency
		}
	}
	switch c.Kind {
	case FreshPort, ShortTCP:
		fd, port, err := c.openBound()
		if err != nil {
			return err
		}
		sent.At, sent.Port = time.Now(), port
		sent.Flow = sent.At
		c.run.waiting.Go(func() {
			server := netip.AddrPortFrom(c.Target, lab.DNSPort)
			done(lab.Exchange(context.Background(), fd, c.Kind.Protocol(), 0, server, query, c.run.timeout))
		})
	default:
		if c.channel == nil || !c.channel.usable() {
			if err := c.open(); err != nil {
				return err
			}
		}
		sent.At = time.Now()
		sent.Port, sent.Flow = c.flow()
		c.run.waiting.Add(1)
		c.channel.send(query, func(response []byte, err error) {
			done(response, err)
			c.run.waiting.Done()
		})
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sent = append(c.sent, sent)
	return nil
}

// judgeAnswer says who answered rightly, or why it is a loss.
func judgeAnswer(asked lab.Name, qtype uint16, wire []byte, err error) (by lab.Responder, loss string) {
	if err != nil {
		return "", load.Reason(err)
	}
	response := new(dns.Msg)
	if err := response.Unpack(wire); err != nil {
		return "", "malformed response"
	}
	if err := asked.Check(response, qtype); err != nil {
		if response.Rcode != dns.RcodeSuccess {
			return "", dns.RcodeToString[response.Rcode]
		}
		return "", "wrong answer"
	}
	return lab.Identify(response), ""
}

// openBound makes a socket with a local port that no other socket of this
// origin has had lately.
func (c *streamClient) openBound() (fd int, port uint16, err error) {
	fd, err = lab.OpenSocket(c.Kind.Protocol(), c.Target.Is6())
	if err != nil {
		return -1, 0, err
	}
	if err := lab.Bind(fd, c.ports.Next(), c.Kind.Protocol(), c.Target.Is6()); err != nil {
		return -1, 0, errors.Join(err, unix.Close(fd))
	}
	port, err = localPort(fd)
	if err != nil {
		return -1, 0, errors.Join(err, unix.Close(fd))
	}
	return fd, port, nil
}

func localPort(fd int) (uint16, error) {
	local, err := unix.Getsockname(fd)
	if err != nil {
		return 0, fmt.Errorf("getsockname: %w", err)
	}
	if local6, ok := local.(*unix.SockaddrInet6); ok {
		return uint16(local6.Port), nil
	}
	return uint16(local.(*unix.SockaddrInet4).Port), nil
}

// open makes a new channel.
func (c *streamClient) open() error {
	if c.channel != nil {
		c.channel.close()
	}
	fd, port, err := c.openBound()
	if err != nil {
		return err
	}
	server := netip.AddrPortFrom(c.Target, lab.DNSPort)
	if c.Kind == SinglePort {
		c.channel, err = newPortChannel(fd, port, server, c.run.timeout)
	} else {
		c.channel = newConnChannel(fd, port, server, c.run.timeout)
	}
	return err
}

func (c *streamClient) flow() (port uint16, began time.Time) {
	switch channel := c.channel.(type) {
	case *portChannel:
		return channel.port, channel.began
	case *connChannel:
		return channel.port, channel.began
	}
	return 0, time.Time{}
}

func (c *streamClient) settledOn(want lab.Responder, began time.Time) bool {
	if c.Kind == LongTCP {
		return true // its connection may outlast the takeover
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	seen := 0
	for _, sent := range slices.Backward(c.sent) {
		if sent.At.Before(began) {
			break
		}
		if sent.Loss == "" {
			if sent.By != want {
				return false
			}
			seen++
		}
		if seen == settled {
			return true
		}
	}
	return false
}

func (c *streamClient) close() {
	if c.channel != nil {
		c.channel.close()
	}
}
