// Package sysctl reads and writes the settings of connection tracking: their
// values, what sets them at boot, the limits that they give the table, and the
// memory that it takes.
package sysctl

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/trackless-dns/trackless/conntrack"
)

// A Setting is one knob of connection tracking: a sysctl below net.netfilter,
// or the size of the hash.
type Setting struct {
	// Name is the sysctl's full name, such as net.netfilter.nf_conntrack_max.
	Name  string `json:"name"`
	Value uint64 `json:"value"`
	// Default is what the kernel chooses by itself; nil if that depends on the
	// kernel's version or could not be computed.
	Default *uint64 `json:"default,omitempty"`
	Unit    Unit    `json:"unit"`
	Meaning string  `json:"meaning"`
	// Files are the places that set it at boot, in the order in which
	// systemd-sysctl(8) reads them: the last one wins. The option hashsize of
	// the module counts for nf_conntrack_buckets.
	Files []SettingFile `json:"files,omitempty"`
	// KubeProxy is the field of KubeProxyConfiguration that sets it when
	// kube-proxy starts, whatever the files say.
	KubeProxy string `json:"kube_proxy,omitempty"`
}

// Unit says what a setting counts.
type Unit string

// The units of settings.
const (
	UnitEntries Unit = "entries"
	UnitBuckets Unit = "buckets"
	UnitSeconds Unit = "seconds"
	UnitSwitch  Unit = "switch"
	UnitBytes   Unit = "bytes"
	UnitNumber  Unit = "number"
)

// A SettingFile is a line of configuration.
type SettingFile struct {
	Path  string `json:"path"`
	Line  int    `json:"line"`
	Value string `json:"value"`
}

type knownSetting struct {
	name      string
	def       int64 // -1: computed or unknown
	unit      Unit
	meaning   string
	kubeProxy string
}

// knownSettings follows Documentation/networking/nf_conntrack-sysctl.rst and
// the timeout tables in net/netfilter/nf_conntrack_proto_*.c of Linux 6.18.
var knownSettings = []knownSetting{
	{"nf_conntrack_max", -1, UnitEntries, "entries a namespace may have; beyond it entries that are not assured are evicted, then packets of new flows are dropped; 0 is no limit", "conntrack.maxPerCore, conntrack.min"},
	{"nf_conntrack_buckets", -1, UnitBuckets, "size of the hash that all namespaces share; with fewer buckets than entries every packet's lookup walks a list", "(raised to nf_conntrack_max/4 with the limit)"},
	{"nf_conntrack_expect_max", -1, UnitEntries, "expectations of application helpers", ""},
	{"nf_conntrack_tcp_timeout_established", 432000, UnitSeconds, "idle time after which an established TCP connection is forgotten; its next packet is then INVALID, or with tcp_loose a new flow without NAT", "conntrack.tcpEstablishedTimeout (24h if not set)"},
	{"nf_conntrack_tcp_timeout_time_wait", 120, UnitSeconds, "how long a closed TCP connection stays in the table", ""},
	{"nf_conntrack_tcp_timeout_close_wait", 60, UnitSeconds, "one side has closed, the other has not", "conntrack.tcpCloseWaitTimeout (1h if not set)"},
	{"nf_conntrack_tcp_timeout_fin_wait", 120, UnitSeconds, "the first FIN was seen, its acknowledgement was not", ""},
	{"nf_conntrack_tcp_timeout_last_ack", 30, UnitSeconds, "both FINs were seen, the last acknowledgement was not", ""},
	{"nf_conntrack_tcp_timeout_close", 10, UnitSeconds, "after a reset", ""},
	{"nf_conntrack_tcp_timeout_syn_sent", 120, UnitSeconds, "a SYN without an answer", ""},
	{"nf_conntrack_tcp_timeout_syn_recv", 60, UnitSeconds, "a SYN and its answer, handshake not complete", ""},
	{"nf_conntrack_tcp_timeout_max_retrans", 300, UnitSeconds, "after tcp_max_retrans unanswered retransmissions", ""},
	{"nf_conntrack_tcp_timeout_unacknowledged", 300, UnitSeconds, "data was sent and is not acknowledged", ""},
	{"nf_conntrack_tcp_max_retrans", 3, UnitNumber, "retransmissions without an answer before the shorter timeout applies", ""},
	{"nf_conntrack_tcp_loose", 1, UnitSwitch, "take up connections seen only from the middle", ""},
	{"nf_conntrack_tcp_be_liberal", 0, UnitSwitch, "call only resets outside the window INVALID, not every packet there", "conntrack.tcpBeLiberal"},
	{"nf_conntrack_tcp_ignore_invalid_rst", 0, UnitSwitch, "do not call resets outside the window INVALID", ""},
	{"nf_conntrack_udp_timeout", 30, UnitSeconds, "a UDP flow without replies, or in its first two seconds: a DNS query", "conntrack.udpTimeout"},
	{"nf_conntrack_udp_timeout_stream", 120, UnitSeconds, "a UDP flow with packets both ways beyond its first two seconds: a client that reuses its port", "conntrack.udpStreamTimeout"},
	{"nf_conntrack_icmp_timeout", 30, UnitSeconds, "an ICMP request", ""},
	{"nf_conntrack_icmpv6_timeout", 30, UnitSeconds, "an ICMPv6 request", ""},
	{"nf_conntrack_gre_timeout", 30, UnitSeconds, "a GRE tunnel with packets one way", ""},
	{"nf_conntrack_gre_timeout_stream", 180, UnitSeconds, "a GRE tunnel with packets both ways", ""},
	{"nf_conntrack_generic_timeout", 600, UnitSeconds, "every other protocol", ""},
	{"nf_conntrack_sctp_timeout_closed", 10, UnitSeconds, "SCTP: association closed", ""},
	{"nf_conntrack_sctp_timeout_cookie_wait", 3, UnitSeconds, "SCTP: INIT seen", ""},
	{"nf_conntrack_sctp_timeout_cookie_echoed", 3, UnitSeconds, "SCTP: COOKIE-ECHO seen", ""},
	{"nf_conntrack_sctp_timeout_established", 210, UnitSeconds, "SCTP: association established", ""},
	{"nf_conntrack_sctp_timeout_shutdown_sent", 3, UnitSeconds, "SCTP: SHUTDOWN seen in the original direction", ""},
	{"nf_conntrack_sctp_timeout_shutdown_recd", 3, UnitSeconds, "SCTP: SHUTDOWN seen in the reply direction", ""},
	{"nf_conntrack_sctp_timeout_shutdown_ack_sent", 3, UnitSeconds, "SCTP: SHUTDOWN-ACK seen", ""},
	{"nf_conntrack_sctp_timeout_heartbeat_sent", 30, UnitSeconds, "SCTP: heartbeat on a secondary path", ""},
	{"nf_conntrack_frag6_timeout", 60, UnitSeconds, "an IPv6 fragment waiting for its others", ""},
	{"nf_conntrack_frag6_high_thresh", 4194304, UnitBytes, "memory for IPv6 fragments that wait", ""},
	{"nf_conntrack_acct", 0, UnitSwitch, "count packets and bytes of each flow, for flows that start later (32 bytes each)", ""},
	{"nf_conntrack_timestamp", 0, UnitSwitch, "keep the start time of each flow, for flows that start later (16 bytes each)", ""},
	{"nf_conntrack_events", -1, UnitSwitch, "send events to listeners: 0 never, 1 always, 2 for flows made while someone listens", ""},
	{"nf_conntrack_checksum", 1, UnitSwitch, "call packets with bad checksums INVALID", ""},
	{"nf_conntrack_log_invalid", 0, UnitNumber, "log INVALID packets of this protocol number, 255 for all", ""},
}

