package attach

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/iptables/owner"
)

// Numbers of linux/pkt_sched.h and linux/pkt_cls.h.
const (
	clsactHandle = 0xffff0000
	clsactParent = 0xfffffff1 // TC_H_CLSACT
	ingress      = 0xfffffff2 // TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS)
	egress       = 0xfffffff3

	attrKind    = 1  // TCA_KIND
	attrOptions = 2  // TCA_OPTIONS
	attrFD      = 6  // TCA_BPF_FD
	attrName    = 7  // TCA_BPF_NAME
	attrFlags   = 8  // TCA_BPF_FLAGS
	attrID      = 11 // TCA_BPF_ID
	actDirect   = 1  // TCA_BPF_FLAG_ACT_DIRECT

	tcmsgLen = 20
)

const (
	// priority is that of our filters. Filters of lower priorities run before.
	priority = 7
	// filterName is the name of our filters, by which instances know each other's.
	filterName = "trackless-answer"
)

// clsact attaches with a filter of the qdisc clsact (Linux 4.5). The filter stays when
// the process is killed, and has to be removed.
type clsact struct {
	program *ebpf.Program
	handle  uint32 // of our filters: another instance has another
	filters *filterLists
}

func newClsact(p *ebpf.Program) *clsact {
	return &clsact{program: p, handle: rand.Uint32() | 1, filters: newFilterLists()}
}

func (*clsact) name() string { return "clsact" }

func (c *clsact) attach(index int) (func() error, error) {
	defer c.filters.forget(index)
	conn, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	ours, err := addQdisc(conn, index)
	if err != nil {
		return nil, fmt.Errorf("add the qdisc clsact: %w", err)
	}
	options, err := encode(func(ae *netlink.AttributeEncoder) {
		ae.Uint32(attrFD, uint32(c.program.FD()))
		ae.String(attrName, filterName)
		ae.Uint32(attrFlags, actDirect)
	})
	if err == nil {
		err = change(conn, unix.RTM_NEWTFILTER, netlink.Create|netlink.Excl, tcmsg(index, c.handle, ingress, filterInfo(priority)), "bpf", options)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("add a filter: %w", err), removeQdisc(conn, index, ours))
	}
	return func() error { return c.remove(index, ours) }, nil
}

// filterInfo has a priority and the protocol ETH_P_ALL, which is in network order.
func filterInfo(priority uint32) uint32 { return priority<<16 | 0x0300 }

func (c *clsact) remove(index int, ours bool) error {
	defer c.filters.forget(index)
	conn, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return err
	}
	defer conn.Close()
	err = change(conn, unix.RTM_DELTFILTER, 0, tcmsg(index, c.handle, ingress, filterInfo(priority)), "bpf", nil)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL) {
		err = nil // with the device or its qdisc it is gone already
	}
	return errors.Join(err, removeQdisc(conn, index, ours))
}

// addQdisc adds the qdisc, and reports whether it is ours to remove: there was none, or an
// instance before us has left it.
func addQdisc(conn *netlink.Conn, index int) (ours bool, err error) {
	err = change(conn, unix.RTM_NEWQDISC, netlink.Create|netlink.Excl, tcmsg(index, clsactHandle, clsactParent, 0), "clsact", nil)
	if errors.Is(err, unix.EEXIST) {
		return onlyOurs(conn, index)
	}
	return err == nil, err
}

// onlyOurs reports whether there are filters, and all are of instances of this program.
func onlyOurs(conn *netlink.Conn, index int) (bool, error) {
	n := 0
	for _, parent := range []uint32{ingress, egress} {
		all, err := filters(conn, index, parent)
		if err != nil {
			return false, err
		}
		if slices.ContainsFunc(all, func(f filter) bool { return !f.isOurs() }) {
			return false, nil
		}
		n += len(all)
	}
	return n > 0, nil
}

// removeQdisc removes a qdisc that is ours, unless others have put filters there.
func removeQdisc(conn *netlink.Conn, index int, ours bool) error {
	if !ours {
		return nil
	}
	for _, parent := range []uint32{ingress, egress} {
		others, err := filters(conn, index, parent)
		if err != nil || len(others) > 0 {
			return ignoreGone(err)
		}
	}
	return ignoreGone(change(conn, unix.RTM_DELQDISC, 0, tcmsg(index, clsactHandle, clsactParent, 0), "clsact", nil))
}

func ignoreGone(err error) error {
	if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL) {
		return nil
	}
	return err
}

func (c *clsact) look(index int) (n neighbours, err error) {
	all, err := c.filters.of(index)
	if err != nil {
		return n, err
	}
	for _, f := range all {
		n.attached = n.attached || f.isOurs() && f.handle == c.handle
		n.rival = n.rival || f.isOurs() && f.handle != c.handle
		if !f.isOurs() && f.priority < priority {
			n.before = f.String()
		}
	}
	n.behind = firstForeign(all, priority)
	return n, nil
}

func (c *clsact) forget(index int) { c.filters.forget(index) }

func (c *clsact) succeed(index int, onlyDead bool) error {
	all, err := c.filters.of(index)
	if err != nil {
		return ignoreGone(err)
	}
	others := slices.DeleteFunc(slices.Clone(all), func(f filter) bool {
		return !f.isOurs() || f.handle == c.handle || onlyDead && owner.IsProgram(uint32(f.program))
	})
	if len(others) == 0 {
		return nil
	}
	defer c.filters.forget(index)
	conn, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return err
	}
	defer conn.Close()
	for _, f := range others {
		if err := ignoreGone(change(conn, unix.RTM_DELTFILTER, 0, tcmsg(index, f.handle, ingress, filterInfo(f.priority)), "bpf", nil)); err != nil {
			return err
		}
	}
	return nil
}

// tcmsg is struct tcmsg of linux/rtnetlink.h.
func tcmsg(index int, handle, parent, info uint32) []byte {
	b := make([]byte, 4, tcmsgLen)
	for _, n := range []uint32{uint32(index), handle, parent, info} {
		b = binary.NativeEndian.AppendUint32(b, n)
	}
	return b
}

func change(conn *netlink.Conn, kind netlink.HeaderType, flags netlink.HeaderFlags, head []byte, name string, options []byte) error {
	attributes, err := encode(func(ae *netlink.AttributeEncoder) {
		ae.String(attrKind, name)
		if options != nil {
			ae.Bytes(unix.NLA_F_NESTED|attrOptions, options)
		}
	})
	if err != nil {
		return err
	}
	_, err = conn.Execute(netlink.Message{
		Header: netlink.Header{Type: kind, Flags: netlink.Request | netlink.Acknowledge | flags},
		Data:   append(head, attributes...),
	})
	return err
}

func encode(fill func(*netlink.AttributeEncoder)) ([]byte, error) {
	ae := netlink.NewAttributeEncoder()
	fill(ae)
	return ae.Encode()
}
