package conntrack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/mdlayher/netlink"
	"github.com/ti-mo/netfilter"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/conntrack/internal/nfnetlink"
)

// Config says which table Dial opens. The zero Config, like a nil one, is the
// table of the calling thread's network namespace.
type Config struct {
	// NetNS is a file descriptor of a network namespace, 0 for the calling
	// thread's own. It is used during Dial only. Another namespace than one's
	// own needs CAP_SYS_ADMIN.
	NetNS int

	// ProcRoot is where proc is mounted, "/proc" if empty.
	ProcRoot string
}

// A Conn reads and changes the table of one network namespace, that which Dial
// was given, whatever thread its methods are called from.
//
// Its methods may be called concurrently. Dumps wait for each other; short
// requests (Count, Stats, Delete) do not wait for a dump, so a Dump's callback
// may call them, but must not start another Dump.
type Conn struct {
	proc string

	dumpMu  sync.Mutex
	dump    nfnetlink.Transport
	dumpBuf []byte
	decoder decoder
	entry   Entry

	requestMu  sync.Mutex
	request    nfnetlink.Transport
	requestBuf []byte
}

// Dial opens the connection tracking table. It succeeds without privileges;
// the first request then fails with an error for which
// errors.Is(err, os.ErrPermission) holds.
func Dial(cfg *Config) (*Conn, error) {
	if cfg == nil {
		cfg = &Config{}
	}
	dump, err := nfnetlink.Dial(cfg.NetNS)
	if err != nil {
		return nil, opError("open a netlink socket", err)
	}
	req, err := nfnetlink.Dial(cfg.NetNS)
	if err != nil {
		_ = dump.Close()
		return nil, opError("open a netlink socket", err)
	}
	return newConn(dump, req, cfg.ProcRoot), nil
}

func newConn(dump, req nfnetlink.Transport, proc string) *Conn {
	return &Conn{
		proc:       procRoot(proc),
		dump:       dump,
		dumpBuf:    make([]byte, nfnetlink.ReceiveBufferSize),
		request:    req,
		requestBuf: make([]byte, nfnetlink.ReceiveBufferSize),
	}
}

// Close closes the connection; calls under way fail.
func (c *Conn) Close() error {
	return errors.Join(c.dump.Close(), c.request.Close())
}

// Message types of the subsystem NFNL_SUBSYS_CTNETLINK (enum cntl_msg_types).
const (
	msgNew         = 0
	msgGet         = 1
	msgDelete      = 2
	msgGetStatsCPU = 4
	msgGetStats    = 5
)

// request builds a ctnetlink request.
func request(typ netfilter.MessageType, family Family, flags netlink.HeaderFlags, attributes ...netfilter.Attribute) (netlink.Message, error) {
	return netfilter.MarshalNetlink(netfilter.Header{
		SubsystemID: netfilter.NFSubsysCTNetlink,
		MessageType: typ,
		Family:      netfilter.ProtoFamily(family),
		Flags:       netlink.Request | flags,
	}, attributes)
}

// short makes a request that is answered in few messages.
func (c *Conn) short(req netlink.Message, handle func(nfnetlink.Message) error) error {
	c.requestMu.Lock()
	defer c.requestMu.Unlock()
	_, err := nfnetlink.Exchange(c.request, c.requestBuf, req, handle)
	return err
}

// Count returns the number of entries in the namespace and the limit that
// applies to it, from the kernel's own counters (IPCTNL_MSG_CT_GET_STATS). The
// number includes entries whose time is over and which nobody has collected
// yet: it can be a tenth above what a dump shows, and it is what the limit is
// compared with. The limit is 0 before Linux 4.18.
func (c *Conn) Count() (entries, limit uint32, err error) {
	const (
		ctaStatsGlobalEntries    = 1
		ctaStatsGlobalMaxEntries = 2 // since Linux 4.18
	)
	req, err := request(msgGetStats, FamilyAny, 0)
	if err != nil {
		return 0, 0, opError("count", err)
	}
	err = c.short(req, func(m nfnetlink.Message) error {
		if len(m.Data) < nfnetlink.GenHeaderLen {
			return nfnetlink.ErrMalformed
		}
		a := attrsOf(m.Data[nfnetlink.GenHeaderLen:])
		for typ, v, ok := a.Next(); ok; typ, v, ok = a.Next() {
			switch typ {
			case ctaStatsGlobalEntries:
				entries = a.BE32(v)
			case ctaStatsGlobalMaxEntries:
				limit = a.BE32(v)
			}
		}
		if a.Bad {
			return nfnetlink.ErrMalformed
		}
		return nil
	})
	return entries, limit, opError("count", noSubsystem(err))
}

