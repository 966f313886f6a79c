// Package testcgroup bounds the memory of processes under test, as the limit of
// a container does.
package testcgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// hierarchy is where a group with a memory limit can be made, and what the
// files of a group are called.
type hierarchy struct {
	parent, limit, swap string
	killed              string // the file that counts OOM kills
}

// find looks for the memory controller: that of version 1
// (Documentation/admin-guide/cgroup-v1/memory.rst), or of version 2
// (cgroup-v2.rst) where it is delegated below the root of the hierarchy.
func find() (hierarchy, error) {
	v1 := hierarchy{
		"/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.oom_control",
	}
	if _, err := os.Stat(filepath.Join(v1.parent, v1.limit)); err == nil {
		return v1, nil
	}
	v2 := hierarchy{"/sys/fs/cgroup", "memory.max", "memory.swap.max", "memory.events"}
	control, err := os.ReadFile(filepath.Join(v2.parent, "cgroup.subtree_control"))
	if err != nil {
		return hierarchy{}, errors.New("no cgroup memory controller is mounted at /sys/fs/cgroup")
	}
	for word := range strings.FieldsSeq(string(control)) {
		if word == "memory" {
			return v2, nil
		}
	}
	return hierarchy{}, errors.New("the cgroup memory controller is not enabled below /sys/fs/cgroup (cgroup.subtree_control)")
}

// Lacking makes a group and says what is missing for it, "" if nothing.
func Lacking() string {
	g, err := New(1 << 30)
	if err == nil {
		err = g.Close()
	}
	if err != nil {
		return err.Error()
	}
	return ""
}

// A Group bounds the memory of its processes.
type Group struct {
	path string
	in   hierarchy
}

// New makes an empty group whose processes may use limit bytes for what they
// touch from then on, and no swap.
func New(limit int) (*Group, error) {
	in, err := find()
	if err != nil {
		return nil, err
	}
	path, err := os.MkdirTemp(in.parent, "trackless-test-")
	if err != nil {
		return nil, fmt.Errorf("make a memory cgroup: %w", err)
	}
	g := &Group{path, in}
	if err := g.bound(limit); err != nil {
		return nil, errors.Join(err, g.Close())
	}
	return g, nil
}

func (g *Group) bound(limit int) error {
	if err := g.write(g.in.limit, strconv.Itoa(limit)); err != nil {
		return err
	}
	noSwap := strconv.Itoa(limit) // memory and swap together
	if g.in.swap == "memory.swap.max" {
		noSwap = "0"
	}
	if _, err := os.Stat(filepath.Join(g.path, g.in.swap)); errors.Is(err, os.ErrNotExist) {
		return nil // swap is not accounted for here
	}
	return g.write(g.in.swap, noSwap)
}

func (g *Group) write(file, value string) error {
	if err := os.WriteFile(filepath.Join(g.path, file), []byte(value), 0o600); err != nil {
		return fmt.Errorf("set the memory cgroup's %s: %w", file, err)
	}
	return nil
}

// Join puts a running process into the group.
func (g *Group) Join(pid int) error { return g.write(procs, strconv.Itoa(pid)) }

const procs = "cgroup.procs"

// Killed is how many processes of the group the kernel has killed for want of
// memory.
func (g *Group) Killed() (int, error) {
	text, err := os.ReadFile(filepath.Join(g.path, g.in.killed))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if n, ok := strings.CutPrefix(line, "oom_kill "); ok {
			return strconv.Atoi(strings.TrimSpace(n))
		}
	}
	return 0, fmt.Errorf("%s says nothing of oom_kill", filepath.Join(g.path, g.in.killed))
}

// Close removes the group. Its last process must have ended.
func (g *Group) Close() error { return os.Remove(g.path) }

// Script writes a shell script to the file that joins the group and then runs the
// command, such as `exec program "$@"`: so the program is in the group from its
// first page on.
func (g *Group) Script(path, command string) error {
	text := fmt.Sprintf("#!/bin/sh\necho $$ >%s\n%s\n", filepath.Join(g.path, procs), command)
	return os.WriteFile(path, []byte(text), 0o700)
}
