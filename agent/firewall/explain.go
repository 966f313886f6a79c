package firewall

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/hostrules"
	"github.com/trackless-dns/trackless/iptables/owner"
	"github.com/trackless-dns/trackless/iptables/route"
)

// Explain names the rules and eBPF programs of others that may defeat our rules for the
// address. Such rules see its DNS before conntrack does, such programs see packets or
// sockets before any rule. It returns "" if there are none.
func Explain(a netip.Addr) string {
	found := conflicts(a)
	found = append(found, programs(a)...)
	if len(found) == 0 {
		return ""
	}
	return "conflicting rules or programs: " + strings.Join(found, "; ")
}

// conflicts describes other programs' rules for DNS to the address before conntrack, at
// most maxConflicts of them.
func conflicts(a netip.Addr) (found []string) {
	var endpoints []iptables.Endpoint
	for _, p := range []iptables.Proto{iptables.UDP, iptables.TCP} {
		endpoints = append(endpoints, iptables.Endpoint{Addr: a, Port: 53, Proto: p})
	}
	rules, err := hostrules.ConflictingRules(hostrules.Config{}, endpoints)
	if err != nil {
		found = append(found, fmt.Sprintf("other programs' rules cannot be read: %v", err))
	}
	for _, r := range rules {
		if len(r.Concerns) > 0 && len(found) < maxConflicts {
			found = append(found, describe(r))
		}
	}
	return found
}

// maxConflicts bounds a line of the log.
const maxConflicts = 3

func describe(r hostrules.ConflictingRule) string {
	program, may := "", ""
	if r.Legacy {
		program = " of iptables-legacy"
	}
	if !r.Certain {
		may = "may "
	}
	return fmt.Sprintf("chain %s of table %s %s%s %s%s %s (%s)",
		r.Chain, r.Family, r.Table, program, may, strings.Join(r.Effects, ", "), joinDirections(r.Directions), r.Text)
}

func joinDirections(directions []iptables.Direction) string {
	if slices.Equal(directions, []iptables.Direction{iptables.Response}) {
		return "the responses"
	}
	if len(directions) == 2 {
		return "queries and responses"
	}
	return "the queries"
}

// Attach types of programs (enum bpf_attach_type, linux/bpf.h).
const (
	attachConnect4, attachConnect6 = 10, 11
	attachSendmsg4, attachSendmsg6 = 14, 15
	attachTCXIngress               = 46
)

// programs names eBPF programs that handle DNS before netfilter does. A load balancer at
// the sockets rewrites a Service address before there is a packet. A program at a device
// may make packets bypass all hooks. Programs at classic tc are not found, and those of
// instances, this one or another, are left out.
func programs(a netip.Addr) []string {
	var out []string
	connect, sendmsg := uint32(attachConnect4), uint32(attachSendmsg4)
	if a.Is6() {
		connect, sendmsg = attachConnect6, attachSendmsg6
	}
	if root, err := os.Open("/sys/fs/cgroup"); err == nil {
		defer root.Close()
		if n := len(programsAt(uint32(root.Fd()), connect)) + len(programsAt(uint32(root.Fd()), sendmsg)); n > 0 {
			out = append(out, fmt.Sprintf("%d eBPF programs at the sockets of all processes, as of a load balancer that replaces kube-proxy", n))
		}
	}
	links, err := route.Links()
	if err != nil {
		return out
	}
	var devices []string
	for _, l := range links {
		foreign := func(id uint32) bool { return !owner.IsProgram(id) }
		if slices.ContainsFunc(programsAt(l.Index, attachTCXIngress), foreign) {
			devices = append(devices, l.Attributes.Name)
		}
	}
	if len(devices) > 0 {
		out = append(out, "eBPF programs at the ingress of "+strings.Join(devices, " "))
	}
	return out
}

// programsAt is bpf(BPF_PROG_QUERY) for the descriptor of a cgroup or the index of a device.
// It returns the ids of the programs, at most 64, and none if the query is not allowed.
func programsAt(target, attachType uint32) []uint32 {
	const progQuery = 16
	var ids [64]uint32
	// The query part of union bpf_attr: target_fd or target_ifindex, attach_type,
	// query_flags, attach_flags, prog_ids, prog_cnt, and room for what later kernels write
	// whatever the size, such as a revision.
	attr := struct {
		target, attachType, queryFlags, attachFlags uint32
		ids                                         *[len(ids)]uint32
		count, _                                    uint32
		_                                           [128]byte
	}{target: target, attachType: attachType, ids: &ids, count: uint32(len(ids))}
	_, _, errno := unix.Syscall(unix.SYS_BPF, progQuery, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	if errno != 0 && errno != unix.ENOSPC {
		return nil
	}
	return ids[:min(int(attr.count), len(ids))]
}
