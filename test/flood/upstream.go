package main

import (
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/lab"
)

// The kinds of upstreams during a flood.
const (
	dead     = "dead"     // takes queries and answers none
	slow     = "slow"     // answers after 200 ms
	closed   = "closed"   // nobody listens: port unreachable
	refusing = "refusing" // answers REFUSED at once
)

func kinds() []string { return []string{dead, slow, closed, refusing} }

const slowness = 200 * time.Millisecond

// upstream stands in kube-dns's place.
type upstream struct {
	conn    net.PacketConn
	running sync.WaitGroup
}

// openUpstream takes the place of a kube-dns that has ended.
func openUpstream(pod *lab.Pod, kind string) (*upstream, error) {
	u := &upstream{}
	if kind == closed {
		return u, nil
	}
	at := net.UDPAddrFromAddrPort(netip.AddrPortFrom(pod.Addrs[0], 53))
	err := pod.Do(func() (err error) {
		u.conn, err = net.ListenUDP("udp", at)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("stand in for kube-dns: %w", err)
	}
	u.running.Go(func() { u.serve(kind) })
	return u, nil
}

func (u *upstream) close() error {
	if u.conn == nil {
		return nil
	}
	err := u.conn.Close()
	u.running.Wait()
	return err
}

func (u *upstream) serve(kind string) {
	type reply struct {
		due     time.Time
		message []byte
		to      net.Addr
	}
	replies := make(chan reply, 1<<16)
	defer close(replies)
	u.running.Go(func() {
		for r := range replies {
			time.Sleep(time.Until(r.due))
			_, _ = u.conn.WriteTo(r.message, r.to)
		}
	})
	buffer := make([]byte, dns.MinMsgSize)
	for {
		n, from, err := u.conn.ReadFrom(buffer)
		if err != nil {
			return // closed
		}
		if kind == dead || n < 12 {
			continue
		}
		// The header of RFC 1035 section 4.1.1: a response, with an RCODE.
		message := append([]byte(nil), buffer[:n]...)
		message[2] |= 0x80
		due := time.Now()
		switch kind {
		case slow:
			message[3] = dns.RcodeNameError
			due = due.Add(slowness)
		case refusing:
			message[3] = dns.RcodeRefused
		}
		select {
		case replies <- reply{due, message, from}:
		default: // more than can wait
		}
	}
}
