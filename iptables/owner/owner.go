// Package owner tells whose rules in the kernel are, and whether that process
// still runs.
package owner

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Mark says who made rules. It stands beside them in the kernel as a comment, so
// that what a dead process left can be told from what is in use.
type Mark struct {
	// Format is the version of what the rules look like.
	Format int
	// PID is the process id, in the process's own pid namespace.
	PID int
	// Start is the start of the process in clock ticks after boot.
	Start uint64
	// PIDNamespace is the inode of its pid namespace.
	PIDNamespace uint64
}

// Self is the mark of this process, for rules of a format.
func Self(format int) Mark {
	m, _ := Of(os.Getpid(), format)
	return m
}

// Of is the mark of a process of our own pid namespace.
func Of(pid, format int) (Mark, error) {
	start, err := processStart(pid)
	return Mark{Format: format, PID: pid, Start: start, PIDNamespace: pidNamespace()}, err
}

// String is the comment.
func (m Mark) String() string {
	return fmt.Sprintf("trackless %d pid %d start %d pidns %d", m.Format, m.PID, m.Start, m.PIDNamespace)
}

// Parse reads a comment. It reports false if it is no mark of ours.
func Parse(comment string) (Mark, bool) {
	var m Mark
	n, err := fmt.Sscanf(comment, "trackless %d pid %d start %d pidns %d", &m.Format, &m.PID, &m.Start, &m.PIDNamespace)
	return m, err == nil && n == 4
}

// Dead reports whether the process is certainly gone. One in another pid
// namespace cannot be judged from here and counts as living.
func (m Mark) Dead() bool {
	if m.PIDNamespace == 0 || m.PIDNamespace != pidNamespace() {
		return false
	}
	start, err := processStart(m.PID)
	return os.IsNotExist(err) || err == nil && start != m.Start
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

// Started returns when a process began, in units of its own since the machine did,
// and how long ago that is. It fails if there is none.
func Started(pid int) (start uint64, age time.Duration, err error) {
	start, err = processStart(pid)
	return start, Owner{Start: start}.Age(), err
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

// Life tells whether the process that made rules still runs.
type Life string

// Unknown is the answer where the process lives in a pid namespace that cannot
// be seen from here, or where the rules do not say who made them.
const (
	Alive   Life = "alive"
	Dead    Life = "dead"
	Unknown Life = "unknown"
)

// Owner is the process that made rules, as their mark and /proc tell.
type Owner struct {
	// PID is the process id in the process's own pid namespace.
	PID int
	// LocalPID is the id by which the caller can send it a signal; 0 if it is
	// dead or cannot be seen from here.
	LocalPID int
	// Start is the start of the process in clock ticks after boot, field 22 of
	// /proc/PID/stat; 0 if unknown.
	Start uint64
	// PIDNamespace is the inode of its pid namespace; 0 if unknown.
	PIDNamespace uint64
	// Life tells whether the process still runs.
	Life Life
	// Command is its name in /proc/PID/comm; empty unless it can be seen.
	Command string
}

// IsSelf reports whether it is this process.
func (o Owner) IsSelf() bool {
	m := Self(0)
	return o.PID == m.PID && o.Start == m.Start && o.PIDNamespace == m.PIDNamespace
}

// userHZ is the unit of process start times; the kernel shows user space 100
// on every architecture that Go knows (include/asm-generic/param.h).
const userHZ = 100

// Age returns the time since the process started, 0 if unknown.
func (o Owner) Age() time.Duration {
	var now unix.Timespec
	if o.Start == 0 || unix.ClockGettime(unix.CLOCK_BOOTTIME, &now) != nil {
		return 0
	}
	return max(0, time.Duration(now.Nano())-time.Duration(o.Start)*(time.Second/userHZ))
}

// initialPIDNamespace is the inode of the first pid namespace
// (PROC_PID_INIT_INO in include/linux/proc_ns.h). All processes can be seen
// from there.
const initialPIDNamespace = 0xeffffffc

// Find looks for the process. Unlike Dead it also finds one
// in a pid namespace below ours: a container's, seen from the host.
func (m Mark) Find() Owner {
	out := Owner{PID: m.PID, Start: m.Start, PIDNamespace: m.PIDNamespace, Life: Unknown}
	if m.PID == 0 || m.PIDNamespace == 0 {
		return out
	}
	here := pidNamespace()
	if m.PIDNamespace == here {
		out.Life = Dead
		if running(m.PID, m.Start) {
			out.Life, out.LocalPID = Alive, m.PID
		}
	} else {
		var certain bool
		if out.LocalPID, certain = m.findBelow(); out.LocalPID != 0 {
			out.Life = Alive
		} else if certain && here == initialPIDNamespace {
			out.Life = Dead
		}
	}
	if out.LocalPID != 0 {
		comm, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(out.LocalPID), "comm"))
		if err == nil {
			out.Command = strings.TrimSpace(string(comm))
		}
	}
	return out
}

// findBelow searches the processes of other pid namespaces. certain is false
// if one that may be it could not be looked at.
func (m Mark) findBelow() (pid int, certain bool) {
	dirs, err := filepath.Glob("/proc/[1-9]*")
	if err != nil {
		return 0, false
	}
	certain = true
	for _, dir := range dirs {
		local, err := strconv.Atoi(filepath.Base(dir))
		if err != nil || !running(local, m.Start) {
			continue
		}
		namespace, err := os.Readlink(dir + "/ns/pid")
		switch {
		case errors.Is(err, fs.ErrPermission):
			certain = false
		case err == nil && namespace == "pid:["+strconv.FormatUint(m.PIDNamespace, 10)+"]" && innermostPID(dir) == m.PID:
			return local, true
		}
	}
	return 0, certain
}

// running reports whether the process runs and is the one that started then. A
// zombie runs no more: its sockets, and with them its tables, are gone.
func running(pid int, start uint64) bool {
	got, err := processStart(pid)
	if err != nil || start != 0 && got != start {
		return false
	}
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	return rest != "" && rest[0] != 'Z' && rest[0] != 'X'
}

// innermostPID is the process's id in its own pid namespace: the last number
// of NSpid in /proc/PID/status (proc_pid_status(5)).
func innermostPID(dir string) int {
	status, err := os.ReadFile(dir + "/status")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(status)) {
		if ids, ok := strings.CutPrefix(line, "NSpid:"); ok {
			fields := strings.Fields(ids)
			if len(fields) > 0 {
				pid, _ := strconv.Atoi(fields[len(fields)-1])
				return pid
			}
		}
	}
	return 0
}
