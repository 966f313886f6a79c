package sysctl

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Memory is what the table costs the kernel.
type Memory struct {
	// EntryBytes is the size of one entry in the slab cache nf_conntrack,
	// with the slab's own waste.
	EntryBytes uint64 `json:"entry_bytes"`
	// ExtensionBytes is the area for NAT, counters, labels and helpers that
	// most entries have, from kmalloc and so in no statistic of its own.
	ExtensionBytes uint64 `json:"extension_bytes"`
	// Source is where EntryBytes comes from: "slabinfo", "sysfs", or
	// "typical" where neither may be read.
	Source string `json:"source"`
	// BucketBytes is the size of one bucket of the hash.
	BucketBytes uint64 `json:"bucket_bytes"`
}

const (
	bucketBytes = 8 // struct hlist_nulls_head on 64 bits

	// typicalEntryBytes is struct nf_conn on x86-64 with the usual options,
	// aligned to a cache line.
	typicalEntryBytes = 256
	// extensionBytes is NF_CT_EXT_PREALLOC, the smallest area that is allocated.
	extensionBytes = 128
)

// Table returns the bytes that so many entries and buckets take.
func (m Memory) Table(entries, buckets uint64) uint64 {
	return entries*(m.EntryBytes+m.ExtensionBytes) + buckets*m.BucketBytes
}

// ReadMemory reads the size of an entry below root ("/" if empty): from
// root/proc/slabinfo, which root alone may read, else from
// root/sys/kernel/slab, else a typical size is assumed.
func ReadMemory(root string) Memory {
	if root == "" {
		root = "/"
	}
	m := Memory{EntryBytes: typicalEntryBytes, ExtensionBytes: extensionBytes, Source: "typical", BucketBytes: bucketBytes}
	if n, ok := slabinfoEntry(root); ok {
		m.EntryBytes, m.Source = n, "slabinfo"
	} else if n, ok := sysfsEntry(root); ok {
		m.EntryBytes, m.Source = n, "sysfs"
	}
	return m
}

// slabinfoEntry reads slabinfo(5): name, active, total, object size, objects
// per slab, pages per slab. The cache may have a suffix for its namespace
// (before Linux 4.7).
func slabinfoEntry(root string) (uint64, bool) {
	b, err := os.ReadFile(filepath.Join(root, "proc/slabinfo"))
	if err != nil {
		return 0, false
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 6 || (f[0] != "nf_conntrack" && !strings.HasPrefix(f[0], "nf_conntrack_0x") && f[0] != "nf_conntrack_1") {
			continue
		}
		objects, err1 := strconv.ParseUint(f[4], 10, 64)
		pages, err2 := strconv.ParseUint(f[5], 10, 64)
		if err1 == nil && err2 == nil && objects > 0 {
			return pages * uint64(os.Getpagesize()) / objects, true
		}
	}
	return 0, false
}

func sysfsEntry(root string) (uint64, bool) {
	b, err := os.ReadFile(filepath.Join(root, "sys/kernel/slab/nf_conntrack/slab_size"))
	if err != nil {
		return 0, false
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
	return n, err == nil && n > 0
}
