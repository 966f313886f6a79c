package attach

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/internal/logger"
	"github.com/trackless-dns/trackless/iptables/owner"
	"github.com/trackless-dns/trackless/iptables/route"
)

// Config configures a Watcher. All fields but Classic are required.
type Config struct {
	Program *ebpf.Program
	// Lists are the links and routes, shared with the functions below. They hear of each
	// change.
	Lists *route.Lists
	// Uplinks returns the names of the devices that lead to the rest of the world.
	Uplinks func() ([]string, error)
	// Leave returns why a device is left alone, or the empty string. It is asked at each
	// sync too: rules that it reads may change.
	Leave func(name string, index int) string
	// Bridge tells the program that frames from a bridge's port which are to the address
	// are to this node. Nil: the port has no bridge.
	Bridge func(port int, mac net.HardwareAddr) error
	// Force attaches also where programs of others at tc would not see the queries then.
	Force bool
	// Open reports whether this instance answers: then those before it are needed no more.
	Open func() bool
	Log  logger.Logger
	// Classic attaches with clsact although the kernel has tcx.
	Classic bool
}

// A Watcher attaches the program to devices. Run does all work.
type Watcher struct {
	config Config
	how    attacher

	mu      sync.Mutex
	devices map[int]*Device
	uplinks []string
	links   map[int]device // all
	opened  bool           // at the last sync
	looked  time.Time      // when all filters were forgotten
}

// A Device is one behind which a pod may be.
type Device struct {
	Name  string
	Index int
	// Attached is how the program is attached: "tcx" or "clsact"; empty if it is not.
	Attached string
	// Problem is why the program is not attached, or does not see all queries.
	Problem string

	master int
	bridge net.HardwareAddr // of which the program knows
	remove func() error     // detaches
	stuck  bool             // the last try to detach failed
	// displaced tells that another instance has removed ours and runs in its place.
	displaced bool
	beside    string // why a filter of another instance stays
	behind    string // a program of others that the kernel's answers would pass by
}

// syncEvery is how often all devices are compared with what is attached, so that a new rule
// is seen within a second. Changes of routes, of devices and of filters are announced. Those
// of rules and of tcx programs are not.
const syncEvery = 750 * time.Millisecond

const (
	// syncAtMost is the least time between two of them: announcements come in bursts.
	syncAtMost = 50 * time.Millisecond
	// lookAtLeast is how old the lists of filters may be without an announced change.
	lookAtLeast = 30 * time.Second
)

// New returns a Watcher that has attached nothing.
func New(c Config) *Watcher {
	w := &Watcher{config: c, devices: map[int]*Device{}, links: map[int]device{}, how: newTCX(c.Program)}
	if c.Classic {
		w.how = newClsact(c.Program)
	}
	return w
}

