// Package owner tells which process made rules in the kernel, and whether it still
// runs.
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

// Mark names the process that made rules. It is a comment beside them in the kernel, so
// that the rules of a dead process can be told from rules in use.
type Mark struct {
	// Format is the version of the layout of the rules.
	Format int
	// PID is the process id, in the process's own pid namespace.
	PID int
	// Start is the start of the process in clock ticks after boot.
	Start uint64
	// PIDNamespace is the inode of its pid namespace.
	PIDNamespace uint64
}

// Self returns the mark of this process, for rules of a format.
func Self(format int) Mark {
	m, _ := Of(os.Getpid(), format)
	return m
}

// Of returns the mark of a process of our own pid namespace.
func Of(pid, format int) (Mark, error) {
	start, err := processStart(pid)
	return Mark{Format: format, PID: pid, Start: start, PIDNamespace: pidNamespace()}, err
}

// String returns the comment.
func (m Mark) String() string {
	return fmt.Sprintf("trackless %d pid %d start %d pidns %d", m.Format, m.PID, m.Start, m.PIDNamespace)
}

// Parse reads a comment. It returns false if the comment is no mark of ours.
func Parse(comment string) (Mark, bool) {
	var m Mark
	n, err := fmt.Sscanf(comment, "trackless %d pid %d start %d pidns %d", &m.Format, &m.PID, &m.Start, &m.PIDNamespace)
	return m, err == nil && n == 4
}

// Dead reports whether the process is certainly gone. A process in another pid
// namespace may not be visible from here and counts as alive.
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
	// The command name in parentheses may have spaces. The first field after it is
	// field 3.
	_, rest, _ := strings.Cut(string(stat), ") ")
	fields := strings.Fields(rest)
	if len(fields) < 20 {
		return 0, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(fields)+2)
	}
	return strconv.ParseUint(fields[19], 10, 64)
}

// Started returns when a process started, in clock ticks after boot, and how long ago
// that is. It fails if there is no such process.
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

// Unknown: the process is in a pid namespace that is not visible from here, or the
// rules do not say who made them.
const (
	Alive   Life = "alive"
	Dead    Life = "dead"
	Unknown Life = "unknown"
)

// Owner is the process that made rules, from their mark and /proc.
type Owner struct {
	// PID is the process id in the process's own pid namespace.
	PID int
	// LocalPID is its id in the caller's pid namespace; 0 if it is dead or not
	// visible there.
	LocalPID int
	// Start is the start of the process in clock ticks after boot, field 22 of
	// /proc/PID/stat; 0 if unknown.
	Start uint64
	// PIDNamespace is the inode of its pid namespace; 0 if unknown.
	PIDNamespace uint64
	// Life tells whether the process still runs.
	Life Life
	// Command is its name in /proc/PID/comm; empty if it is not visible.
	Command string
}

// IsSelf reports whether the owner is this process.
func (o Owner) IsSelf() bool {
	m := Self(0)
	return o.PID == m.PID && o.Start == m.Start && o.PIDNamespace == m.PIDNamespace
}

// userHZ is the number of clock ticks in a second. The kernel shows 100 to user space on
// every architecture that Go supports (include/asm-generic/param.h).
const userHZ = 100

// Age returns the time since the process started, 0 if unknown.
func (o Owner) Age() time.Duration {
	var now unix.Timespec
	if o.Start == 0 || unix.ClockGettime(unix.CLOCK_BOOTTIME, &now) != nil {
		return 0
	}
	return max(0, time.Duration(now.Nano())-time.Duration(o.Start)*(time.Second/userHZ))
}

// initialPIDNamespace is the inode of the initial pid namespace (PROC_PID_INIT_INO in
// include/linux/proc_ns.h). All processes are visible there.
const initialPIDNamespace = 0xeffffffc

// Find searches for the process. Unlike Dead it also finds processes in pid namespaces
// below ours: those of containers, from the host.
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

// findBelow searches the processes of other pid namespaces. certain is false if the
// namespace of a process that may be the right one could not be read.
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

// running reports whether the process runs and has this start time. A zombie does not
// run: its sockets, and with them its tables, are gone.
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

// innermostPID returns the id of the process in its own pid namespace: the last number
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
