// Package recorder takes the answers to queries that come over no network.
package recorder

import (
	"net"
	"net/netip"

	"github.com/miekg/dns"
)

// Recorder takes the answer to a query that came over no network.
type Recorder struct{ Answer *dns.Msg }

var noNetwork = net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 53))

// LocalAddr implements dns.ResponseWriter.
func (*Recorder) LocalAddr() net.Addr { return noNetwork }

// RemoteAddr implements dns.ResponseWriter.
func (*Recorder) RemoteAddr() net.Addr { return noNetwork }

// WriteMsg implements dns.ResponseWriter.
func (w *Recorder) WriteMsg(m *dns.Msg) error {
	w.Answer = m
	return nil
}

// Write implements dns.ResponseWriter.
func (w *Recorder) Write(b []byte) (int, error) {
	m := new(dns.Msg)
	if err := m.Unpack(b); err != nil {
		return 0, err
	}
	w.Answer = m
	return len(b), nil
}

// Close implements dns.ResponseWriter.
func (*Recorder) Close() error { return nil }

// TsigStatus implements dns.ResponseWriter.
func (*Recorder) TsigStatus() error { return nil }

// TsigTimersOnly implements dns.ResponseWriter.
func (*Recorder) TsigTimersOnly(bool) {}

// Hijack implements dns.ResponseWriter.
func (*Recorder) Hijack() {}