// Devices returns the devices of pods, by name.
func (w *Watcher) Devices() []Device {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []Device
	for _, d := range w.devices {
		out = append(out, *d)
	}
	slices.SortFunc(out, func(a, b Device) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// Run attaches and follows the devices of this network namespace until the context ends.
// Then it detaches. It must run on a thread of that namespace.
func (w *Watcher) Run(ctx context.Context) error {
	conn, err := netlink.Dial(unix.NETLINK_ROUTE, &netlink.Config{
		Groups: 1<<(unix.RTNLGRP_LINK-1) | 1<<(unix.RTNLGRP_TC-1) | 1<<(unix.RTNLGRP_NEXTHOP-1) |
			1<<(unix.RTNLGRP_IPV4_ROUTE-1) | 1<<(unix.RTNLGRP_IPV6_ROUTE-1) | 1<<(unix.RTNLGRP_IPV4_RULE-1) | 1<<(unix.RTNLGRP_IPV6_RULE-1),
	})
	if err != nil {
		return fmt.Errorf("follow the devices of pods: %w", err)
	}
	defer conn.Close()
	unmark, err := w.mark()
	if err != nil {
		return fmt.Errorf("have other instances know the kernel program: %w", err)
	}
	defer unmark()
	defer w.detachAll()
	// A deadline in the past ends a wait.
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	due, synced := time.Now(), time.Time{}
	for ctx.Err() == nil {
		if !time.Now().Before(due) {
			if err := w.sync(); err != nil {
				w.config.Log.Warningf("new pods are asked by CoreDNS alone until the next try in %s: %v", syncEvery, err)
			}
			synced = time.Now()
			due = synced.Add(syncEvery)
		}
		if err := conn.SetReadDeadline(due); err != nil {
			return fmt.Errorf("follow the devices of pods: %w", err)
		}
		if ctx.Err() != nil {
			break // the end may have come before this deadline
		}
		messages, err := conn.Receive()
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			continue
		case err != nil: // ENOBUFS: announcements were lost
			w.stale(0)
			w.config.Lists.Changed()
			due = time.Now()
			continue
		}
		if w.announced(messages) {
			due = earlier(due, synced.Add(syncAtMost))
		}
	}
	return nil
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// mark has other instances know the program.
func (w *Watcher) mark() (unmark func(), err error) {
	id, err := idOf(w.config.Program)
	if err != nil {
		return nil, err
	}
	l, err := owner.MarkProgram(uint32(id))
	if err != nil {
		return nil, err
	}
	return func() { _ = l.Close() }, nil
}

func (w *Watcher) stale(index int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.how.forget(index)
}

// announced follows what the kernel has announced. It reports whether a sync is due.
func (w *Watcher) announced(messages []netlink.Message) (sync bool) {
	for _, m := range messages {
		switch m.Header.Type {
		case unix.RTM_NEWLINK:
			w.config.Lists.Changed()
			if l, ok := parseLink(m.Data); ok {
				w.appeared(l)
			}
		case unix.RTM_DELLINK:
			w.config.Lists.Changed()
			if l, ok := parseLink(m.Data); ok {
				w.gone(l.index)
			}
		case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
			w.config.Lists.Changed()
			sync = sync || isDefaultRoute(m.Data)
		case unix.RTM_NEWRULE, unix.RTM_DELRULE, unix.RTM_NEWNEXTHOP, unix.RTM_DELNEXTHOP:
			w.config.Lists.Changed()
			sync = true
		case unix.RTM_NEWQDISC, unix.RTM_DELQDISC, unix.RTM_NEWTFILTER, unix.RTM_DELTFILTER:
			w.stale(filterDevice(m.Data))
			sync = true
		}
	}
	return sync
}

// sync compares all devices with what is attached.
func (w *Watcher) sync() error {
	open := w.config.Open()
	w.begin(open)
	if time.Since(w.looked) > lookAtLeast {
		w.stale(0)
		w.looked = time.Now()
	}
	uplinks, links, err := w.survey()
	if err != nil {
		w.askPolicies()
		return err
	}
	w.mu.Lock()
	w.uplinks = uplinks
	clear(w.links)
	for _, l := range links {
		w.links[l.index] = l
	}
	w.mu.Unlock()
	present := map[int]bool{}
	for _, l := range links {
		present[l.index] = true
		w.appeared(l)
	}
	for _, d := range w.Devices() {
		if !present[d.Index] {
			w.gone(d.Index)
		}
	}
	if open {
		w.succeed()
	}
	return nil
}

// begin takes back devices from other instances when this one begins to answer.
func (w *Watcher) begin(open bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if open && !w.opened {
		for _, d := range w.devices {
			d.displaced = false
		}
	}
	w.opened = open
}

// succeed removes filters that other instances of this program left on the devices, also
// where a policy holds. An instance that runs in the place of ours stays.
func (w *Watcher) succeed() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, d := range w.devices {
		if d.displaced {
			continue
		}
		fault := ""
		if err := w.how.succeed(d.Index, false); err != nil {
			fault = err.Error()
		}
		if d.beside != fault && fault != "" {
			w.config.Log.Warningf("%s: a filter of another instance stays; tried again every %s: %s", d.Name, syncEvery, fault)
		}
		d.beside = fault
	}
}

func (w *Watcher) survey() (uplinks []string, links []device, err error) {
	if uplinks, err = w.config.Uplinks(); err == nil {
		links, err = listLinks(w.config.Lists)
	}
	return uplinks, links, err
}

// askPolicies detaches where a policy says so now. It needs nothing of the kernel.
func (w *Watcher) askPolicies() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, d := range w.devices {
		w.isLeft(d)
	}
}

// isLeft reports whether a policy leaves the device alone, and detaches then. A program of
// others behind ours may be one.
func (w *Watcher) isLeft(d *Device) bool {
	why := w.config.Leave(d.Name, d.Index)
	if why == "" && d.behind != "" && !w.config.Force {
		why = d.behind + " would not see the queries that the kernel answers"
	}
	if why == "" {
		return false
	}
	d.displaced = false
	if w.detach(d) {
		w.problem(d, why)
	}
	return true
}

