package nft

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Life tells whether the process that made a table still runs.
type Life string

// Unknown is the answer where the process lives in a pid namespace that cannot
// be seen from here, or where the table does not say who made it.
const (
	Alive   Life = "alive"
	Dead    Life = "dead"
	Unknown Life = "unknown"
)

// Owner is the process that made a table, as the table's user data and /proc
// tell.
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

// find looks for the process of a table. Unlike owner.dead it also finds one
// in a pid namespace below ours: a container's, seen from the host.
func (o owner) find() Owner {
	out := Owner{PID: o.pid, Start: o.start, PIDNamespace: o.pidns, Life: Unknown}
	if o.pid == 0 || o.pidns == 0 {
		return out
	}
	here := pidNamespace()
	if o.pidns == here {
		out.Life = Dead
		if running(o.pid, o.start) {
			out.Life, out.LocalPID = Alive, o.pid
		}
	} else {
		var certain bool
		if out.LocalPID, certain = o.findBelow(); out.LocalPID != 0 {
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
func (o owner) findBelow() (pid int, certain bool) {
	dirs, err := filepath.Glob("/proc/[1-9]*")
	if err != nil {
		return 0, false
	}
	certain = true
	for _, dir := range dirs {
		local, err := strconv.Atoi(filepath.Base(dir))
		if err != nil || !running(local, o.start) {
			continue
		}
		namespace, err := os.Readlink(dir + "/ns/pid")
		switch {
		case errors.Is(err, fs.ErrPermission):
			certain = false
		case err == nil && namespace == "pid:["+strconv.FormatUint(o.pidns, 10)+"]" && innermostPID(dir) == o.pid:
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
