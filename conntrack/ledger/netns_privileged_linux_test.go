//go:build privileged

package ledger

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/jsimonetti/rtnetlink/v2"
	"github.com/jsimonetti/rtnetlink/v2/driver"
	"github.com/mdlayher/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// node is a server's network namespace with connection tracking at work, and a
// client's at the other end of a veth pair.
type node struct {
	server, client     netns.NsHandle
	server4, server6   netip.Addr
	conntrack, created *netlink.Conn
}

// newNode skips the test if the machine lacks a feature. With
// TRACKLESS_REQUIRE_PRIVILEGED=1 the test fails instead.
func newNode(t *testing.T, sysctls map[string]string) *node {
	t.Helper()
	lacking := func(what string, err error) {
		t.Helper()
		if os.Getenv("TRACKLESS_REQUIRE_PRIVILEGED") == "1" {
			t.Fatalf("%s: %v", what, err)
		}
		t.Skipf("%s: %v", what, err)
	}
	must := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	n := &node{
		server4: netip.MustParseAddr("10.96.0.10"),
		server6: netip.MustParseAddr("fd00:10:96::a"),
	}
	for _, ns := range []*netns.NsHandle{&n.server, &n.client} {
		var err error
		if *ns, err = newNamespace(); err != nil {
			lacking("network namespaces (needs CAP_SYS_ADMIN)", err)
		}
		t.Cleanup(func() { _ = ns.Close() })
	}

	if err := inNamespace(n.server, track); err != nil {
		lacking("connection tracking with nf_tables", err)
	}
	must("sysctls", inNamespace(n.server, func() error {
		for name, value := range sysctls {
			if err := os.WriteFile("/proc/sys/net/netfilter/"+name, []byte(value), 0o644); err != nil {
				return err
			}
		}
		return nil
	}))
	must("links", n.connect())

	for _, conn := range []**netlink.Conn{&n.conntrack, &n.created} {
		must("ctnetlink", inNamespace(n.server, func() (err error) {
			*conn, err = netlink.Dial(unix.NETLINK_NETFILTER, nil)
			return err
		}))
		t.Cleanup(func() { _ = (*conn).Close() })
	}
	must("ctnetlink", n.created.SetReadBuffer(4<<20))
	must("ctnetlink", n.created.JoinGroup(unix.NFNLGRP_CONNTRACK_NEW))
	return n
}

// track makes the kernel track connections in the namespace of the thread, by a rule that
// matches their state.
func track() error {
	nft, err := nftables.New()
	if err != nil {
		return err
	}
	table := nft.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "track"})
	chain := nft.AddChain(&nftables.Chain{
		Name: "input", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityFilter,
	})
	none := binaryutil.NativeEndian.PutUint32(0)
	nft.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{
			SourceRegister: 1, DestRegister: 1, Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(expr.CtStateBitNEW), Xor: none,
		},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: none},
		&expr.Counter{},
	}})
	return nft.Flush()
}

// connect lays the veth pair and gives addresses to both ends and to lo.
func (n *node) connect() error {
	const serverIndex, clientIndex = 100, 101
	var server, client *rtnetlink.Conn
	for ns, conn := range map[netns.NsHandle]**rtnetlink.Conn{n.server: &server, n.client: &client} {
		err := inNamespace(ns, func() (err error) {
			*conn, err = rtnetlink.Dial(nil)
			return err
		})
		if err != nil {
			return err
		}
		defer func() { _ = (*conn).Close() }()
	}

	err := server.Link.New(&rtnetlink.LinkMessage{
		Index: serverIndex,
		Attributes: &rtnetlink.LinkAttributes{
			Name: "server",
			Info: &rtnetlink.LinkInfo{Kind: "veth", Data: &driver.Veth{PeerInfo: &rtnetlink.LinkMessage{
				Index:      clientIndex,
				Attributes: &rtnetlink.LinkAttributes{Name: "client", NetNS: rtnetlink.NetNSForFD(uint32(n.client))},
			}}},
		},
	})
	if err != nil {
		return fmt.Errorf("veth: %w", err)
	}
	links := []struct {
		conn   *rtnetlink.Conn
		index  uint32
		v4, v6 netip.Addr
	}{
		{server, 1, netip.Addr{}, netip.Addr{}}, // lo
		{server, serverIndex, n.server4, n.server6},
		{client, clientIndex, n.server4.Next(), n.server6.Next()},
	}
	for _, link := range links {
		if err := link.conn.Link.Set(&rtnetlink.LinkMessage{Index: link.index, Flags: unix.IFF_UP, Change: unix.IFF_UP}); err != nil {
			return fmt.Errorf("link up: %w", err)
		}
	}
	// An IPv6 address is tentative until the link is ready, even without DAD.
	for _, link := range links[1:] {
		if err := waitReady(link.conn, link.index); err != nil {
			return err
		}
		for family, addr := range map[uint8]netip.Addr{unix.AF_INET: link.v4, unix.AF_INET6: link.v6} {
			err := link.conn.Address.New(&rtnetlink.AddressMessage{
				Family: family, PrefixLength: uint8(addr.BitLen() - 8), Index: link.index,
				Attributes: &rtnetlink.AddressAttributes{Address: addr.AsSlice(), Local: addr.AsSlice(), Flags: unix.IFA_F_NODAD},
			})
			if err != nil {
				return fmt.Errorf("address %v: %w", addr, err)
			}
		}
	}
	return nil
}

