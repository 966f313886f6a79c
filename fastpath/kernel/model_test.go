package kernel

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/fastpath"
	"github.com/trackless-dns/trackless/plugin/cache/wire"
)

// bridgeMAC is the address of the bridge behind the port on which frames are run.
var bridgeMAC = net.HardwareAddr{2, 0, 0, 0, 0, 1}

// A model says what the program does to a frame, from the documents of the
// protocols and with the cache's own code for the reply.
type model struct {
	groups  map[netip.AddrPort]uint8
	records map[string]*fastpath.Record // by listener and key
	sizes   [2]uint16                   // the largest size that may be advertised, by IP version
	now     time.Time
}

func (m *model) add(r *fastpath.Record) { m.records[recordKey(r.Listener, r.Key)] = r }

// answer returns the reply's frame, or nil where the frame passes unchanged. Sums
// are those of the query, with the query's error: zeroed in what is returned.
func (m *model) answer(frame []byte) []byte {
	if len(frame) < 14 || !bytes.Equal(frame[:6], bridgeMAC) && !bytes.Equal(frame[:6], make([]byte, 6)) {
		return nil // to others: the loopback device, for which frames are run, has the zero address
	}
	var ip, udp []byte
	var from, to netip.Addr
	switch binary.BigEndian.Uint16(frame[12:]) {
	case unix.ETH_P_IP:
		ip = frame[14:]
		if len(ip) < 20+8 || ip[0] != 0x45 || ip[9] != unix.IPPROTO_UDP || binary.BigEndian.Uint16(ip[6:])&^0x4000 != 0 {
			return nil
		}
		from, to = netip.AddrFrom4([4]byte(ip[12:])), netip.AddrFrom4([4]byte(ip[16:]))
		udp = ip[20:]
		if int(binary.BigEndian.Uint16(ip[2:])) != 20+int(binary.BigEndian.Uint16(udp[4:])) {
			return nil
		}
		ip = ip[:20]
	case unix.ETH_P_IPV6:
		ip = frame[14:]
		if len(ip) < 40+8 || ip[0]>>4 != 6 || ip[6] != unix.IPPROTO_UDP {
			return nil
		}
		from, to = netip.AddrFrom16([16]byte(ip[8:])), netip.AddrFrom16([16]byte(ip[24:]))
		udp = ip[40:]
		if binary.BigEndian.Uint16(ip[4:]) != binary.BigEndian.Uint16(udp[4:]) || binary.BigEndian.Uint16(udp[6:]) == 0 {
			return nil
		}
		ip = ip[:40]
	default:
		return nil
	}
	group, ok := m.groups[netip.AddrPortFrom(to, binary.BigEndian.Uint16(udp[2:]))]
	length := int(binary.BigEndian.Uint16(udp[4:]))
	if !ok || length < 8+12 || length > len(udp) {
		return nil
	}
	payload := m.reply(group, m.sizes[btoi(to.Is6())], udp[8:length])
	if payload == nil {
		return nil
	}
	out := bytes.Clone(frame[:14])
	copy(out, frame[6:12])
	copy(out[6:], frame[:6])
	head := bytes.Clone(ip)
	if len(ip) == 20 {
		binary.BigEndian.PutUint16(head[2:], uint16(28+len(payload)))
		clear(head[10:12])
		copy(head[12:], to.AsSlice())
		copy(head[16:], from.AsSlice())
	} else {
		binary.BigEndian.PutUint16(head[4:], uint16(8+len(payload)))
		copy(head[8:], to.AsSlice())
		copy(head[24:], from.AsSlice())
	}
	out = append(out, head...)
	out = append(out, udp[2], udp[3], udp[0], udp[1])
	out = binary.BigEndian.AppendUint16(out, uint16(8+len(payload)))
	return append(append(out, 0, 0), payload...)
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

func (m *model) reply(group uint8, size uint16, query []byte) []byte {
	var q wire.Query
	if q.Parse(query) != wire.Plain || !q.RD || q.CD {
		return nil
	}
	// Bits that a stub resolver leaves zero: AA, TC, RA, Z and the RCODE.
	if binary.BigEndian.Uint16(query[2:])&^0x120 != 0 {
		return nil
	}
	if q.EDNS && (query[len(query)-6] != 0 || query[len(query)-3] != 0) {
		return nil // an extended RCODE, or low EDNS flags
	}
	if q.EDNS && q.Size > size {
		return nil
	}
	r := m.records[recordKey(group, q.Key())]
	if r == nil || uint32(m.now.Sub(r.Stored)/time.Second) >= r.Serve || q.ReplyLen(&r.Answer) > int(q.Size) {
		return nil
	}
	out := make([]byte, 4096)
	return out[:q.Reply(out, query, &r.Answer, r.TTL-uint32(m.now.Sub(r.Stored)/time.Second))]
}

func recordKey(group uint8, key wire.Key) string { return string(append([]byte{group}, key...)) }
