package nft

import (
	"encoding/binary"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// TablePrefix starts the name of every table of ours; a random instance id
// follows. Two instances on one node never share a table, so that the end of
// one never takes the rules of the other with it.
const TablePrefix = "trackless-"

// From include/uapi/linux/netfilter/nf_tables.h.
const (
	attrTableUserdata    = 6 // NFTA_TABLE_USERDATA, since Linux 5.10
	flagTableOwner       = 2 // NFT_TABLE_F_OWNER, since Linux 5.12
	udataTableCommentTLV = 0 // NFTNL_UDATA_TABLE_COMMENT of libnftnl: nft shows it as the comment
)

// owner says who made a table. It stands in the table's user data, so that a
// table left by a dead process can be told from one in use.
type owner struct {
	pid    int    // process id, in its own pid namespace
	start  uint64 // start of the process, in clock ticks after boot
	pidns  uint64 // inode of its pid namespace
	format int    // version of what the table holds
}

// tableFormat changes when the contents of a table do.
const tableFormat = 1

func self() owner {
	o := owner{pid: os.Getpid(), format: tableFormat}
	o.start, _ = processStart(o.pid)
	o.pidns = pidNamespace()
	return o
}

func (o owner) String() string {
	return fmt.Sprintf("trackless %d pid %d start %d pidns %d", o.format, o.pid, o.start, o.pidns)
}

func parseOwner(comment string) (owner, bool) {
	var o owner
	n, err := fmt.Sscanf(comment, "trackless %d pid %d start %d pidns %d", &o.format, &o.pid, &o.start, &o.pidns)
	return o, err == nil && n == 4
}

// dead reports whether the process is certainly gone. One in another pid
// namespace cannot be judged from here and counts as living.
func (o owner) dead() bool {
	if o.pidns == 0 || o.pidns != pidNamespace() {
		return false
	}
	start, err := processStart(o.pid)
	return os.IsNotExist(err) || err == nil && start != o.start
}

// processStart reads field 22 of /proc/PID/stat (proc_pid_stat(5)).
func processStart(pid int) (uint64, error) {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, err
	}
	// The command name in parentheses may hold spaces; fields count from
	// behind its end, where the state is field 3.
	_, rest, _ := strings.Cut(string(stat), ") ")
	fields := strings.Fields(rest)
	if len(fields) < 20 {
		return 0, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(fields)+2)
	}
	return strconv.ParseUint(fields[19], 10, 64)
}

func pidNamespace() uint64 {
	link, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		return 0
	}
	ino, err := strconv.ParseUint(strings.Trim(link, "pid:[]"), 10, 64)
	if err != nil {
		return 0
	}
	return ino
}

// newTable queues the creation of our table in front of a transaction. It must
// not exist yet.
func (tx *transaction) newTable(name string, o owner, flags uint32) error {
	comment := userdata.AppendString(nil, udataTableCommentTLV, o.String())
	return tx.prepend(unix.NFT_MSG_NEWTABLE, netlink.Create|netlink.Excl, []netlink.Attribute{
		{Type: unix.NFTA_TABLE_NAME, Data: append([]byte(name), 0)},
		{Type: unix.NFTA_TABLE_FLAGS, Data: binary.BigEndian.AppendUint32(nil, flags)},
		{Type: attrTableUserdata, Data: comment},
	})
}

// Table is a table of a Trackless instance on this host.
type Table struct {
	Name  string
	Owned bool // bound to the life of a process by the kernel

	owner owner
	known bool // owner could be read
}

// Tables lists the tables of all Trackless instances.
func tables(conn *netlink.Conn) ([]Table, error) {
	replies, err := conn.Execute(netlink.Message{
		Header: netlink.Header{Type: nftMessage(unix.NFT_MSG_GETTABLE), Flags: netlink.Request | netlink.Dump},
		Data:   nfgenmsg(nftables.TableFamilyINet, 0),
	})
	if err != nil {
		return nil, err
	}
	var out []Table
	for _, m := range replies {
		if len(m.Data) < 4 || m.Header.Type != nftMessage(unix.NFT_MSG_NEWTABLE) {
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
				t.Owned = ad.Uint32()&flagTableOwner != 0
			case attrTableUserdata:
				if comment, ok := userdata.GetString(ad.Bytes(), udataTableCommentTLV); ok {
					t.owner, t.known = parseOwner(comment)
				}
			}
		}
		if err := ad.Err(); err != nil {
			return nil, err
		}
		// The failover table belongs to no instance.
		if strings.HasPrefix(t.Name, TablePrefix) && t.Name != FailoverTable {
			out = append(out, t)
		}
	}
	return out, nil
}
