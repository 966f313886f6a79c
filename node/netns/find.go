package netns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A Namespace is a network namespace of the node. Its JSON names do not change.
type Namespace struct {
	// Inode identifies the namespace, as in net:[4026531840].
	Inode uint64 `json:"inode"`
	// Path is a file that refers to it; Process the command of the first process
	// in it, if any; PodUID the UID of the pod from that process's cgroup.
	Path    string `json:"path"`
	Process string `json:"process,omitempty"`
	PID     int    `json:"pid,omitempty"`
	PodUID  string `json:"pod_uid,omitempty"`
}

// Open opens the namespace.
func (n *Namespace) Open() (Handle, error) { return openFile(n.Path) }

// Find lists the network namespaces that processes below root/proc
// are in, and those with a name below root/run/netns or root/run/docker/netns.
func Find(root string) ([]Namespace, error) {
	seen := map[uint64]bool{}
	var list []Namespace
	add := func(r Namespace) {
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
		add(Namespace{Path: filepath.Join(dir, "ns/net"), PID: pid, Process: strings.TrimSpace(string(comm)), PodUID: podUID(string(cgroup))})
	}
	for _, dir := range []string{"run/netns", "run/docker/netns"} {
		names, err := os.ReadDir(filepath.Join(root, dir))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("list named namespaces: %w", err)
		}
		for _, n := range names {
			add(Namespace{Path: filepath.Join(root, dir, n.Name())})
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