// Get returns the entry of which t is the original or the reply tuple, without
// a dump. Without one the error satisfies errors.Is(err, ErrNotFound).
func (c *Conn) Get(t *Tuple) (Entry, error) {
	op := fmt.Sprintf("get %s %s -> %s", t.Proto, t.Source(), t.Destination())
	bare := *t
	bare.Zone = 0
	attributes := []netfilter.Attribute{tupleAttribute(ctaTupleOrig, &bare)}
	if t.Zone != 0 {
		attributes = append(attributes, netfilter.Attribute{Type: ctaZone, Data: binary.BigEndian.AppendUint16(nil, t.Zone)})
	}
	req, err := request(msgGet, t.Family(), 0, attributes...)
	if err != nil {
		return Entry{}, opError(op, err)
	}
	var e Entry
	err = c.short(req, func(m nfnetlink.Message) error {
		if len(m.Data) < nfnetlink.GenHeaderLen {
			return nfnetlink.ErrMalformed
		}
		var d decoder
		return d.entry(m.Data[nfnetlink.GenHeaderLen:], &e)
	})
	if errors.Is(err, unix.ENOENT) {
		err = ErrNotFound
	}
	return e, opError(op, err)
}

// Delete removes the entry from the table, by its original tuple, zone and ID:
// an entry that took its place meanwhile stays. It returns an error for which
// errors.Is(err, ErrNotFound) holds if it is gone already.
func (c *Conn) Delete(e *Entry) error {
	id := make([]netfilter.Attribute, 0, 2)
	if e.Has(FieldID) {
		id = append(id, netfilter.Attribute{Type: ctaID, Data: binary.BigEndian.AppendUint32(nil, e.ID)})
	}
	if e.Zone != 0 {
		id = append(id, netfilter.Attribute{Type: ctaZone, Data: binary.BigEndian.AppendUint16(nil, e.Zone)})
	}
	return c.delete(&e.Original, id...)
}

// DeleteTuple removes the entry with the given original tuple. Its zone is
// t.Zone, which is taken as the zone of both directions.
func (c *Conn) DeleteTuple(t *Tuple) error {
	bare := *t
	bare.Zone = 0
	if t.Zone == 0 {
		return c.delete(&bare)
	}
	return c.delete(&bare, netfilter.Attribute{Type: ctaZone, Data: binary.BigEndian.AppendUint16(nil, t.Zone)})
}

func (c *Conn) delete(t *Tuple, more ...netfilter.Attribute) error {
	op := fmt.Sprintf("delete %s %s -> %s", t.Proto, t.Source(), t.Destination())
	attributes := append([]netfilter.Attribute{tupleAttribute(ctaTupleOrig, t)}, more...)
	req, err := request(msgDelete, t.Family(), netlink.Acknowledge, attributes...)
	if err != nil {
		return opError(op, err)
	}
	err = c.short(req, nil)
	if errors.Is(err, unix.ENOENT) {
		err = ErrNotFound
	}
	return opError(op, err)
}

// tupleAttribute encodes a tuple as the kernel expects it of a request.
func tupleAttribute(typ uint16, t *Tuple) netfilter.Attribute {
	src, dst := uint16(ctaIPv4Src), uint16(ctaIPv4Dst)
	if t.Family() == FamilyIPv6 {
		src, dst = ctaIPv6Src, ctaIPv6Dst
	}
	proto := []netfilter.Attribute{{Type: ctaProtoNum, Data: []byte{byte(t.Proto)}}}
	switch {
	case t.Proto.HasPorts():
		proto = append(proto,
			netfilter.Attribute{Type: ctaProtoSrcPort, Data: binary.BigEndian.AppendUint16(nil, t.SrcPort)},
			netfilter.Attribute{Type: ctaProtoDstPort, Data: binary.BigEndian.AppendUint16(nil, t.DstPort)})
	case t.Proto.IsICMP():
		id, typ, code := uint16(ctaProtoICMPID), uint16(ctaProtoICMPType), uint16(ctaProtoICMPCode)
		if t.Proto == ICMPv6 {
			id, typ, code = ctaProtoICMPv6ID, ctaProtoICMPv6Type, ctaProtoICMPv6Code
		}
		proto = append(proto,
			netfilter.Attribute{Type: id, Data: binary.BigEndian.AppendUint16(nil, t.ICMPID)},
			netfilter.Attribute{Type: typ, Data: []byte{t.ICMPType}},
			netfilter.Attribute{Type: code, Data: []byte{t.ICMPCode}})
	}
	children := []netfilter.Attribute{
		{Type: ctaTupleIP, Nested: true, Children: []netfilter.Attribute{
			{Type: src, Data: t.Src.AsSlice()},
			{Type: dst, Data: t.Dst.AsSlice()},
		}},
		{Type: ctaTupleProto, Nested: true, Children: proto},
	}
	if t.Zone != 0 {
		children = append(children, netfilter.Attribute{Type: ctaTupleZone, Data: binary.BigEndian.AppendUint16(nil, t.Zone)})
	}
	return netfilter.Attribute{Type: typ, Nested: true, Children: children}
}

func procRoot(root string) string {
	if root == "" {
		return "/proc"
	}
	return root
}

// IsPermission reports whether err is the lack of CAP_NET_ADMIN.
func IsPermission(err error) bool { return errors.Is(err, os.ErrPermission) }
