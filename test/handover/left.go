package main

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/trackless-dns/trackless/conntrack"
	"github.com/trackless-dns/trackless/internal/sockets"
	"github.com/trackless-dns/trackless/lab"
)

// flow is an entry of the table.
type flow struct{ client, server netip.AddrPort }

// found are the entries of DNS to the listen addresses.
type found struct {
	tracked  map[flow]bool // queries
	reversed int           // answers that were tracked as flows of their own
}

func (b *bench) entries() (f found, err error) {
	listen := map[netip.Addr]bool{}
	for _, a := range b.node.ClusterDNS() {
		listen[a] = true
	}
	f.tracked = map[flow]bool{}
	err = b.conn.Dump(conntrack.Filter{}, func(e *conntrack.Entry) error {
		switch o := e.Original; {
		case listen[o.Src] && o.SrcPort == lab.DNSPort && o.DstPort != lab.DNSPort:
			f.reversed++
		case listen[o.Dst] && o.DstPort == lab.DNSPort:
			f.tracked[flow{netip.AddrPortFrom(o.Src, o.SrcPort), netip.AddrPortFrom(o.Dst, o.DstPort)}] = true
		}
		return nil
	})
	return f, err
}

// leftOver finds what a replacement has left on the node. Entries of before are not its own.
func (b *bench) leftOver(r *Round, before found) error {
	after, err := b.entries()
	if err != nil {
		return err
	}
	r.Reversed = after.reversed
	for f := range after.tracked {
		if !before.tracked[f] {
			r.Tracked++
		}
	}
	return b.node.Namespace.Do(func() error { return r.Left.read(b.node.ClusterDNS()) })
}

// Left is what instances have on a node.
type Left struct {
	Tables   int `json:"tables"`
	Handover int `json:"handover_sockets"`
	UDP      int `json:"udp_sockets"` // at the listen addresses
	TCP      int `json:"tcp_sockets"` // that listen there
	// Addresses are the listen addresses, of all devices. Links are of our name: a kernel
	// without dummies has none.
	Addresses int `json:"addresses"`
	Links     int `json:"links"`
	Programs  int `json:"programs"` // at most, at one device
}

var (
	instanceTable = regexp.MustCompile(`(?m)^table inet trackless-[0-9a-f]{8}$`)
	instanceLink  = regexp.MustCompile(`(?m)^\d+: nodelocaldns`)
)

// read reads it, in the namespace of the node.
func (l *Left) read(listen []netip.Addr) error {
	tables, err := exec.Command("nft", "list", "tables").Output()
	if err != nil {
		return fmt.Errorf("list tables: %w", err)
	}
	unix, err := os.ReadFile("/proc/thread-self/net/unix")
	if err != nil {
		return err
	}
	addresses, err := exec.Command("ip", "-o", "address").Output()
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	links, err := exec.Command("ip", "-o", "link").Output()
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	*l = Left{
		Tables:   len(instanceTable.FindAll(tables, -1)),
		Handover: strings.Count(string(unix), "@trackless/handover/"),
		Links:    len(instanceLink.FindAll(links, -1)),
	}
	var at []netip.AddrPort
	for _, a := range listen {
		at = append(at, netip.AddrPortFrom(a, lab.DNSPort))
	}
	for tcp, n := range map[bool]*int{false: &l.UDP, true: &l.TCP} {
		bound, err := sockets.Bound("/proc/thread-self", tcp, at)
		if err != nil {
			return err
		}
		for _, inodes := range bound {
			*n += len(inodes)
		}
	}
	for _, a := range listen {
		l.Addresses += strings.Count(string(addresses), " "+a.String()+"/")
	}
	devices, err := net.Interfaces()
	if err != nil {
		return err
	}
	for _, d := range devices {
		at, err := link.QueryPrograms(link.QueryOptions{Target: d.Index, Attach: ebpf.AttachTCXIngress})
		if err == nil { // since Linux 6.6
			l.Programs = max(l.Programs, len(at.Programs))
		}
	}
	return nil
}
