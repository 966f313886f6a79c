package nfnl

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// library is what google/nftables sends for the same values.
func library(t *testing.T, build func(*nftables.Conn) error) (sent []netlink.Message) {
	t.Helper()
	conn, err := nftables.New(nftables.WithTestDial(func(req []netlink.Message) ([]netlink.Message, error) {
		sent = append(sent, req...)
		return nil, io.EOF
	}))
	if err != nil {
		t.Fatal(err)
	}
	if err := build(conn); err != nil {
		t.Fatal(err)
	}
	_ = conn.Flush()             // it ends with io.EOF
	return sent[1 : len(sent)-1] // without the marks of the batch
}

// The values of google/nftables have the same meaning here as there.
func TestEncodesAsTheLibrary(t *testing.T) {
	table := &nftables.Table{Name: "ours", Family: nftables.TableFamilyINet}
	ipv4 := &nftables.Table{Name: "filter", Family: nftables.TableFamilyIPv4}
	accept := nftables.ChainPolicyAccept
	plain := &nftables.Chain{Table: table, Name: "plain"}
	base := &nftables.Chain{Table: table, Name: "base", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRaw, Policy: &accept}
	exprs := []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, &expr.Cmp{Register: 1, Data: []byte{17}}, &expr.Notrack{}, &expr.Verdict{Kind: expr.VerdictJump, Chain: "plain"}}
	tcp := []expr.Any{&expr.Match{Name: "tcp", Info: &xt.Tcp{DstPorts: [2]uint16{53, 53}}}, &expr.Verdict{Kind: expr.VerdictAccept}}
	udp := []expr.Any{&expr.Match{Name: "udp", Info: &xt.Udp{DstPorts: [2]uint16{53, 53}}}, &expr.Verdict{Kind: expr.VerdictAccept}}
	set := func(change func(*nftables.Set)) *nftables.Set {
		s := &nftables.Set{Table: table, Name: "set", KeyType: nftables.TypeIPAddr, ID: 1}
		change(s)
		return s
	}
	dynamic := set(func(s *nftables.Set) { s.Dynamic, s.HasTimeout, s.Size = true, true, 64 })
	interval := set(func(s *nftables.Set) { s.Interval = true })
	device := set(func(s *nftables.Set) { s.KeyType, s.KeyByteOrder = nftables.TypeIFName, binaryutil.NativeEndian })
	pair := set(func(s *nftables.Set) {
		s.KeyType = nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetService)
	})
	elements := []nftables.SetElement{{Key: []byte{10, 0, 0, 1}, Timeout: 1500 * time.Millisecond}, {Key: []byte{10, 0, 0, 9}, IntervalEnd: true}}

	for _, tc := range []struct {
		name string
		ours func(*Encoder) error
		them func(*nftables.Conn) error
	}{
		{"chain", func(e *Encoder) error { e.AddChain(plain); return nil }, func(c *nftables.Conn) error { c.AddChain(plain); return nil }},
		{"base chain", func(e *Encoder) error { e.AddChain(base); return nil }, func(c *nftables.Conn) error { c.AddChain(base); return nil }},
		{"delete a chain", func(e *Encoder) error { e.DelChain(plain); return nil }, func(c *nftables.Conn) error { c.DelChain(plain); return nil }},
		{"flush a chain", func(e *Encoder) error { e.FlushChain(plain); return nil }, func(c *nftables.Conn) error { c.FlushChain(plain); return nil }},
		{"add a rule", func(e *Encoder) error {
			e.AddRule(&nftables.Rule{Table: table, Chain: base, Exprs: exprs, UserData: []byte("note")})
			return nil
		}, func(c *nftables.Conn) error {
			c.AddRule(&nftables.Rule{Table: table, Chain: base, Exprs: exprs, UserData: []byte("note")})
			return nil
		}},
		{"insert a rule", func(e *Encoder) error {
			e.InsertRule(&nftables.Rule{Table: table, Chain: base, Exprs: exprs})
			return nil
		}, func(c *nftables.Conn) error {
			c.InsertRule(&nftables.Rule{Table: table, Chain: base, Exprs: exprs})
			return nil
		}},
		{"match of xt_tcpudp, tcp", func(e *Encoder) error {
			e.InsertRule(&nftables.Rule{Table: ipv4, Chain: plain, Exprs: tcp})
			return nil
		}, func(c *nftables.Conn) error {
			c.InsertRule(&nftables.Rule{Table: ipv4, Chain: plain, Exprs: tcp})
			return nil
		}},
		{"match of xt_tcpudp, udp", func(e *Encoder) error {
			e.InsertRule(&nftables.Rule{Table: ipv4, Chain: plain, Exprs: udp})
			return nil
		}, func(c *nftables.Conn) error {
			c.InsertRule(&nftables.Rule{Table: ipv4, Chain: plain, Exprs: udp})
			return nil
		}},
		{"delete a rule", func(e *Encoder) error {
			return e.DelRule(&nftables.Rule{Table: table, Chain: base, Handle: 7})
		}, func(c *nftables.Conn) error {
			return c.DelRule(&nftables.Rule{Table: table, Chain: base, Handle: 7})
		}},
		{"counter", func(e *Encoder) error { e.AddCounter(table, "hits"); return nil }, func(c *nftables.Conn) error {
			c.AddObj(&nftables.NamedObj{Table: table, Name: "hits", Type: nftables.ObjTypeCounter, Obj: &expr.Counter{}})
			return nil
		}},
		{"dynamic set", func(e *Encoder) error { return e.AddSet(dynamic) }, func(c *nftables.Conn) error { return c.AddSet(dynamic, nil) }},
		{"set of intervals", func(e *Encoder) error { return e.AddSet(interval) }, func(c *nftables.Conn) error { return c.AddSet(interval, nil) }},
		{"set of devices", func(e *Encoder) error { return e.AddSet(device) }, func(c *nftables.Conn) error { return c.AddSet(device, nil) }},
		{"set of addresses with ports", func(e *Encoder) error { return e.AddSet(pair) }, func(c *nftables.Conn) error { return c.AddSet(pair, nil) }},
		{"flush a set", func(e *Encoder) error { e.FlushSet(dynamic); return nil }, func(c *nftables.Conn) error { c.FlushSet(dynamic); return nil }},
		{"add elements", func(e *Encoder) error { return e.AddElements(dynamic, elements[:1]) }, func(c *nftables.Conn) error { return c.SetAddElements(dynamic, elements[:1]) }},
		{"add an interval", func(e *Encoder) error { return e.AddElements(interval, elements) }, func(c *nftables.Conn) error { return c.SetAddElements(interval, elements) }},
		{"delete elements", func(e *Encoder) error { return e.DelElements(dynamic, elements[:1]) }, func(c *nftables.Conn) error { return c.SetDeleteElements(dynamic, elements[:1]) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ours, err := Encode(tc.ours)
			if err != nil {
				t.Fatal(err)
			}
			theirs := library(t, tc.them)
			if len(ours.Messages) != len(theirs) {
				t.Fatalf("%d messages, the library sends %d", len(ours.Messages), len(theirs))
			}
			for i, want := range theirs {
				got := ours.Messages[i]
				// Echo asks for the whole message as the answer.
				if flags := want.Header.Flags&^netlink.Echo | netlink.Acknowledge; got.Header.Flags != flags || got.Header.Type != want.Header.Type {
					t.Errorf("header %v %v, the library sends %v %v", got.Header.Type, got.Header.Flags, want.Header.Type, flags)
				}
				// The kernel ignores the flag nested in front of these 32 bits.
				for _, data := range []*[]byte{&got.Data, &want.Data} {
					*data = bytes.ReplaceAll(*data, []byte{8, 0, unix.NFTA_SET_ELEM_FLAGS, 0x80, 0, 0, 0, 1}, []byte{8, 0, unix.NFTA_SET_ELEM_FLAGS, 0, 0, 0, 0, 1})
				}
				if !bytes.Equal(got.Data, want.Data) {
					t.Errorf("\ngot  % x\nwant % x", got.Data, want.Data)
				}
			}
		})
	}
}

// Without a handle, the kernel deletes all rules of the chain.
func TestDelRuleNeedsAHandle(t *testing.T) {
	table := &nftables.Table{Name: "ours", Family: nftables.TableFamilyINet}
	tx, err := Encode(func(e *Encoder) error {
		return e.DelRule(&nftables.Rule{Table: table, Chain: &nftables.Chain{Name: "base"}})
	})
	if err == nil || len(tx.Messages) != 0 {
		t.Errorf("%d messages, error %v", len(tx.Messages), err)
	}
}

// An error of a call that returns none is the transaction's.
func TestEncodeKeepsTheFirstError(t *testing.T) {
	table := &nftables.Table{Name: strings.Repeat("x", 1<<16), Family: nftables.TableFamilyINet}
	if tx, err := Encode(func(e *Encoder) error { e.DelTable(table); return nil }); err == nil || len(tx.Messages) != 0 {
		t.Errorf("%d messages, error %v", len(tx.Messages), err)
	}
}
