package nftables

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/mdlayher/netlink"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/internal/nfnl"
)

// A Watcher announces changes of rules, links, addresses and routes. The death
// of a table's owner is not among them: the kernel says nothing then.
type Watcher struct {
	// Changes has room for one announcement; those that find it full add
	// nothing to it.
	Changes chan iptables.Change

	conns []*netlink.Conn
	done  sync.WaitGroup
}

// routeGroups are the multicast groups of rtnetlink(7) that concern the listen
// addresses and the uplinks. With a rule routes of another table are used, and a
// nexthop object takes its routes to another device, of which these say nothing.
var routeGroups = []uint32{
	unix.RTNLGRP_LINK,
	unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
	unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE,
	unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE,
	unix.RTNLGRP_NEXTHOP,
}

// Watch starts to watch until Close.
func Watch(cfg Config) (*Watcher, error) {
	w := &Watcher{Changes: make(chan iptables.Change, 1)}
	route, err := netlink.Dial(unix.NETLINK_ROUTE, &netlink.Config{NetNS: cfg.NetNS})
	if err != nil {
		return nil, fmt.Errorf("watch links and addresses: %w", err)
	}
	w.conns = append(w.conns, route)
	for _, g := range routeGroups {
		err := route.JoinGroup(g)
		if g == unix.RTNLGRP_NEXTHOP && errors.Is(err, unix.EINVAL) {
			continue // Linux before 5.3 has no such objects
		}
		if err != nil {
			w.Close()
			return nil, fmt.Errorf("watch links and addresses: %w", err)
		}
	}
	rules, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: cfg.NetNS})
	if err != nil {
		w.Close()
		return nil, fmt.Errorf("watch rules: %w", err)
	}
	w.conns = append(w.conns, rules)
	// A foreign transaction of 100,000 rules announces each of them; only the
	// new generation at its end matters here.
	if err := rules.SetBPF(onlyType(nfnl.MessageType(unix.NFT_MSG_NEWGEN))); err != nil {
		w.Close()
		return nil, fmt.Errorf("watch rules: %w", err)
	}
	if err := rules.JoinGroup(unix.NFNLGRP_NFTABLES); err != nil {
		w.Close()
		return nil, nfnl.Explain("watch rules", err)
	}
	w.done.Go(func() { w.receive(route, func(netlink.Message) iptables.Change { return iptables.Change{} }) })
	w.done.Go(func() { w.receive(rules, generationBy) })
	return w, nil
}

// onlyType lets through netlink messages of one type, which stands in host
// byte order behind the length.
func onlyType(t netlink.HeaderType) []bpf.RawInstruction {
	inHostOrder := binary.NativeEndian.AppendUint16(nil, uint16(t))
	program, err := bpf.Assemble([]bpf.Instruction{
		bpf.LoadAbsolute{Off: 4, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(binary.BigEndian.Uint16(inHostOrder)), SkipFalse: 1},
		bpf.RetConstant{Val: 1 << 16},
		bpf.RetConstant{Val: 0},
	})
	if err != nil {
		panic(err) // a constant program
	}
	return program
}

// generationBy reads who made a new generation of the ruleset.
func generationBy(m netlink.Message) iptables.Change {
	if len(m.Data) < 4 {
		return iptables.Change{}
	}
	ad, err := netlink.NewAttributeDecoder(m.Data[4:])
	if err != nil {
		return iptables.Change{}
	}
	ad.ByteOrder = binary.BigEndian
	var pid uint32
	var comm string
	for ad.Next() {
		switch ad.Type() {
		case unix.NFTA_GEN_PROC_PID:
			pid = ad.Uint32()
		case unix.NFTA_GEN_PROC_NAME:
			comm = ad.String()
		}
	}
	if pid == uint32(os.Getpid()) {
		return iptables.Change{Own: true}
	}
	return iptables.Change{Who: fmt.Sprintf("%s (pid %d)", comm, pid)}
}

func (w *Watcher) receive(conn *netlink.Conn, change func(netlink.Message) iptables.Change) {
	for {
		msgs, err := conn.Receive()
		if err != nil {
			if isOverrun(err) {
				w.announce(iptables.Change{})
				continue
			}
			return // closed
		}
		for _, m := range msgs {
			w.announce(change(m))
		}
	}
}

func (w *Watcher) announce(c iptables.Change) {
	if c.Own {
		return
	}
	select {
	case w.Changes <- c:
	default:
	}
}

// Close ends the watching.
func (w *Watcher) Close() {
	for _, c := range w.conns {
		_ = c.Close()
	}
	w.done.Wait()
}

// isOverrun reports that announcements were lost for want of buffer space.
func isOverrun(err error) bool { return errors.Is(err, unix.ENOBUFS) }
