package conntrack

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// ReadStats reads the counters of every CPU from root/net/stat/nf_conntrack,
// for which no privilege is needed. Many kernels are built without the file
// (CONFIG_NF_CONNTRACK_PROCFS); the error then satisfies
// errors.Is(err, ErrUnavailable), and only Conn.Stats can tell.
//
// Columns are found by their titles: two of them changed their meaning in
// Linux 5.10 and 5.15 and got new ones.
func ReadStats(root string) ([]CPUStats, error) {
	path := filepath.Join(procRoot(root), "net/stat/nf_conntrack")
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("conntrack: read %s: %w (not built into this kernel, or connection tracking is not loaded)", path, ErrUnavailable)
	}
	if err != nil {
		return nil, fmt.Errorf("conntrack: %w", err)
	}
	var titles []string
	var stats []CPUStats
	for line := range strings.Lines(string(b)) {
		fields := strings.Fields(line)
		if titles == nil {
			titles = fields
			continue
		}
		s, err := parseStatsLine(titles, fields)
		if err != nil {
			return nil, fmt.Errorf("conntrack: read %s: %w", path, err)
		}
		s.CPU = len(stats)
		stats = append(stats, s)
	}
	return stats, nil
}

func parseStatsLine(titles, fields []string) (CPUStats, error) {
	if len(fields) != len(titles) {
		return CPUStats{}, fmt.Errorf("a line has %d columns under %d titles", len(fields), len(titles))
	}
	var s CPUStats
	columns := map[string]*uint64{
		"searched": &s.Searched, "clashres": &s.ClashResolve, "found": &s.Found, "new": &s.New,
		"invalid": &s.Invalid, "ignore": &s.Ignore, "delete": &s.Delete, "delete_list": &s.DeleteList,
		"chainlength": &s.ChainTooLong, "insert": &s.Insert, "insert_failed": &s.InsertFailed,
		"drop": &s.Drop, "early_drop": &s.EarlyDrop, "icmp_error": &s.Error, "search_restart": &s.SearchRestart,
	}
	for i, title := range titles {
		to := columns[title]
		if to == nil {
			continue // entries, which every line repeats, and expectations
		}
		v, err := strconv.ParseUint(fields[i], 16, 64)
		if err != nil {
			return CPUStats{}, fmt.Errorf("column %s: %w", title, err)
		}
		*to = v
	}
	return s, nil
}

// A Counter is one kernel counter with its meaning, for display.
type Counter struct {
	Name    string `json:"name"`
	Value   uint64 `json:"value"`
	Meaning string `json:"meaning"`
	// Loss says that every count is a packet or an entry lost.
	Loss bool `json:"loss"`
}

// Counters returns the counters that today's kernels keep, in the order of
// their importance to somebody who misses packets.
func (s *CPUStats) Counters() []Counter {
	return []Counter{
		{"drop", s.Drop, "packets dropped because no entry could be made or inserted: the table was full, memory was short, or the insertion failed, which counts as insert_failed, too", true},
		{"insert_failed", s.InsertFailed, "packets dropped because another entry with the same tuple was inserted first: a race of two packets; counts as drop, too", true},
		{"early_drop", s.EarlyDrop, "entries that were not assured, evicted to make room in a full table", true},
		{"chain_toolong", s.ChainTooLong, "packets dropped because their hash bucket was full", true},
		{"invalid", s.Invalid, "packets that belong to no flow: after a timeout, out of the window, or malformed", false},
		{"error", s.Error, "packets with broken headers or ICMP errors without a flow", false},
		{"clash_resolve", s.ClashResolve, "insertion races that were settled without loss", false},
		{"search_restart", s.SearchRestart, "lookups begun again because the hash changed under them", false},
		{"found", s.Found, "packets that found their flow on the slow path", false},
		{"insert", s.Insert, "entries made by requests, not by packets", false},
	}
}
