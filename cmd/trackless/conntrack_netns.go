package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/cmd/trackless/cli"
	"github.com/trackless-dns/trackless/conntrack"
	"github.com/trackless-dns/trackless/conntrack/summary"
)

// A namespaceReport is one namespace of the host in the JSON of stats --netns all.
type namespaceReport struct {
	// Inode identifies the namespace, as in net:[4026531840].
	Inode uint64 `json:"inode"`
	// Path is a file that refers to it; Process the command of the first
	// process in it, if any; Pod the pod's UID from that process's cgroup.
	Path    string `json:"path"`
	Process string `json:"process,omitempty"`
	PID     int    `json:"pid,omitempty"`
	Pod     string `json:"pod_uid,omitempty"`

	Entries     uint64  `json:"entries"`
	Limit       uint64  `json:"limit"`
	FillPercent float64 `json:"fill_percent"`
	Selected    uint64  `json:"selected"`
	DNS         uint64  `json:"dns"`
	Unreplied   uint64  `json:"unreplied"`
	Error       string  `json:"error,omitempty"`
}

// statsOfAllNamespaces counts the table of every namespace that a process is in
// or that has a name.
func statsOfAllNamespaces(f conntrack.Filter, o statsOptions, out, errs io.Writer) error {
	list, err := findNamespaces("/")
	if err != nil {
		return cli.CannotLook(err)
	}
	p := cli.StartProgress(errs, "namespaces counted", uint64(len(list)))
	failed := 0
	var reason error
	for i := range list {
		if err := countNamespace(&list[i], f); err != nil {
			list[i].Error = err.Error()
			reason = err
			failed++
		}
		p.Step()
	}
	p.Stop()
	if failed == len(list) {
		return cli.CannotLook(reason)
	}
	slices.SortStableFunc(list, func(a, b namespaceReport) int { return int(b.Entries) - int(a.Entries) })
	if o.output == "json" {
		return cli.WriteJSON(out, list)
	}
	return writeNamespaces(out, list)
}

// findNamespaces lists the network namespaces that processes below root/proc
// are in, and those with a name below root/run/netns or root/run/docker/netns.
func findNamespaces(root string) ([]namespaceReport, error) {
	seen := map[uint64]bool{}
	var list []namespaceReport
	add := func(r namespaceReport) {
		var st unix.Stat_t
		if unix.Stat(r.Path, &st) != nil || seen[st.Ino] {
			return // ended meanwhile, not ours to see, or known
		}
		seen[st.Ino] = true
		r.Inode = st.Ino
		list = append(list, r)
	}
	proc := filepath.Join(root, "proc")
	entries, err := os.ReadDir(proc)
	if err != nil {
		return nil, fmt.Errorf("list the processes: %w", err)
	}
	pids := make([]int, 0, len(entries))
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	for _, pid := range pids {
		dir := filepath.Join(proc, strconv.Itoa(pid))
		comm, _ := os.ReadFile(filepath.Join(dir, "comm"))
		cgroup, _ := os.ReadFile(filepath.Join(dir, "cgroup"))
		add(namespaceReport{Path: filepath.Join(dir, "ns/net"), PID: pid, Process: strings.TrimSpace(string(comm)), Pod: podUID(string(cgroup))})
	}
	for _, dir := range []string{"run/netns", "run/docker/netns"} {
		names, err := os.ReadDir(filepath.Join(root, dir))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("list named namespaces: %w", err)
		}
		for _, n := range names {
			add(namespaceReport{Path: filepath.Join(root, dir, n.Name())})
		}
	}
	return list, nil
}

// podUID finds the UID in the cgroup that kubelet made for a pod: .../pod<UID>/...
// with the cgroupfs driver, kubepods-burstable-pod<UID with _>.slice with systemd's.
func podUID(cgroup string) string {
	for part := range strings.FieldsFuncSeq(cgroup, func(r rune) bool { return r == '/' || r == '\n' }) {
		part = strings.TrimSuffix(part, ".slice")
		i := strings.LastIndex(part, "pod")
		if i < 0 {
			continue
		}
		uid := strings.ReplaceAll(part[i+len("pod"):], "_", "-")
		if len(uid) == 36 && strings.Count(uid, "-") == 4 {
			return uid
		}
	}
	return ""
}

func countNamespace(r *namespaceReport, f conntrack.Filter) error {
	ns, err := netns.GetFromPath(r.Path)
	if err != nil {
		return err
	}
	defer func() { _ = ns.Close() }()
	return inNamespace(ns, func() error {
		c, err := conntrack.Dial(nil)
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		entries, limit, err := c.Count()
		if err != nil {
			return err
		}
		r.Entries, r.Limit = uint64(entries), uint64(limit)
		r.FillPercent = cli.Percent(r.Entries, r.Limit)
		if entries == 0 {
			return nil
		}
		collector := summary.New(0)
		if err := c.Dump(f, collector.Add); err != nil && !errors.Is(err, conntrack.ErrInterrupted) {
			return err
		}
		s := collector.Summary(1)
		r.Selected, r.DNS, r.Unreplied = s.Entries, s.DNS.Entries, s.Unreplied
		return nil
	})
}

func writeNamespaces(out io.Writer, list []namespaceReport) error {
	var b bytes.Buffer
	table := cli.TextTable{Header: []string{"NAMESPACE", "ENTRIES", "FILL", "DNS", "UNREPLIED", "PROCESS", "POD"}, Text: 2}
	for _, r := range list {
		who := r.Path
		if r.PID > 0 {
			who = fmt.Sprintf("%s (%d)", r.Process, r.PID)
		}
		if r.Error != "" {
			table.Add(fmt.Sprintf("net:[%d]", r.Inode), "-", "-", "-", "-", who, r.Error)
			continue
		}
		pod := r.Pod
		if pod == "" {
			pod = "-"
		}
		table.Add(fmt.Sprintf("net:[%d]", r.Inode), cli.Thousands(r.Entries), cli.FillText(r.Entries, r.Limit), cli.Thousands(r.DNS), cli.Thousands(r.Unreplied), who, pod)
	}
	table.Write(&b, cli.TerminalWidth(out))
	_, err := out.Write(b.Bytes())
	return err
}
