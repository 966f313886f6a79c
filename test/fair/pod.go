package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/lab"
)

// pod asks steadily for names that are cached, and for names that nobody has asked for.
type pod struct {
	from     *lab.Namespace
	target   netip.AddrPort
	protocol lab.Protocol

	number  int
	waiting sync.WaitGroup
	mu      sync.Mutex
	asked   []asked
}

// asked is a query of the pod and what became of it.
type asked struct {
	at      time.Time
	cached  bool
	latency time.Duration // 0: no answer
	rcode   int
}

const (
	cachedRate   = 100 // queries a second
	uncachedRate = 50
	cachedNames  = 25
	patience     = 2 * time.Second
)

func cachedName(n int) string { return fmt.Sprintf("cached-%d.lab.", n%cachedNames) }

// warm has the cached names cached.
func (p *pod) warm(ctx context.Context) error {
	for n := range cachedNames {
		query := new(dns.Msg).SetQuestion(cachedName(n), dns.TypeA)
		if _, err := p.from.Query(ctx, p.protocol, p.target.Addr(), query); err != nil {
			return fmt.Errorf("ask for %s: %w", query.Question[0].Name, err)
		}
	}
	return nil
}

// ask asks for some time, and returns when all queries are answered or lost.
func (p *pod) ask(ctx context.Context, last time.Duration) ([]asked, error) {
	p.asked = nil
	err := p.from.Do(func() error { return p.send(ctx, last) })
	p.waiting.Wait()
	return p.asked, err
}

// send runs on a thread inside the namespace, where the sockets are made.
func (p *pod) send(ctx context.Context, last time.Duration) error {
	const rate = cachedRate + uncachedRate
	began := time.Now()
	for i := range int(last.Seconds() * rate) {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Until(began.Add(time.Duration(i) * time.Second / rate))):
		}
		p.number++
		a := asked{cached: i%3 != 0}
		name := fmt.Sprintf("new-%d.lab.", p.number)
		if a.cached {
			name = cachedName(p.number)
		}
		query, err := new(dns.Msg).SetQuestion(name, dns.TypeA).Pack()
		if err != nil {
			return err
		}
		send := p.overUDP
		if p.protocol == lab.TCP {
			send = p.overTCP
		}
		if err := send(a, query); err != nil {
			return err
		}
	}
	return nil
}

func (p *pod) note(a asked, response []byte, latency time.Duration) {
	if len(response) > 3 {
		a.latency, a.rcode = max(latency, 1), int(response[3]&0xf)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked = append(p.asked, a)
}

// overUDP takes the time of the answer from the kernel: this process has a flood to send, too.
func (p *pod) overUDP(a asked, query []byte) error {
	conn, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(p.target))
	if err != nil {
		return err
	}
	raw, err := conn.SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1) })
	}
	if err != nil {
		_ = conn.Close()
		return err
	}
	a.at = time.Now()
	if _, err := conn.Write(query); err != nil {
		_ = conn.Close()
		return err
	}
	p.waiting.Go(func() {
		defer conn.Close()
		buffer, oob := make([]byte, dns.MinMsgSize), make([]byte, 128)
		_ = conn.SetReadDeadline(a.at.Add(patience))
		n, oobn, _, _, err := conn.ReadMsgUDPAddrPort(buffer, oob)
		if err != nil {
			n = 0
		}
		p.note(a, buffer[:n], arrival(oob[:oobn]).Sub(a.at.Round(0)))
	})
	return nil
}

// arrival is when the kernel got a packet, now if it does not say (SO_TIMESTAMPNS, socket(7)).
func arrival(oob []byte) time.Time {
	messages, err := syscall.ParseSocketControlMessage(oob)
	if err == nil {
		for _, m := range messages {
			if m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SO_TIMESTAMPNS && len(m.Data) >= 16 {
				return time.Unix(int64(binary.NativeEndian.Uint64(m.Data)), int64(binary.NativeEndian.Uint64(m.Data[8:])))
			}
		}
	}
	return time.Now().Round(0)
}

func (p *pod) overTCP(a asked, query []byte) error {
	fd, err := lab.OpenSocket(lab.TCP, false)
	if err != nil {
		return err
	}
	a.at = time.Now()
	p.waiting.Go(func() {
		response, _ := lab.Exchange(context.Background(), fd, lab.TCP, 0, p.target, query, patience)
		p.note(a, response, time.Since(a.at))
	})
	return nil
}

// percentile of the latencies; 0 without one.
func percentile(latencies []time.Duration, percent int) time.Duration {
	if len(latencies) == 0 {
		return 0
	}
	slices.Sort(latencies)
	return latencies[(len(latencies)-1)*percent/100]
}
