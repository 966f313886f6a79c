// Package host measures what of a host bears on its connection tracking table
// beside the table itself: the kernel's log, the DNS servers that listen on the
// node, kube-proxy, and datapaths that pass the hooks by.
//
// Paths are below an injected root, so that a host can be looked at from a
// container that has it mounted, and so that tests bring their own.
package host

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/procfs"

	"github.com/trackless-dns/trackless/conntrack"
)

const dnsPort = 53

// MemTotal returns the machine's memory in bytes, from root/proc/meminfo.
func MemTotal(root string) (uint64, error) {
	fs, err := procfs.NewFS(filepath.Join(root, "proc"))
	if err != nil {
		return 0, fmt.Errorf("memory size: %w", err)
	}
	info, err := fs.Meminfo()
	if err != nil {
		return 0, fmt.Errorf("memory size: %w", err)
	}
	if info.MemTotalBytes == nil {
		return 0, errors.New("memory size: meminfo has no MemTotal")
	}
	return *info.MemTotalBytes, nil
}

// Kernel returns the version of Linux as {major, minor}, from
// root/proc/sys/kernel/osrelease; zero if it cannot be read.
func Kernel(root string) [2]int {
	b, err := os.ReadFile(filepath.Join(root, "proc/sys/kernel/osrelease"))
	if err != nil {
		return [2]int{}
	}
	var version [2]int
	if _, err := fmt.Sscanf(string(b), "%d.%d", &version[0], &version[1]); err != nil {
		return [2]int{}
	}
	return version
}

// Listeners returns the addresses on which DNS servers listen with UDP sockets,
// from proc/net of the process or thread directory proc ("/proc/thread-self").
// Sockets on loopback addresses are left out: they are resolvers of the node, not a
// cache for its pods. A socket on the wildcard address is one at each of the
// addresses held, which this node has for a cache, and at no other.
func Listeners(proc string, held ...netip.Addr) ([]netip.Addr, error) {
	return listeners(proc, func(uint64) bool { return true }, held)
}

// OtherListeners are those of other processes, without sockets on the wildcard
// address.
func OtherListeners(proc string) ([]netip.Addr, error) {
	own := map[string]bool{}
	names, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		return nil, fmt.Errorf("listening sockets: %w", err)
	}
	for _, name := range names {
		// A file that was closed meanwhile is none of them.
		if what, err := os.Readlink(name); err == nil {
			own[what] = true
		}
	}
	return listeners(proc, func(inode uint64) bool { return !own[fmt.Sprintf("socket:[%d]", inode)] }, nil)
}

// listeners takes the sockets into account whose inode counts.
func listeners(proc string, counts func(inode uint64) bool, held []netip.Addr) ([]netip.Addr, error) {
	fs, err := procfs.NewFS(proc)
	if err != nil {
		return nil, fmt.Errorf("listening sockets: %w", err)
	}
	v4, err := fs.NetUDP()
	if err != nil {
		return nil, fmt.Errorf("listening sockets: %w", err)
	}
	v6, err := fs.NetUDP6() // absent without IPv6
	if err != nil {
		v6 = nil
	}
	var list []netip.Addr
	for _, line := range slices.Concat(v4, v6) {
		addr, ok := netip.AddrFromSlice(line.LocalAddr)
		if !ok || line.LocalPort != dnsPort || addr.IsLoopback() || !counts(line.Inode) {
			continue
		}
		at := []netip.Addr{addr.Unmap()}
		if addr.IsUnspecified() {
			// That of IPv6 takes IPv4 too, unless the program said otherwise,
			// which cannot be seen from outside.
			at = slices.DeleteFunc(slices.Clone(held), func(h netip.Addr) bool { return addr.Is4() && h.Is6() })
		}
		list = append(list, at...)
	}
	slices.SortFunc(list, netip.Addr.Compare)
	return slices.Compact(list), nil
}

// HasListener reports whether a UDP socket is bound to exactly this address and
// port; that is not known, no.
func HasListener(proc string, at netip.AddrPort) bool {
	fs, err := procfs.NewFS(proc)
	if err != nil {
		return false
	}
	read := fs.NetUDP
	if at.Addr().Is6() {
		read = fs.NetUDP6
	}
	sockets, err := read()
	if err != nil {
		return false
	}
	for _, line := range sockets {
		addr, ok := netip.AddrFromSlice(line.LocalAddr)
		if ok && addr.Unmap() == at.Addr() && line.LocalPort == uint64(at.Port()) {
			return true
		}
	}
	return false
}

