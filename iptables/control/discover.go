package control

import (
	"bufio"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/trackless-dns/trackless/iptables/owner"
)

// Sockets lists the sockets on which instances may listen: those in the directory of
// [DefaultPath], the abstract ones of this network namespace, and all sockets of the
// given processes. Some may be stale.
//
// The sockets of a process in a container are named below its root directory in /proc,
// so that a client on the host can reach them.
func Sockets(pids ...int) []string {
	return sockets(filepath.Dir(DefaultPath), pids)
}

func sockets(dir string, pids []int) []string {
	// The pattern has no errors.
	found, _ := filepath.Glob(filepath.Join(dir, "*.sock"))
	stem := strings.TrimSuffix(abstractName, filepath.Ext(abstractName))
	for _, l := range listening("/proc/thread-self/net/unix") {
		if strings.HasPrefix(l.name, stem) {
			found = append(found, l.name)
		}
	}
	for _, pid := range pids {
		found = append(found, socketsOf(pid)...)
	}
	slices.Sort(found)
	return slices.Compact(found)
}

// socketsOf lists the unix sockets on which a process listens.
func socketsOf(pid int) []string {
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	held := map[string]bool{}
	fds, err := os.ReadDir(filepath.Join(dir, "fd"))
	if err != nil {
		return nil
	}
	for _, fd := range fds {
		target, err := os.Readlink(filepath.Join(dir, "fd", fd.Name()))
		if inode, ok := strings.CutPrefix(target, "socket:["); err == nil && ok {
			held[strings.TrimSuffix(inode, "]")] = true
		}
	}
	var found []string
	for _, l := range listening(filepath.Join(dir, "net", "unix")) {
		switch {
		case !held[l.inode], strings.HasPrefix(l.name, owner.ProgramMark):
		case strings.HasPrefix(l.name, "@"):
			found = append(found, l.name)
		case sameRoot(dir):
			found = append(found, l.name)
		default:
			if path := filepath.Join(dir, "root", l.name); len(path) <= maxPath {
				found = append(found, path)
			}
		}
	}
	return found
}

// sameRoot reports whether a process has our root directory and mounts.
func sameRoot(dir string) bool {
	theirs, err := os.Stat(filepath.Join(dir, "root") + "/")
	ours, ourErr := os.Stat("/")
	if errors.Join(err, ourErr) != nil {
		return true // the path may still be right
	}
	mounts, err := os.Readlink(filepath.Join(dir, "ns", "mnt"))
	ourMounts, ourErr := os.Readlink("/proc/self/ns/mnt")
	return os.SameFile(theirs, ours) && (err != nil || ourErr != nil || mounts == ourMounts)
}

type listeningSocket struct{ inode, name string }

// listening reads /proc/net/unix: Num RefCount Protocol Flags Type St Inode
// Path, where listening sockets have the flag __SO_ACCEPTCON, 1 << 16
// (unix_seq_show in net/unix/af_unix.c).
func listening(path string) []listeningSocket {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	var out []listeningSocket
	scanner := bufio.NewScanner(f)
	for scanner.Scan() {
		fields := strings.Fields(scanner.Text())
		if len(fields) != 8 {
			continue // the heading, sockets without a name, names with spaces
		}
		flags, err := strconv.ParseUint(fields[3], 16, 32)
		if err == nil && flags&(1<<16) != 0 {
			out = append(out, listeningSocket{inode: fields[6], name: fields[7]})
		}
	}
	return out
}
