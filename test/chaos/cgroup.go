package chaos

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/trackless-dns/trackless/lab"
)

// memoryGroup is where a group with a memory limit can be made, and what the
// limit's files are called.
type memoryGroup struct {
	parent      string
	limit, swap string
}

// findMemoryGroup looks for the memory controller: that of cgroup v1, or of v2
// where it is delegated below the root of the hierarchy.
func findMemoryGroup() (memoryGroup, error) {
	v1 := memoryGroup{"/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.memsw.limit_in_bytes"}
	if _, err := os.Stat(filepath.Join(v1.parent, v1.limit)); err == nil {
		return v1, nil
	}
	v2 := memoryGroup{"/sys/fs/cgroup", "memory.max", "memory.swap.max"}
	control, err := os.ReadFile(filepath.Join(v2.parent, "cgroup.subtree_control"))
	if err != nil {
		return memoryGroup{}, errors.New("no cgroup memory controller is mounted at /sys/fs/cgroup")
	}
	for word := range strings.FieldsSeq(string(control)) {
		if word == "memory" {
			return v2, nil
		}
	}
	return memoryGroup{}, errors.New("the cgroup memory controller is not enabled below /sys/fs/cgroup (cgroup.subtree_control)")
}

// lackingMemoryCgroup tries to make a group and says what is missing for it.
func lackingMemoryCgroup() string {
	group, err := findMemoryGroup()
	if err != nil {
		return err.Error()
	}
	path, err := os.MkdirTemp(group.parent, "trackless-chaos-")
	if err == nil {
		err = os.Remove(path)
	}
	if err != nil {
		return "no memory cgroup can be made: " + err.Error()
	}
	return ""
}

// limitMemory puts the server into a group of its own with a limit in bytes
// for what it touches from now on, and no swap. The group goes with the scene.
func (s *Scene) limitMemory(server *lab.Server, limit int) error {
	group, err := findMemoryGroup()
	if err != nil {
		return err
	}
	path, err := os.MkdirTemp(group.parent, "trackless-chaos-")
	if err != nil {
		return err
	}
	// Before the group can go its last process must have: it is killed first.
	s.cleanups = append(s.cleanups, func() error { return os.Remove(path) })
	write := func(file, value string) error {
		if err := os.WriteFile(filepath.Join(path, file), []byte(value), 0o600); err != nil {
			return fmt.Errorf("limit the memory of trackless: %w", err)
		}
		return nil
	}
	if err := write(group.limit, strconv.Itoa(limit)); err != nil {
		return err
	}
	noSwap := strconv.Itoa(limit) // memory and swap together
	if group.swap == "memory.swap.max" {
		noSwap = "0"
	}
	if _, err := os.Stat(filepath.Join(path, group.swap)); err == nil {
		if err := write(group.swap, noSwap); err != nil {
			return err
		}
	}
	return write("cgroup.procs", strconv.Itoa(server.PID()))
}