// ReadSettings reads every setting that this kernel has, below root ("/" if
// empty): values from root/proc, files from root/etc, root/run and root/usr/lib.
// Without connection tracking the error satisfies errors.Is(err, conntrack.ErrUnavailable).
func ReadSettings(root string) ([]Setting, error) {
	if root == "" {
		root = "/"
	}
	proc := filepath.Join(root, "proc")
	if _, err := readSysctl(proc, "nf_conntrack_max"); err != nil {
		return nil, err
	}
	files := sysctlFiles(root)
	settings := make([]Setting, 0, len(knownSettings))
	for _, k := range knownSettings {
		v, err := readSysctl(proc, k.name)
		if errors.Is(err, conntrack.ErrUnavailable) {
			continue // of another kernel version
		}
		if err != nil {
			return nil, err
		}
		s := Setting{Name: "net.netfilter." + k.name, Value: v, Unit: k.unit, Meaning: k.meaning, KubeProxy: k.kubeProxy}
		s.Files = files[s.Name]
		if k.name == "nf_conntrack_buckets" {
			// The module's option counts when it is loaded, the sysctl after it.
			s.Files = slices.Concat(HashsizeFiles(root), s.Files)
		}
		if k.def >= 0 {
			d := uint64(k.def)
			s.Default = &d
		}
		settings = append(settings, s)
	}
	addComputedDefaults(root, settings)
	return settings, nil
}

// SettingValue returns the value of the setting with the given name, without
// the prefix net.netfilter.; ok is false if it is not in the list.
func SettingValue(settings []Setting, name string) (v uint64, ok bool) {
	for i := range settings {
		if settings[i].Name == "net.netfilter."+name {
			return settings[i].Value, true
		}
	}
	return 0, false
}

// addComputedDefaults fills in what the kernel derives from the size of memory
// (nf_conntrack_init_start, Linux 5.15 and later) and of the hash
// (nf_conntrack_expect_init).
func addComputedDefaults(root string, settings []Setting) {
	memory, ok := memTotal(root)
	buckets, haveBuckets := SettingValue(settings, "nf_conntrack_buckets")
	for i := range settings {
		var d uint64
		switch strings.TrimPrefix(settings[i].Name, "net.netfilter.") {
		case "nf_conntrack_buckets", "nf_conntrack_max":
			if !ok {
				continue
			}
			d = defaultBuckets(memory)
		case "nf_conntrack_expect_max":
			if !haveBuckets {
				continue
			}
			d = max(1, buckets/256) * 4
		default:
			continue
		}
		settings[i].Default = &d
	}
}

