package nftables

import (
	"encoding/binary"
	"strings"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/iptables/internal/nfnl"
	"github.com/trackless-dns/trackless/iptables/owner"
)

// tableFormat changes when the contents of a table do.
const tableFormat = 2

// Table is a table of a Trackless instance on this host.
type Table struct {
	Name  string
	Owned bool // bound to the life of a process by the kernel

	owner owner.Mark
	known bool // owner could be read
}

// isInstance reports whether a table is the one of an instance: the failover
// table belongs to none, and that for upstreams is a second one.
func isInstance(name string) bool {
	return strings.HasPrefix(name, owner.TablePrefix) && name != owner.FailoverTable && !strings.HasPrefix(name, owner.UpstreamPrefix)
}

// Tables lists the tables of all Trackless instances.
func tables(conn *netlink.Conn) ([]Table, error) {
	replies, err := nfnl.Ask(conn, netlink.Message{
		Header: netlink.Header{Type: nfnl.MessageType(unix.NFT_MSG_GETTABLE), Flags: netlink.Request | netlink.Dump},
		Data:   nfnl.Header(nftables.TableFamilyINet, 0),
	})
	if err != nil {
		return nil, err
	}
	var out []Table
	for _, m := range replies {
		if len(m.Data) < 4 || m.Header.Type != nfnl.MessageType(unix.NFT_MSG_NEWTABLE) {
			continue
		}
		ad, err := netlink.NewAttributeDecoder(m.Data[4:])
		if err != nil {
			return nil, err
		}
		ad.ByteOrder = binary.BigEndian
		var t Table
		for ad.Next() {
			switch ad.Type() {
			case unix.NFTA_TABLE_NAME:
				t.Name = ad.String()
			case unix.NFTA_TABLE_FLAGS:
				t.Owned = ad.Uint32()&nfnl.TableFlagOwner != 0
			case nfnl.TableUserdata:
				if comment, ok := nfnl.UserdataString(ad.Bytes(), nfnl.TableComment); ok {
					t.owner, t.known = owner.Parse(comment)
				}
			}
		}
		if err := ad.Err(); err != nil {
			return nil, err
		}
		if isInstance(t.Name) {
			out = append(out, t)
		}
	}
	return out, nil
}
