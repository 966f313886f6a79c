package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/lab"
)

// The kinds of upstreams: what becomes of the queries of the flood. All other names are
// answered after usual.
const (
	fast     = "5ms"
	slow     = "200ms"
	dead     = "dead"     // takes queries and answers none
	closed   = "closed"   // nobody listens: port unreachable
	refusing = "refusing" // answers REFUSED at once
)

func kinds() []string { return []string{fast, slow, dead, closed, refusing} }

const usual = 5 * time.Millisecond

// floodPrefix begins the names of the flood.
const floodPrefix = "flood-"

// upstream stands in kube-dns's place.
type upstream struct {
	kind     string
	packets  net.PacketConn
	listener net.Listener
	running  sync.WaitGroup

	usual, flood chan reply

	mu    sync.Mutex
	conns []net.Conn
}

// reply is a response that is due at a time.
type reply struct {
	due  time.Time
	send func()
}

func openUpstream(pod *lab.Pod, kind string) (*upstream, error) {
	u := &upstream{kind: kind, usual: make(chan reply, 1<<16), flood: make(chan reply, 1<<16)}
	at := net.UDPAddrFromAddrPort(netip.AddrPortFrom(pod.Addrs[0], lab.DNSPort))
	err := pod.Do(func() (err error) {
		if u.packets, err = net.ListenUDP("udp", at); err != nil {
			return err
		}
		u.listener, err = net.Listen("tcp", at.String())
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("stand in for kube-dns: %w", err)
	}
	for _, replies := range []chan reply{u.usual, u.flood} {
		u.running.Go(func() {
			for r := range replies {
				time.Sleep(time.Until(r.due))
				r.send()
			}
		})
	}
	u.running.Go(u.serve)
	u.running.Go(u.accept)
	return u, nil
}

func (u *upstream) close() error {
	if u.packets == nil {
		return nil
	}
	u.mu.Lock()
	err := errors.Join(u.packets.Close(), u.listener.Close())
	for _, c := range u.conns {
		_ = c.Close()
	}
	u.mu.Unlock()
	close(u.usual)
	close(u.flood)
	u.running.Wait()
	u.packets = nil
	return err
}

func (u *upstream) serve() {
	packets := u.packets
	buffer := make([]byte, dns.MinMsgSize)
	for {
		n, from, err := packets.ReadFrom(buffer)
		if err != nil {
			return // closed
		}
		u.answer(buffer[:n], func(message []byte) { _, _ = packets.WriteTo(message, from) })
	}
}

func (u *upstream) accept() {
	for {
		conn, err := u.listener.Accept()
		if err != nil {
			return // closed
		}
		u.mu.Lock()
		u.conns = append(u.conns, conn)
		u.mu.Unlock()
		go func() {
			defer conn.Close()
			for {
				var length [2]byte
				if _, err := io.ReadFull(conn, length[:]); err != nil {
					return
				}
				query := make([]byte, binary.BigEndian.Uint16(length[:]))
				if _, err := io.ReadFull(conn, query); err != nil {
					return
				}
				u.answer(query, func(message []byte) {
					_, _ = conn.Write(slices.Concat(binary.BigEndian.AppendUint16(nil, uint16(len(message))), message))
				})
			}
		}()
	}
}

// answer answers a query when its answer is due.
func (u *upstream) answer(query []byte, send func([]byte)) {
	const header = 12
	if len(query) < header+1 {
		return
	}
	to, after, rcode := u.usual, usual, dns.RcodeSuccess
	if bytes.HasPrefix(query[header+1:], []byte(floodPrefix)) {
		to, rcode = u.flood, dns.RcodeNameError
		switch u.kind {
		case slow:
			after = 200 * time.Millisecond
		case refusing:
			after, rcode = 0, dns.RcodeRefused
		case dead:
			return
		}
	}
	message := responseTo(query, rcode)
	defer func() { _ = recover() }() // the channel is closed at the end
	select {
	case to <- reply{time.Now().Add(after), func() { send(message) }}:
	default: // more than can wait
	}
}

// responseTo makes the response to a query (RFC 1035 section 4.1.1): an address to each name
// that is not of the flood, from kube-dns as far as the lab can tell.
func responseTo(query []byte, rcode int) []byte {
	if rcode == dns.RcodeSuccess {
		m := new(dns.Msg)
		if m.Unpack(query) == nil && len(m.Question) == 1 {
			m.SetReply(m.Copy())
			m.Answer = []dns.RR{&dns.A{
				Hdr: dns.RR_Header{Name: m.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: lab.KubeDNSTTL},
				A:   net.IPv4(10, 0, 0, 1),
			}}
			if packed, err := m.Pack(); err == nil {
				return packed
			}
		}
	}
	message := bytes.Clone(query)
	message[2] |= 0x80
	message[3] = byte(rcode)
	return message
}
