package attach

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
)

// recorded is a log whose lines are kept.
type recorded []string

func (*recorded) Debugf(string, ...any)         {}
func (*recorded) Infof(string, ...any)          {}
func (r *recorded) Warningf(f string, a ...any) { *r = append(*r, fmt.Sprintf(f, a...)) }
func (r *recorded) Errorf(f string, a ...any)   { r.Warningf(f, a...) }

// fake attaches to no device.
type fake struct {
	detached int
	fault    error // of a detach
	removed  bool  // by another instance, whose filter is there
	succeeds int
	neighbours
}

func (*fake) name() string { return "fake" }
func (f *fake) attach(int) (func() error, error) {
	return func() error { f.detached++; return f.fault }, nil
}
func (f *fake) look(int) (neighbours, error) {
	n := f.neighbours
	n.attached, n.rival = !f.removed, f.removed
	return n, nil
}
func (*fake) forget(int)                {}
func (f *fake) succeed(int, bool) error { f.succeeds++; return nil }

// faked is a watcher whose devices exist only here.
func faked(c Config) (*Watcher, *fake, *recorded) {
	log, f := &recorded{}, &fake{}
	if c.Leave == nil {
		c.Leave = func(string, int) string { return "" }
	}
	if c.Bridge == nil {
		c.Bridge = func(int, net.HardwareAddr) error { return nil }
	}
	if c.Open == nil {
		c.Open = func() bool { return false }
	}
	c.Log = log
	w := New(c)
	w.how = f
	return w, f, log
}

// isAttached reports whether the program is attached to the device.
func (w *Watcher) isAttached(index int) bool {
	for _, d := range w.Devices() {
		if d.Index == index {
			return d.Attached != ""
		}
	}
	return false
}

const anIndex = 1 << 30 // of no device

// The name of a master comes from the links that are known, without a question to the
// kernel for each port.
func TestPortsOfABridge(t *testing.T) {
	for _, row := range []struct {
		name   string
		bridge *device
		want   bool
	}{
		{"of a bridge of pods", &device{index: anIndex + 1, name: "cni0", kind: "bridge"}, true},
		{"of an uplink", &device{index: anIndex + 1, name: "br0", kind: "bridge"}, false},
		{"of an unknown master", nil, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			w, _, _ := faked(Config{})
			w.uplinks = []string{"br0"}
			if row.bridge != nil {
				w.appeared(*row.bridge)
			}
			w.appeared(device{index: anIndex, name: "port", kind: "veth", master: anIndex + 1})
			if got := w.isAttached(anIndex); got != row.want {
				t.Errorf("attached %t, want %t", got, row.want)
			}
		})
	}
}

// A detach that fails is tried again at each sync, and logged once.
func TestDetachIsTriedAgain(t *testing.T) {
	pod := device{index: anIndex, name: "pod", kind: "veth"}
	for _, row := range []struct {
		name    string
		because func(w *Watcher, policy *string)
		known   bool // afterwards
	}{
		{"a policy", func(_ *Watcher, policy *string) { *policy = "a policy filters here" }, true},
		{"an uplink", func(w *Watcher, _ *string) { w.uplinks = []string{"pod"} }, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			policy := ""
			w, f, log := faked(Config{Leave: func(string, int) string { return policy }})
			w.appeared(pod)
			f.fault = errors.New("no buffer space")
			row.because(w, &policy)
			for range 3 {
				w.appeared(pod)
			}
			if !w.isAttached(pod.index) || f.detached != 3 || len(*log) != 1 {
				t.Errorf("attached %t, %d tries, log %q", w.isAttached(pod.index), f.detached, *log)
			}
			f.fault = nil
			w.appeared(pod)
			if w.isAttached(pod.index) || f.detached != 4 || len(w.Devices()) == 1 != row.known {
				t.Errorf("attached %t, %d tries, devices %v", w.isAttached(pod.index), f.detached, w.Devices())
			}
		})
	}
}

// While the uplinks are not known, a new policy holds for the known devices.
func TestPoliciesHoldWithoutUplinks(t *testing.T) {
	policy := ""
	w, _, _ := faked(Config{
		Leave:   func(string, int) string { return policy },
		Uplinks: func() ([]string, error) { return nil, errors.New("no routes") },
	})
	w.appeared(device{index: anIndex, name: "pod", kind: "veth"})
	for _, row := range []struct {
		policy string
		want   bool
	}{{"", true}, {"a policy filters here", false}} {
		policy = row.policy
		if err := w.sync(); err == nil {
			t.Error("no error")
		}
		if got := w.isAttached(anIndex); got != row.want {
			t.Errorf("policy %q: attached %t", policy, got)
		}
	}
}

