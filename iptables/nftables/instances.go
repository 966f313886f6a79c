package nftables

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/internal/nfnl"
	"github.com/trackless-dns/trackless/iptables/owner"
)

// Instances reads the tables of all Trackless instances of a network
// namespace, sorted by name. It changes nothing and needs CAP_NET_ADMIN, as any
// reading of nf_tables does; a kernel without nf_tables is an
// [iptables.UnsupportedError].
func Instances(cfg Config) ([]iptables.Instance, error) {
	conn, err := nfnl.Dial(cfg)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	all, err := nfnl.Tables(conn)
	if err != nil {
		return nil, nfnl.Explain("list tables", err)
	}
	var out []iptables.Instance
	for _, t := range all {
		if !instanceTable(t) {
			continue
		}
		i, err := readInstance(conn, t)
		if err != nil {
			return nil, nfnl.Explain("read table inet "+t.Name, err)
		}
		out = append(out, i)
	}
	slices.SortFunc(out, func(a, b iptables.Instance) int { return cmp.Compare(a.Table, b.Table) })
	return out, nil
}

// RemoveStale deletes the tables of instances whose process is certainly gone and
// that the kernel has not removed, and returns their names.
func RemoveStale(cfg Config) (removed []string, err error) {
	conn, err := nfnl.Dial(cfg)
	if err != nil {
		return nil, err
	}
	all, err := tables(conn)
	if err := errors.Join(err, conn.Close()); err != nil {
		if nfnl.IsAbsent(err) {
			return nil, nil // a kernel without nf_tables has none
		}
		return nil, nfnl.Explain("list tables", err)
	}
	var errs []error
	for _, t := range all {
		if t.Owned || !t.known || !t.owner.Dead() {
			continue
		}
		if err := RemoveTable(cfg, t.Name); err != nil {
			errs = append(errs, err)
			continue
		}
		removed = append(removed, t.Name)
	}
	return removed, errors.Join(errs...)
}

// RemoveTable deletes the table of an instance that is no more. One that is not
// there is no error. The kernel refuses to delete an owned table of another
// process.
func RemoveTable(cfg Config, name string) error {
	if !strings.HasPrefix(name, owner.TablePrefix) {
		return fmt.Errorf("nftables: remove table inet %s: it is not a table of Trackless, whose names begin with %s", name, owner.TablePrefix)
	}
	conn, err := nfnl.Dial(cfg)
	if err != nil {
		return err
	}
	defer conn.Close()
	tx, err := nfnl.Encode(func(c *nfnl.Encoder) error {
		c.DelTable(&nftables.Table{Name: name, Family: nftables.TableFamilyINet})
		return nil
	})
	if err != nil {
		return err
	}
	if err := tx.Commit(conn); err != nil && !errors.Is(err, unix.ENOENT) {
		return nfnl.Explain("delete table inet "+name, err)
	}
	return nil
}

// instanceTable reports whether the table is that of an instance.
func instanceTable(t nfnl.Table) bool {
	return t.Family == nftables.TableFamilyINet && isInstance(t.Name)
}

func readInstance(conn *netlink.Conn, t nfnl.Table) (iptables.Instance, error) {
	i := iptables.Instance{Backend: "nftables", Table: t.Name, Owned: t.Flags&nfnl.TableFlagOwner != 0, Packets: iptables.Counters{}}
	who, _ := owner.Parse(t.Comment)
	i.Owner = who.Find()
	if i.Owned {
		// The kernel removes an owned table when its socket is closed, so
		// somebody holds that socket, whatever can be seen from here.
		i.Owner.Life = owner.Alive
	}
	for _, f := range nfnl.Families {
		listen, err := nfnl.Elements(conn, t.Family, t.Name, fmt.Sprintf("listen%d", f), nil)
		if err != nil {
			return i, err
		}
		live, err := nfnl.Elements(conn, t.Family, t.Name, fmt.Sprintf("live%d", f), nil)
		if err != nil {
			return i, err
		}
		for _, e := range listen {
			endpoint, ok := endpointOf(e.Key)
			if !ok {
				continue
			}
			i.Listen = append(i.Listen, endpoint)
			if slices.ContainsFunc(live, func(l nfnl.Element) bool { return covers(l.Key, endpoint) }) {
				i.Live = append(i.Live, endpoint)
			}
		}
	}
	slices.SortFunc(i.Listen, iptables.Endpoint.Compare)
	slices.SortFunc(i.Live, iptables.Endpoint.Compare)
	counts, err := nfnl.Counters(conn, t.Family, t.Name)
	if err != nil {
		return i, err
	}
	for _, k := range iptables.CounterKeys() {
		i.Packets[k] = counts[counterName(k)]
	}
	return i, nil
}

// endpointOf reads an element of a listen set: address, protocol and port,
// each padded to 32 bits.
func endpointOf(key []byte) (iptables.Endpoint, bool) {
	if len(key) != 12 && len(key) != 24 {
		return iptables.Endpoint{}, false
	}
	n := len(key) - 8
	addr, ok := netip.AddrFromSlice(key[:n])
	return iptables.Endpoint{Addr: addr, Proto: iptables.Proto(key[n]), Port: binary.BigEndian.Uint16(key[n+4:])}, ok
}

// covers reports whether an element of a live set, an address or an endpoint,
// makes the queries to the endpoint untracked.
func covers(key []byte, e iptables.Endpoint) bool {
	if addr, ok := netip.AddrFromSlice(key); ok {
		return addr == e.Addr
	}
	live, ok := endpointOf(key)
	return ok && live == e
}
