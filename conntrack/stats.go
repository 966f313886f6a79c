package conntrack

import (
	"encoding/binary"

	"github.com/mdlayher/netlink"

	"github.com/trackless-dns/trackless/conntrack/internal/nfnetlink"
)

// CPUStats are the counters of one CPU since the namespace was made
// (struct ip_conntrack_stat). The kernel keeps 32 bits of each, so they wrap;
// in a sum over CPUs they do not.
type CPUStats struct {
	// CPU is the number of the CPU, -1 in a sum.
	CPU int

	// Found counts packets of known flows that were looked up beyond the fast
	// path; Invalid packets that no state machine could place; Insert entries
	// inserted by requests (not by packets).
	Found, Invalid, Insert uint64
	// InsertFailed counts packets dropped because another packet of the same
	// flow, or of a flow with the same translated tuple, was inserted first
	// (nf_ct_resolve_clash). Before Linux 5.10 some of them were not dropped.
	InsertFailed uint64
	// Drop counts packets dropped because no entry could be made: the table
	// was full and nothing could be evicted, or memory was short; and since
	// Linux 4.7 those of InsertFailed that were dropped.
	Drop uint64
	// EarlyDrop counts entries evicted, not assured ones, to make room in a full table.
	EarlyDrop uint64
	// Error counts packets with broken headers or checksums.
	Error uint64
	// SearchRestart counts lookups begun again because the hash was being resized.
	SearchRestart uint64
	// ClashResolve counts insertion races that were resolved without loss
	// (since Linux 5.10).
	ClashResolve uint64
	// ChainTooLong counts packets dropped because their hash bucket was full
	// (since Linux 5.15).
	ChainTooLong uint64

	// Searched, New, Ignore, Delete and DeleteList are counted by older
	// kernels only (until 4.9 to 5.9) and 0 since.
	Searched, New, Ignore, Delete, DeleteList uint64
}

// Add adds the counters of o to s.
func (s *CPUStats) Add(o *CPUStats) {
	s.Found += o.Found
	s.Invalid += o.Invalid
	s.Insert += o.Insert
	s.InsertFailed += o.InsertFailed
	s.Drop += o.Drop
	s.EarlyDrop += o.EarlyDrop
	s.Error += o.Error
	s.SearchRestart += o.SearchRestart
	s.ClashResolve += o.ClashResolve
	s.ChainTooLong += o.ChainTooLong
	s.Searched += o.Searched
	s.New += o.New
	s.Ignore += o.Ignore
	s.Delete += o.Delete
	s.DeleteList += o.DeleteList
}

// Lost is the number of packets and entries that were lost to the table. A
// packet whose entry could not be inserted counts once, although it is in
// InsertFailed and in Drop.
func (s *CPUStats) Lost() uint64 {
	return max(s.Drop, s.InsertFailed) + s.EarlyDrop + s.ChainTooLong
}

// Sum returns the sum over all CPUs, with CPU -1.
func Sum(stats []CPUStats) CPUStats {
	sum := CPUStats{CPU: -1}
	for i := range stats {
		sum.Add(&stats[i])
	}
	return sum
}

// Stats returns the counters of every CPU, over ctnetlink
// (IPCTNL_MSG_CT_GET_STATS_CPU, since Linux 3.6).
func (c *Conn) Stats() ([]CPUStats, error) {
	req, err := request(msgGetStatsCPU, FamilyAny, netlink.Dump)
	if err != nil {
		return nil, opError("statistics", err)
	}
	var stats []CPUStats
	err = c.short(req, func(m nfnetlink.Message) error {
		if len(m.Data) < nfnetlink.GenHeaderLen {
			return nfnetlink.ErrMalformed
		}
		s, err := decodeStats(m.Data)
		stats = append(stats, s)
		return err
	})
	if err != nil {
		return nil, opError("statistics", noSubsystem(err))
	}
	return stats, nil
}

// decodeStats decodes a message with struct nfgenmsg, whose resource ID is the
// CPU, and the attributes of enum ctattr_stats_cpu.
func decodeStats(b []byte) (CPUStats, error) {
	s := CPUStats{CPU: int(binary.BigEndian.Uint16(b[2:]))}
	counters := [...]*uint64{
		1: &s.Searched, 2: &s.Found, 3: &s.New, 4: &s.Invalid, 5: &s.Ignore, 6: &s.Delete,
		7: &s.DeleteList, 8: &s.Insert, 9: &s.InsertFailed, 10: &s.Drop, 11: &s.EarlyDrop,
		12: &s.Error, 13: &s.SearchRestart, 14: &s.ClashResolve, 15: &s.ChainTooLong,
	}
	a := attrsOf(b[nfnetlink.GenHeaderLen:])
	for typ, v, ok := a.Next(); ok; typ, v, ok = a.Next() {
		if int(typ) < len(counters) && counters[typ] != nil {
			*counters[typ] = uint64(a.BE32(v))
		}
	}
	if a.Bad {
		return s, nfnetlink.ErrMalformed
	}
	return s, nil
}