// defaultBuckets returns the hash size for a machine with so many bytes of memory.
func defaultBuckets(memory uint64) uint64 {
	const gib = 1 << 30
	switch {
	case memory > 4*gib:
		return 262144
	case memory > gib:
		return 65536
	}
	return max(1024, memory/16384/bucketBytes)
}

// memTotal reads MemTotal of root/proc/meminfo, in bytes.
func memTotal(root string) (uint64, bool) {
	b, err := os.ReadFile(filepath.Join(root, "proc/meminfo"))
	if err != nil {
		return 0, false
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) >= 2 && f[0] == "MemTotal:" {
			kb, err := strconv.ParseUint(f[1], 10, 64)
			return kb * 1024, err == nil
		}
	}
	return 0, false
}

// sysctlFiles returns for each sysctl the lines that set it at boot, in the
// order in which systemd-sysctl(8) applies them: files sorted by name whatever
// their directory, one in /etc hiding those of the same name in /run and
// /usr/lib.
func sysctlFiles(root string) map[string][]SettingFile {
	set := map[string][]SettingFile{}
	linked := false
	for _, path := range dropIns(root, "sysctl.d") {
		readSysctlFile(root, path, set)
		linked = linked || filepath.Base(path) == "99-sysctl.conf"
	}
	// Debian links it as 99-sysctl.conf; sysctl --system reads it last.
	if !linked {
		readSysctlFile(root, filepath.Join(root, "etc/sysctl.conf"), set)
	}
	return set
}

// dropIns returns the files *.conf of the directories of a name, in the order in
// which they are read: by their own names, whatever their directory, one in /etc
// hiding those of the same name in /run, /usr/local/lib and /usr/lib.
func dropIns(root, name string) []string {
	byName := map[string]string{}
	for _, dir := range []string{"usr/lib", "usr/local/lib", "run", "etc"} {
		entries, err := os.ReadDir(filepath.Join(root, dir, name))
		if err != nil {
			continue
		}
		for _, e := range entries {
			if strings.HasSuffix(e.Name(), ".conf") {
				byName[e.Name()] = filepath.Join(root, dir, name, e.Name())
			}
		}
	}
	paths := make([]string, 0, len(byName))
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		paths = append(paths, byName[name])
	}
	return paths
}

// HashsizeFiles finds the lines of modprobe.d(5) that give the module
// nf_conntrack its option hashsize; the last one wins.
func HashsizeFiles(root string) []SettingFile {
	var files []SettingFile
	for _, path := range dropIns(root, "modprobe.d") {
		b, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		n := 0
		for line := range strings.Lines(string(b)) {
			n++
			f := strings.Fields(line)
			if len(f) < 3 || f[0] != "options" || strings.ReplaceAll(f[1], "-", "_") != "nf_conntrack" {
				continue
			}
			for _, option := range f[2:] {
				if v, ok := strings.CutPrefix(option, "hashsize="); ok {
					files = append(files, SettingFile{Path: shownPath(root, path), Line: n, Value: v})
				}
			}
		}
	}
	return files
}

// shownPath is a path below root as the host has it.
func shownPath(root, path string) string {
	if rel, err := filepath.Rel(root, path); err == nil {
		return "/" + rel
	}
	return path
}

// readSysctlFile adds the assignments in one file (sysctl.d(5)).
func readSysctlFile(root, path string, set map[string][]SettingFile) {
	b, err := os.ReadFile(path)
	if err != nil {
		return // absent, or not for us to read
	}
	shown := shownPath(root, path)
	n := 0
	for line := range strings.Lines(string(b)) {
		n++
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' || line[0] == ';' {
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		if !ok {
			continue
		}
		key = sysctlName(key)
		set[key] = append(set[key], SettingFile{Path: shown, Line: n, Value: strings.TrimSpace(value)})
	}
}

// aliases are further names of variables that the kernel has under two
// (net/netfilter/nf_conntrack_standalone.c): the line read last wins, whatever
// it calls the variable.
var aliases = map[string]string{"net.nf_conntrack_max": "net.netfilter.nf_conntrack_max"}

// sysctlName returns the name that a line of sysctl.d(5) assigns to, as
// Setting.Name has it: slashes may stand for dots.
func sysctlName(key string) string {
	key = strings.ReplaceAll(strings.TrimPrefix(strings.TrimSpace(key), "-"), "/", ".")
	if name, ok := aliases[key]; ok {
		return name
	}
	return key
}

// WriteSetting sets a sysctl below root/proc. name is its full name.
func WriteSetting(root, name, value string) error {
	path := filepath.Join(root, "proc/sys", strings.ReplaceAll(name, ".", "/"))
	err := os.WriteFile(path, []byte(value+"\n"), 0o644)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("conntrack: set %s: %w (only root on the host may; in a container /proc/sys is read-only)", name, err)
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("conntrack: set %s: %w; load the module nf_conntrack, or use a kernel that has this setting", name, conntrack.ErrUnavailable)
	case err != nil:
		return fmt.Errorf("conntrack: set %s to %s: %w", name, value, err)
	}
	return nil
}
