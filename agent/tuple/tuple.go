// Package tuple returns client, server and protocol of a query, as in conntrack's tuple.
package tuple

import (
	"encoding/binary"
	"net"
	"net/netip"
	"reflect"
	"sync"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/agent/sockets"
)

// Of returns client, server and protocol of a query as in conntrack's tuple; zero values
// for kinds of addresses other than UDP and TCP.
func Of(w dns.ResponseWriter) (client, server netip.AddrPort, proto uint8) {
	switch remote := w.RemoteAddr().(type) {
	case *net.UDPAddr:
		local, ok := w.LocalAddr().(*net.UDPAddr)
		if !ok {
			return
		}
		return sockets.Unmap(remote.AddrPort()), sockets.Unmap(local.AddrPort()), unix.IPPROTO_UDP
	case *net.TCPAddr:
		local, ok := w.LocalAddr().(*net.TCPAddr)
		if !ok {
			return
		}
		return sockets.Unmap(remote.AddrPort()), sockets.Unmap(local.AddrPort()), unix.IPPROTO_TCP
	}
	return
}

// A socket on the wildcard address does not know to which address a query was sent.
// miekg/dns asks the kernel for it (IP_PKTINFO, IPV6_RECVPKTINFO), so that the answer has
// it as its source. It keeps the address in unexported fields, so we read them by
// reflection. A DecorateReader would see the address, but CoreDNS sets none.

// WithDestination gives the writer of a query over UDP the address to which the query was
// sent. Other writers are returned as they are.
func WithDestination(w dns.ResponseWriter) dns.ResponseWriter {
	local, ok := w.LocalAddr().(*net.UDPAddr)
	if !ok || !local.IP.IsUnspecified() {
		return w
	}
	to, ok := destinationOf(w)
	if !ok {
		return w
	}
	return &addressedWriter{w, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, uint16(local.Port)))}
}

type addressedWriter struct {
	dns.ResponseWriter
	local *net.UDPAddr
}

// LocalAddr implements dns.ResponseWriter.
func (w *addressedWriter) LocalAddr() net.Addr { return w.local }

// destinationOf returns the address to which a query over UDP was sent. It unwraps the
// writers that plugins put around the server's.
func destinationOf(w dns.ResponseWriter) (netip.Addr, bool) {
	for v := reflect.ValueOf(w); v.Kind() == reflect.Pointer && !v.IsNil(); {
		fields := fieldsOf(v.Type())
		switch {
		case fields.session >= 0:
			session := v.Elem().Field(fields.session)
			if session.IsNil() {
				return netip.Addr{}, false
			}
			return packetDestination(session.Elem().Field(fields.control).Bytes())
		case fields.inner >= 0:
			v = v.Elem().Field(fields.inner).Elem()
		default:
			return netip.Addr{}, false
		}
	}
	return netip.Addr{}, false
}

// writerFields are indexes of fields, -1 for a missing field: the wrapped writer, or
// udpSession of dns.response and the field context of dns.SessionUDP in it.
type writerFields struct{ inner, session, control int }

var knownFields sync.Map // writerFields, by the type of the writer

func fieldsOf(t reflect.Type) writerFields {
	known, ok := knownFields.Load(t)
	if !ok {
		known, _ = knownFields.LoadOrStore(t, findFields(t.Elem()))
	}
	return known.(writerFields)
}

func findFields(t reflect.Type) writerFields {
	f := writerFields{-1, -1, -1}
	if t.Kind() != reflect.Struct {
		return f
	}
	if inner, ok := t.FieldByName("ResponseWriter"); ok && len(inner.Index) == 1 && inner.Type.Kind() == reflect.Interface {
		f.inner = inner.Index[0]
	}
	session, ok := t.FieldByName("udpSession")
	if !ok || len(session.Index) != 1 || session.Type != reflect.TypeFor[*dns.SessionUDP]() {
		return f
	}
	control, ok := session.Type.Elem().FieldByName("context")
	if ok && control.Type == reflect.TypeFor[[]byte]() {
		f.session, f.control = session.Index[0], control.Index[0]
	}
	return f
}

// packetDestination reads the destination address of a packet from its control
// messages (ip(7), ipv6(7)).
func packetDestination(control []byte) (netip.Addr, bool) {
	for len(control) >= unix.SizeofCmsghdr {
		header, data, rest, err := unix.ParseOneSocketControlMessage(control)
		if err != nil {
			return netip.Addr{}, false
		}
		switch {
		case header.Level == unix.IPPROTO_IPV6 && header.Type == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
			a := netip.AddrFrom16([16]byte(data)).Unmap()
			if a.IsLinkLocalUnicast() && a.Is6() {
				a = a.WithZone(zoneName(binary.NativeEndian.Uint32(data[16:])))
			}
			return a, true
		case header.Level == unix.IPPROTO_IP && header.Type == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
			// struct in_pktinfo: the device, the source address for answers, and the
			// address in the header.
			return netip.AddrFrom4([4]byte(data[8:])), true
		}
		control = rest
	}
	return netip.Addr{}, false
}

// zoneName returns the zone of a link-local address as package net writes it.
func zoneName(index uint32) string {
	device, err := net.InterfaceByIndex(int(index))
	if err != nil {
		return ""
	}
	return device.Name
}