// appeared attaches to a device, or detaches from one that is no pod's any more.
func (w *Watcher) appeared(l device) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.links[l.index] = l
	for _, d := range w.devices {
		if d.master == l.index {
			w.tellBridge(d)
		}
	}
	d := w.devices[l.index]
	if l.kind != "veth" || slices.Contains(w.uplinks, l.name) || w.isUplink(l.master) {
		if d != nil && w.detach(d) {
			w.forget(d)
		}
		return
	}
	if d == nil {
		d = &Device{Index: l.index}
		w.devices[l.index] = d
	}
	d.Name, d.master = l.name, l.master
	w.tellBridge(d)
	n, err := w.how.look(d.Index)
	if err == nil {
		d.behind = n.behind
	}
	switch {
	case w.isLeft(d):
	case d.Attached == "" && !d.displaced:
		w.attach(d)
	case d.stuck:
		d.stuck = false // it may stay attached
	case err != nil: // the device is gone, or the kernel does not tell
	case !n.attached:
		w.detached(d, n.rival)
	case n.before != "":
		w.problem(d, n.before+" runs before ours, and may end the way of a query")
	default:
		w.problem(d, "")
	}
}

// isUplink reports whether a bridge or bond leads to the rest of the world. Its ports are
// left alone then: one of them is the way there. One that is not known yet counts as such
// until the next sync.
func (w *Watcher) isUplink(master int) bool {
	if master == 0 {
		return false
	}
	l, known := w.links[master]
	return !known || slices.Contains(w.uplinks, l.name)
}

// tellBridge tells the program the address of the device's bridge where it has changed. Until
// it knows, CoreDNS answers. A fault is the next sync's.
func (w *Watcher) tellBridge(d *Device) {
	var mac net.HardwareAddr
	if l := w.links[d.master]; l.kind == "bridge" {
		mac = l.mac
	}
	if !bytes.Equal(d.bridge, mac) && w.config.Bridge(d.Index, mac) == nil {
		d.bridge = mac
	}
}

// forget ends the following of a device from which the program is detached.
func (w *Watcher) forget(d *Device) {
	d.master = 0
	w.tellBridge(d)
	delete(w.devices, d.Index)
}

func (w *Watcher) attach(d *Device) {
	remove, err := w.how.attach(d.Index)
	if errors.Is(err, ebpf.ErrNotSupported) && w.how.name() == "tcx" {
		w.how = newClsact(w.config.Program)
		remove, err = w.how.attach(d.Index)
	}
	switch {
	case errors.Is(err, unix.ENODEV):
		return // it is gone already
	case err != nil:
		w.problem(d, fmt.Sprintf("attach with %s: %v", w.how.name(), err))
		return
	}
	d.Attached, d.remove = w.how.name(), remove
	w.problem(d, "")
}

// told is what the log says of a problem.
func told(d *Device, why string) string {
	if d.Attached != "" {
		return why
	}
	return "the kernel answers no queries here, CoreDNS does: " + why
}

// problem notes and logs why queries by a device are left to CoreDNS, when that changes.
func (w *Watcher) problem(d *Device, why string) {
	if d.Problem == why {
		return
	}
	if d.Problem = why; why != "" {
		w.config.Log.Warningf("%s: %s", d.Name, told(d, why))
	}
}

// detached attaches again, unless another instance has taken the place: two that answer
// would remove each other's filters without end.
func (w *Watcher) detached(d *Device, rival bool) {
	if !w.detach(d) {
		return // the next sync tells
	}
	if d.displaced = rival; rival {
		w.problem(d, "another instance of this program has taken the place of ours")
		return
	}
	w.problem(d, "another program has detached ours; it is attached again now")
	w.attach(d)
}

func (w *Watcher) gone(index int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.links, index)
	w.how.forget(index)
	if d := w.devices[index]; d != nil {
		w.detach(d)
		w.forget(d)
	}
}

// detach detaches from a device, and reports whether the program is gone. The next sync
// tries again if not. With the device the program is gone already, but not the descriptor of
// its link.
func (w *Watcher) detach(d *Device) bool {
	if d.remove == nil {
		return true
	}
	if err := d.remove(); err != nil && !errors.Is(err, unix.ENODEV) {
		d.stuck = true
		problem := fmt.Sprintf("detach: %v", err)
		if d.Problem != problem {
			d.Problem = problem
			w.config.Log.Errorf("%s: the kernel may still answer queries here; tried again every %s: %s", d.Name, syncEvery, problem)
		}
		return false
	}
	d.Attached, d.remove, d.stuck = "", nil, false
	return true
}

func (w *Watcher) detachAll() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, index := range slices.Sorted(maps.Keys(w.devices)) {
		// What instances left that were killed stays also where we end before we answer.
		if err := w.how.succeed(index, true); err != nil {
			w.config.Log.Warningf("%s: a filter of an instance that has ended stays: %v", w.devices[index].Name, err)
		}
		w.detach(w.devices[index])
	}
	clear(w.devices)
}