// A program that would not see the queries that the kernel answers is a policy, unless
// policies are ignored. One before ours sees them.
func TestProgramsOfOthers(t *testing.T) {
	pod := device{index: anIndex, name: "pod", kind: "veth"}
	for _, row := range []struct {
		name     string
		there    neighbours
		force    bool
		attached bool
		log      string
	}{
		{"behind ours", neighbours{behind: "the bpf filter of priority 1"}, false, false, "pod: the kernel answers no queries here, CoreDNS does: the bpf filter of priority 1 would not see the queries that the kernel answers"},
		{"behind ours, with force", neighbours{behind: "the bpf filter of priority 1"}, true, true, ""},
		{"before ours", neighbours{before: "the tcx program 7"}, false, true, "pod: the tcx program 7 runs before ours, and may end the way of a query"},
	} {
		t.Run(row.name, func(t *testing.T) {
			w, f, log := faked(Config{Force: row.force})
			w.appeared(pod)
			f.neighbours = row.there
			for range 2 {
				w.appeared(pod)
			}
			if got := strings.Join(*log, "\n"); w.isAttached(anIndex) != row.attached || got != row.log {
				t.Errorf("attached %t, log %q", w.isAttached(anIndex), got)
			}
			f.neighbours = neighbours{}
			w.appeared(pod)
			if d := w.Devices()[0]; !w.isAttached(anIndex) || d.Problem != "" {
				t.Errorf("without it: attached %t, problem %q", w.isAttached(anIndex), d.Problem)
			}
		})
	}
}

// An instance whose filter another one has removed does not fight for the device, until it
// begins to answer.
func TestDisplaced(t *testing.T) {
	pod := device{index: anIndex, name: "pod", kind: "veth"}
	w, f, _ := faked(Config{})
	w.appeared(pod)
	w.begin(true)
	f.removed = true
	for range 2 {
		w.appeared(pod)
		w.succeed()
	}
	if w.isAttached(pod.index) || f.succeeds != 0 {
		t.Errorf("attached %t, %d filters of the other removed", w.isAttached(pod.index), f.succeeds)
	}
	w.begin(false)
	w.begin(true)
	w.appeared(pod)
	w.succeed()
	if !w.isAttached(pod.index) || f.succeeds != 1 {
		t.Errorf("after it answers again: attached %t, %d filters of the other removed", w.isAttached(pod.index), f.succeeds)
	}
}

// The program learns the address of a port's bridge, and its changes.
func TestTheProgramKnowsTheBridge(t *testing.T) {
	known := map[int]string{}
	var fault error
	w, _, _ := faked(Config{Bridge: func(port int, mac net.HardwareAddr) error {
		if fault == nil {
			known[port] = mac.String()
		}
		return fault
	}})
	bridge := device{index: anIndex + 1, name: "cni0", kind: "bridge", mac: net.HardwareAddr{2, 0, 0, 0, 0, 1}}
	port := device{index: anIndex, name: "port", kind: "veth", master: anIndex + 1, mac: net.HardwareAddr{2, 0, 0, 0, 0, 9}}
	moved := bridge
	moved.mac = net.HardwareAddr{2, 0, 0, 0, 0, 2}
	bond := bridge
	bond.kind = "bond"
	alone := port
	alone.master = 0
	for _, step := range []struct {
		name string
		do   func()
		want string
	}{
		{"a port", func() { w.appeared(bridge); w.appeared(port) }, "02:00:00:00:00:01"},
		{"another address, which the kernel's table does not take", func() { fault = errors.New("no memory"); w.appeared(moved); fault = nil }, "02:00:00:00:00:01"},
		{"the next sync", func() { w.appeared(port) }, "02:00:00:00:00:02"},
		{"no bridge", func() { w.appeared(bond) }, ""},
		{"a bridge again", func() { w.appeared(bridge) }, "02:00:00:00:00:01"},
		{"no port", func() { w.appeared(alone) }, ""},
		{"a port again", func() { w.appeared(port) }, "02:00:00:00:00:01"},
		{"gone", func() { w.gone(anIndex) }, ""},
	} {
		if step.do(); known[anIndex] != step.want {
			t.Errorf("%s: the program knows %q, want %q", step.name, known[anIndex], step.want)
		}
	}
}
