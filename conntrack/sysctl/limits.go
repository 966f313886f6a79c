package sysctl

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/trackless-dns/trackless/conntrack"
)

// Limits are the size of the table and how full it is, from the sysctls
// net.netfilter.nf_conntrack_* of the calling thread's network namespace.
type Limits struct {
	// Count is the number of entries in this namespace, expired ones that
	// nobody has collected yet included.
	Count uint64
	// Max is the number of entries at which new flows are dropped
	// (nf_conntrack_max), 0 where there is no limit. Every namespace has a count of its own, and the one
	// limit of the initial namespace applies to each.
	Max uint64
	// Buckets is the size of the hash table that all namespaces share.
	Buckets uint64
}

// ReadLimits reads the limits below procRoot ("/proc" if empty). Where
// connection tracking is not loaded the error satisfies
// errors.Is(err, conntrack.ErrUnavailable). No privileges are needed.
func ReadLimits(procRoot string) (Limits, error) {
	var l Limits
	for _, s := range []struct {
		name string
		to   *uint64
	}{
		{"nf_conntrack_count", &l.Count},
		{"nf_conntrack_max", &l.Max},
		{"nf_conntrack_buckets", &l.Buckets},
	} {
		v, err := readSysctl(procRoot, s.name)
		if err != nil {
			return Limits{}, err
		}
		*s.to = v
	}
	return l, nil
}

// readSysctl reads one number below net.netfilter.
func readSysctl(root, name string) (uint64, error) {
	root = cmp.Or(root, "/proc")
	path := filepath.Join(root, "sys/net/netfilter", name)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, fmt.Errorf("conntrack: read net.netfilter.%s: %w (connection tracking is not loaded, or %s is not proc)", name, conntrack.ErrUnavailable, root)
	}
	if err != nil {
		return 0, fmt.Errorf("conntrack: read net.netfilter.%s: %w", name, err)
	}
	v, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("conntrack: read net.netfilter.%s: %w", name, err)
	}
	return v, nil
}