// Tracked reports whether a packet of the calling thread's namespace is tracked:
// one datagram is sent over the loopback device, from one socket of ours to
// another, and its entry is looked up, in all zones, and deleted.
func Tracked(c *conntrack.Conn) (bool, error) {
	server, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return false, fmt.Errorf("send a packet to ourselves: %w", err)
	}
	defer func() { _ = server.Close() }()
	client, err := net.DialUDP("udp4", nil, server.LocalAddr().(*net.UDPAddr))
	if err != nil {
		return false, fmt.Errorf("send a packet to ourselves: %w", err)
	}
	defer func() { _ = client.Close() }()
	if _, err := client.Write([]byte{0}); err != nil {
		return false, fmt.Errorf("send a packet to ourselves: %w", err)
	}
	// Over lo the packet has passed all hooks when it can be read.
	if err := server.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
		return false, err
	}
	if _, _, err := server.ReadFromUDPAddrPort(make([]byte, 1)); err != nil {
		return false, fmt.Errorf("a packet that we sent to ourselves did not arrive: %w", err)
	}
	from, to := client.LocalAddr().(*net.UDPAddr).AddrPort(), server.LocalAddr().(*net.UDPAddr).AddrPort()
	entry, err := c.Find(&conntrack.Tuple{
		Src: from.Addr().Unmap(), SrcPort: from.Port(), Dst: to.Addr().Unmap(), DstPort: to.Port(), Proto: conntrack.UDP,
	})
	if errors.Is(err, conntrack.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	_ = c.Delete(&entry) // it would be gone in 30 s anyway
	return true, nil
}

// metricAvoided is the gauge of Trackless's directive notrack.
const metricAvoided = "coredns_notrack_entries_avoided"

// Avoided asks a Trackless for the number of entries that it keeps out of the
// table: the sum over the labels of its metric, from the page at the URL. It asks
// from the calling thread's namespace, and so does without names: the host of
// the URL is an address.
func Avoided(ctx context.Context, page string) (uint64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, page, nil)
	if err != nil {
		return 0, fmt.Errorf("metrics: %w", err)
	}
	// An http.Transport dials on a goroutine of its own, that is in any
	// namespace; the address is dialled here instead.
	conn, err := dialAddress(ctx, req.URL)
	if err != nil {
		return 0, err
	}
	defer func() { _ = conn.Close() }()
	transport := &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(context.Context, string, string) (net.Conn, error) { return conn, nil },
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return 0, fmt.Errorf("metrics: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("metrics: %s answers %s", page, resp.Status)
	}
	const pageLimit = 16 << 20
	text, err := io.ReadAll(io.LimitReader(resp.Body, pageLimit))
	if err != nil {
		return 0, fmt.Errorf("metrics: %w", err)
	}
	return sumMetric(string(text), metricAvoided)
}

func dialAddress(ctx context.Context, u *url.URL) (net.Conn, error) {
	addr, err := netip.ParseAddr(u.Hostname())
	if u.Scheme != "http" || err != nil {
		return nil, fmt.Errorf("metrics: %s is not http:// with an address, such as http://127.0.0.1:9253/metrics", u)
	}
	port := u.Port()
	if port == "" {
		port = "80"
	}
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", net.JoinHostPort(addr.String(), port))
	if err != nil {
		return nil, fmt.Errorf("metrics: %w", err)
	}
	return conn, nil
}

// sumMetric adds the samples of one metric on a page in the Prometheus text format.
func sumMetric(page, name string) (uint64, error) {
	var sum float64
	found := false
	for line := range strings.Lines(page) {
		rest, ok := strings.CutPrefix(line, name)
		if !ok || rest == "" || rest[0] != '{' && rest[0] != ' ' {
			continue
		}
		if i := strings.LastIndexByte(rest, '}'); i >= 0 {
			rest = rest[i+1:]
		}
		fields := strings.Fields(rest)
		if len(fields) == 0 {
			continue
		}
		v, err := strconv.ParseFloat(fields[0], 64)
		if err != nil {
			return 0, fmt.Errorf("metrics: %s: %w", name, err)
		}
		sum += v
		found = true
	}
	if !found {
		return 0, fmt.Errorf("metrics: no %s on the page: not a Trackless, or one without the directive notrack", name)
	}
	return uint64(max(0, sum)), nil
}