func waitReady(conn *rtnetlink.Conn, index uint32) error {
	poll := time.NewTicker(5 * time.Millisecond)
	defer poll.Stop()
	for deadline := time.Now().Add(time.Minute); ; <-poll.C {
		link, err := conn.Link.Get(index)
		switch {
		case err != nil:
			return fmt.Errorf("link %d: %w", index, err)
		case link.Attributes.OperationalState == rtnetlink.OperStateUp:
			return nil
		case time.Now().After(deadline):
			return fmt.Errorf("link %d is not up after a minute: operational state %d", index, link.Attributes.OperationalState)
		}
	}
}

// countCreated counts the entries that the kernel makes, until it is
// stopped; only then may the result be read.
func (n *node) countCreated() (created *Counts, stop func() error) {
	created = new(Counts)
	var wg sync.WaitGroup
	var failed error
	wg.Go(func() {
		for {
			messages, err := n.created.Receive()
			if errors.Is(err, os.ErrDeadlineExceeded) {
				return
			}
			if err != nil {
				failed = fmt.Errorf("conntrack events: %w", err)
				return
			}
			for _, m := range messages {
				if err := created.add(m); err != nil {
					failed = err
				}
			}
		}
	})
	return created, func() error {
		if err := n.created.SetReadDeadline(time.Now()); err != nil {
			return err
		}
		wg.Wait()
		return failed
	}
}

// dial connects a socket of the namespace to an address.
func dial(ns netns.NsHandle, network string, to netip.AddrPort) (conn net.Conn, err error) {
	err = inNamespace(ns, func() (err error) {
		conn, err = new(net.Dialer).DialContext(context.Background(), network, to.String())
		return err
	})
	return conn, err
}

func newNamespace() (ns netns.NsHandle, err error) {
	err = onOwnThread(func() (err error) {
		ns, err = netns.New()
		return err
	})
	return ns, err
}

func inNamespace(ns netns.NsHandle, do func() error) error {
	return onOwnThread(func() error {
		if err := netns.Set(ns); err != nil {
			return err
		}
		return do()
	})
}

// onOwnThread runs do on a thread that ends with it: no other goroutine runs in the
// namespace that do has entered.
func onOwnThread(do func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- do()
	}()
	return <-done
}

// entries counts the entries that `conntrack -L` would list. The kernel's dump has no
// expired entries.
func (n *node) entries() (Counts, error) {
	const nlmsgConntrackGet = unix.NFNL_SUBSYS_CTNETLINK<<8 | 1 // IPCTNL_MSG_CT_GET
	replies, err := n.conntrack.Execute(netlink.Message{
		Header: netlink.Header{Type: nlmsgConntrackGet, Flags: netlink.Request | netlink.Dump},
		Data:   []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, 0},
	})
	if err != nil {
		return Counts{}, fmt.Errorf("dump of the conntrack table: %w", err)
	}
	var c Counts
	for _, m := range replies {
		if err := c.add(m); err != nil {
			return Counts{}, err
		}
	}
	return c, nil
}

// add counts the entry in a message, by struct nfgenmsg and the nested attributes
// CTA_TUPLE_ORIG, CTA_TUPLE_PROTO and CTA_PROTO_NUM of nfnetlink_conntrack.h.
func (c *Counts) add(m netlink.Message) error {
	const sizeofNfgenmsg, ctaTupleOrig, ctaTupleProto, ctaProtoNum = 4, 1, 2, 1
	if len(m.Data) < sizeofNfgenmsg {
		return fmt.Errorf("conntrack message of %d bytes", len(m.Data))
	}
	ad, err := netlink.NewAttributeDecoder(m.Data[sizeofNfgenmsg:])
	if err != nil {
		return err
	}
	var proto uint8
	for ad.Next() {
		if ad.Type() != ctaTupleOrig {
			continue
		}
		ad.Nested(func(tuple *netlink.AttributeDecoder) error {
			for tuple.Next() {
				if tuple.Type() != ctaTupleProto {
					continue
				}
				tuple.Nested(func(p *netlink.AttributeDecoder) error {
					for p.Next() {
						if p.Type() == ctaProtoNum {
							proto = p.Uint8()
						}
					}
					return nil
				})
			}
			return nil
		})
	}
	switch family := m.Data[0]; {
	case proto == unix.IPPROTO_UDP && family == unix.AF_INET:
		c.UDP4++
	case proto == unix.IPPROTO_UDP && family == unix.AF_INET6:
		c.UDP6++
	case proto == unix.IPPROTO_TCP && family == unix.AF_INET:
		c.TCP4++
	case proto == unix.IPPROTO_TCP && family == unix.AF_INET6:
		c.TCP6++
	}
	return ad.Err()
}
