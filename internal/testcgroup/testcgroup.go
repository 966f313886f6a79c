// Package testcgroup bounds the memory and the processor time of processes under
// test, as the limits of a container do.
package testcgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Limits are those of a group; zero leaves out a limit.
type Limits struct {
	Memory int           // bytes that its processes may touch, without swap
	CPU    time.Duration // processor time in each Period
}

// Period is the period of Limits.CPU, as kubelet and the kernel set it.
const Period = 100 * time.Millisecond

const root = "/sys/fs/cgroup"

// controller is what bounds one thing, by its name in both versions.
type controller struct {
	name string
	file string // of version 1, which a group of this controller has
}

var (
	memory = controller{"memory", "memory.limit_in_bytes"}
	cpu    = controller{"cpu", "cpu.cfs_quota_us"}
)

// parent is where a group with the controller can be made: its own hierarchy
// (version 1), or that of all controllers (version 2,
// Documentation/admin-guide/cgroup-v2.rst) where it is delegated below the root.
func (c controller) parent() (path string, v2 bool, err error) {
	v1 := filepath.Join(root, c.name)
	if _, err := os.Stat(filepath.Join(v1, c.file)); err == nil {
		return v1, false, nil
	}
	control, err := os.ReadFile(filepath.Join(root, "cgroup.subtree_control"))
	if err != nil {
		return "", false, fmt.Errorf("no cgroup %s controller is mounted at %s", c.name, root)
	}
	if slices.Contains(strings.Fields(string(control)), c.name) {
		return root, true, nil
	}
	return "", false, fmt.Errorf("the cgroup %s controller is not enabled below %s (cgroup.subtree_control)", c.name, root)
}

// Lacking makes a group with both limits and says what is missing for it, "" if
// nothing.
func Lacking() string {
	g, err := New(Limits{Memory: 1 << 30, CPU: Period})
	if err == nil {
		err = g.Close()
	}
	if err != nil {
		return err.Error()
	}
	return ""
}

// A Group bounds its processes.
type Group struct {
	paths []string // by hierarchy
	in    map[controller]place
}

// place is a group in a controller's hierarchy.
type place struct {
	path string
	v2   bool
}

// New makes an empty group. Its memory limit is for what its processes touch from
// then on.
func New(limits Limits) (*Group, error) {
	g := &Group{in: map[controller]place{}}
	if err := g.bound(limits); err != nil {
		return nil, errors.Join(err, g.Close())
	}
	return g, nil
}

func (g *Group) bound(limits Limits) error {
	if limits.Memory > 0 {
		if err := g.boundMemory(limits.Memory); err != nil {
			return err
		}
	}
	if limits.CPU > 0 {
		return g.boundCPU(limits.CPU)
	}
	return nil
}

// enter makes the group in a controller's hierarchy, unless it is there: version 2
// has one hierarchy for all.
func (g *Group) enter(c controller) (place, error) {
	parent, v2, err := c.parent()
	if err != nil {
		return place{}, err
	}
	for _, have := range g.in {
		if v2 && have.v2 {
			g.in[c] = have
			return have, nil
		}
	}
	path, err := os.MkdirTemp(parent, "trackless-test-")
	if err != nil {
		return place{}, fmt.Errorf("make a %s cgroup: %w", c.name, err)
	}
	g.paths = append(g.paths, path)
	g.in[c] = place{path, v2}
	return g.in[c], nil
}

func (g *Group) boundMemory(limit int) error {
	at, err := g.enter(memory)
	if err != nil {
		return err
	}
	// Version 1 counts memory and swap together.
	file, swap, most := "memory.limit_in_bytes", "memory.memsw.limit_in_bytes", strconv.Itoa(limit)
	if at.v2 {
		file, swap, most = "memory.max", "memory.swap.max", "0"
	}
	if err := at.write(file, strconv.Itoa(limit)); err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(at.path, swap)); errors.Is(err, os.ErrNotExist) {
		return nil // swap is not accounted for here
	}
	return at.write(swap, most)
}

func (g *Group) boundCPU(quota time.Duration) error {
	at, err := g.enter(cpu)
	if err != nil {
		return err
	}
	// Nothing but the limit is to keep its processes from running.
	weight, most := "cpu.shares", "262144"
	if at.v2 {
		weight, most = "cpu.weight", "10000"
	}
	if err := at.write(weight, most); err != nil {
		return err
	}
	if at.v2 {
		return at.write("cpu.max", fmt.Sprintf("%d %d", quota.Microseconds(), Period.Microseconds()))
	}
	if err := at.write("cpu.cfs_period_us", strconv.FormatInt(Period.Microseconds(), 10)); err != nil {
		return err
	}
	return at.write("cpu.cfs_quota_us", strconv.FormatInt(quota.Microseconds(), 10))
}

func (p place) write(file, value string) error {
	if err := os.WriteFile(filepath.Join(p.path, file), []byte(value), 0o600); err != nil {
		return fmt.Errorf("set the cgroup's %s: %w", file, err)
	}
	return nil
}

// number reads one of a file's lines that consist of a key and a number.
func (p place) number(file, key string) (int, error) {
	text, err := os.ReadFile(filepath.Join(p.path, file))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if n, ok := strings.CutPrefix(line, key+" "); ok {
			return strconv.Atoi(strings.TrimSpace(n))
		}
	}
	return 0, fmt.Errorf("%s says nothing of %s", filepath.Join(p.path, file), key)
}

// Join puts a running process into the group.
func (g *Group) Join(pid int) error {
	for _, path := range g.paths {
		if err := (place{path: path}).write(procs, strconv.Itoa(pid)); err != nil {
			return err
		}
	}
	return nil
}

const procs = "cgroup.procs"

// Killed is how many processes of the group the kernel has killed for want of
// memory.
func (g *Group) Killed() (int, error) {
	at := g.in[memory]
	if at.v2 {
		return at.number("memory.events", "oom_kill")
	}
	return at.number("memory.oom_control", "oom_kill")
}

// Throttled is for how many periods so far the group has wanted processor time, and
// in how many of these it got none for a while since its limit was used up.
func (g *Group) Throttled() (periods, throttled int, err error) {
	if periods, err = g.in[cpu].number("cpu.stat", "nr_periods"); err != nil {
		return 0, 0, err
	}
	throttled, err = g.in[cpu].number("cpu.stat", "nr_throttled")
	return periods, throttled, err
}

// Close removes the group. Its processes must be about to end: what a program that was
// killed had started may take a moment, a limit on its processor time included.
func (g *Group) Close() error {
	var errs []error
	deadline := time.Now().Add(ending)
	for _, path := range g.paths {
		err := os.Remove(path)
		for ; errors.Is(err, unix.EBUSY) && time.Now().Before(deadline); err = os.Remove(path) {
			time.Sleep(10 * time.Millisecond)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// ending is how long Close waits for processes to end.
const ending = 10 * time.Second

// Script writes a shell script to the file that joins the group and then runs the
// command, such as `exec program "$@"`: so the program is in the group from its
// first page on.
func (g *Group) Script(path, command string) error {
	text := "#!/bin/sh\n"
	for _, group := range g.paths {
		text += fmt.Sprintf("echo $$ >%s\n", filepath.Join(group, procs))
	}
	return os.WriteFile(path, []byte(text+command+"\n"), 0o700)
}
