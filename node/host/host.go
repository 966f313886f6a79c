// Package host reads what acts on a node's connection tracking table from outside:
// the kernel's log, kube-proxy, saved rulesets, datapaths that bypass the hooks, and
// what a Trackless on the node saves.
//
// Paths are below an injected root, so that a host can be measured from a
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
	"strconv"
	"strings"

	"github.com/prometheus/procfs"
)

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

// metricAvoided is the gauge of Trackless's directive notrack.
const metricAvoided = "coredns_notrack_entries_avoided"

// Saved asks a Trackless what it saves: sums over the labels of its metrics, from
// the page at the URL. It asks from the calling thread's namespace, and so does without names: the host of
// the URL is an address.
func Saved(ctx context.Context, page string) (Savings, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, page, nil)
	if err != nil {
		return Savings{}, fmt.Errorf("metrics: %w", err)
	}
	// An http.Transport dials on a goroutine of its own, that is in any
	// namespace; the address is dialled here instead.
	conn, err := dialAddress(ctx, req.URL)
	if err != nil {
		return Savings{}, err
	}
	defer func() { _ = conn.Close() }()
	transport := &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(context.Context, string, string) (net.Conn, error) { return conn, nil },
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return Savings{}, fmt.Errorf("metrics: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return Savings{}, fmt.Errorf("metrics: %s answers %s", page, resp.Status)
	}
	const pageLimit = 16 << 20
	text, err := io.ReadAll(io.LimitReader(resp.Body, pageLimit))
	if err != nil {
		return Savings{}, fmt.Errorf("metrics: %w", err)
	}
	return savings(string(text))
}

// Savings are what a Trackless says on its page of metrics.
type Savings struct {
	// Entries are those that the table does not have.
	Entries uint64
	// Queries were asked of the cache. Search are those of them for an external name below a domain of a
	// search path, Cut those that the denial of another question answered. OnePass are replies for a whole
	// search path. All are 0 on the page of a version that does not count them.
	Queries, Search, Cut, OnePass uint64
}

func savings(page string) (s Savings, err error) {
	if s.Entries, err = sumMetric(page, metricAvoided); err != nil {
		return s, err
	}
	for name, n := range map[string]*uint64{
		"coredns_cache_requests_total": &s.Queries, "coredns_cache_search_total": &s.Search,
		"coredns_cache_cut_total": &s.Cut, "coredns_searchpath_answers_total": &s.OnePass,
	} {
		if *n, err = sumMetric(page, name); err != nil {
			*n = 0
		}
	}
	return s, nil
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
