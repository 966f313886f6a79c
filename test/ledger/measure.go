package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/trackless-dns/trackless/conntrack"
	"github.com/trackless-dns/trackless/lab"
	"github.com/trackless-dns/trackless/lab/clients"
)

const (
	metricsAddress = "127.0.0.1:9253"
	dnsPort        = 53

	// attempts bounds how often a load is repeated on a machine that is too busy
	// to send it in time.
	attempts = 3
)

// measureUndisturbed repeats the measurement until both nodes have got the same queries at
// the same time.
func measureUndisturbed(ctx context.Context, program string, l load) (*Result, error) {
	var r *Result
	for attempt := range attempts {
		var err error
		if r, err = measure(ctx, program, l); err != nil {
			return nil, err
		}
		r.Attempts = attempt + 1
		if len(r.Disturbances) == 0 {
			break
		}
		fmt.Fprintf(os.Stderr, "%s, attempt %d: disturbed: %s\n", l.name, r.Attempts, strings.Join(r.Disturbances, "; "))
	}
	r.judge()
	return r, nil
}

// measure sends the load to two nodes at once.
func measure(ctx context.Context, program string, l load) (r *Result, err error) {
	tracked, err := lab.NewNode(ctx, lab.Options{Program: program})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, tracked.Close()) }()
	untracked, err := lab.NewNode(ctx, lab.Options{Program: program})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, untracked.Close()) }()
	server, err := serve(ctx, untracked, l)
	if err != nil {
		return nil, err
	}
	table, err := openTable(tracked)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, table.Close()) }()
	left, err := openTable(untracked)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, left.Close()) }()

	r = &Result{Name: l.name, Load: l.what}
	began := time.Now()
	both := []*clients.Streams{clients.StartStreams(l.on(tracked), 0), clients.StartStreams(l.on(untracked), 0)}
	stopped := make(chan error, 1)
	var sent [2][][]clients.Sent
	go func() {
		select {
		case <-time.After(loadTime):
		case <-ctx.Done():
		}
		stopped <- stopBoth(both, &sent)
	}()
	watchErr := r.watch(ctx, began, server, table, left)
	if err := errors.Join(<-stopped, watchErr); err != nil {
		return nil, err
	}
	r.compareSent(l, began, sent)
	if lapses, err := value(ctx, server, "coredns_notrack_lease_lapses_total"); err != nil {
		return nil, err
	} else if lapses > 0 {
		r.Disturbances = append(r.Disturbances, fmt.Sprintf("%.0f leases ran out, and queries went to kube-dns", lapses))
	}
	if err := answeredInKernel(ctx, server, l, l.on(untracked), sent[1]); err != nil {
		return nil, err
	}
	r.ConntrackL, err = table.compareWithConntrackL(tracked)
	return r, errors.Join(err, server.Close())
}

// answeredInKernel returns an error if the load should have had hits, and had few: two of
// three clients are in pods.
func answeredInKernel(ctx context.Context, server *lab.Server, l load, streams []clients.Stream, sent [][]clients.Sent) error {
	if !l.hits {
		return nil
	}
	queries := 0
	for i, s := range streams {
		if s.Kind.Protocol() == lab.UDP {
			queries += len(sent[i])
		}
	}
	const least = 0.5
	hits, err := value(ctx, server, "coredns_fastpath_requests_total")
	if err == nil && hits < least*float64(queries) {
		err = fmt.Errorf("the kernel has answered %.0f of %d queries over UDP", hits, queries)
	}
	return err
}

// stopBoth ends both loads at the same time.
func stopBoth(both []*clients.Streams, sent *[2][][]clients.Sent) error {
	errs := make(chan error, len(both))
	for i, s := range both {
		go func() {
			var err error
			sent[i], err = s.Stop()
			errs <- err
		}()
	}
	return errors.Join(<-errs, <-errs)
}

// watch counts once a second. It skips seconds if the machine is too busy.
func (r *Result) watch(ctx context.Context, began time.Time, server *lab.Server, table, left *table) error {
	for second := 1; second <= int(watchTime/time.Second); second++ {
		select {
		case <-time.After(time.Until(began.Add(time.Duration(second) * time.Second))):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if time.Since(began) > time.Duration(second+1)*time.Second {
			r.Skipped++
			continue
		}
		// Entries come and go while the table is read. So the ledger is asked before
		// and after it.
		before, err := avoided(ctx, server)
		if err != nil {
			return err
		}
		from := time.Since(began)
		kernel, err := table.clients()
		if err != nil {
			return err
		}
		to := time.Since(began)
		after, err := avoided(ctx, server)
		if err != nil {
			return err
		}
		leaked, err := left.clients()
		if err != nil {
			return err
		}
		r.LeftOnUntracked = max(r.LeftOnUntracked, leaked)
		r.Seconds = append(r.Seconds, Second{
			Second: second, Kernel: kernel, Ledger: (before + after) / 2, Moved: math.Abs(after-before) / 2,
			counted: (from + to) / 2,
		})
	}
	return nil
}

// serve starts trackless on a node and waits until it is attached.
func serve(ctx context.Context, node *lab.Node, l load) (*lab.Server, error) {
	var listen []string
	for _, a := range node.ClusterDNS() {
		listen = append(listen, a.String())
	}
	hits := ""
	if l.hits {
		hits = "    fastpath {\n        kernel on\n        sockets off\n    }\n"
	}
	server, err := node.Serve(fmt.Sprintf(`.:53 {
    errors
    bind %s
    notrack
%s    cache 30
    forward . %s
    prometheus %s
}
`, strings.Join(listen, " "), hits, lab.UpstreamDNS4, metricsAddress))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	return server, server.AwaitAttached(ctx, metricsAddress)
}

// avoided returns how many entries the server says it avoids.
func avoided(ctx context.Context, server *lab.Server) (float64, error) {
	return value(ctx, server, "coredns_notrack_entries_avoided")
}

// value returns the sum of a metric over all labels.
func value(ctx context.Context, server *lab.Server, metric string) (float64, error) {
	metrics, err := server.Metrics(ctx, metricsAddress)
	if err != nil {
		return 0, err
	}
	n, ok := metrics.Sum(metric)
	if !ok {
		return 0, fmt.Errorf("the server has no metric %s", metric)
	}
	return n, nil
}

// table counts the entries of clients' queries on a node.
type table struct {
	*conntrack.Conn
	listen []netip.Addr
}

func openTable(node *lab.Node) (*table, error) {
	conn, err := conntrack.Dial(&conntrack.Config{NetNS: node.Namespace.FD()})
	return &table{conn, node.ClusterDNS()}, err
}

func (t *table) clients() (n int, err error) {
	for _, proto := range []conntrack.Protocol{conntrack.UDP, conntrack.TCP} {
		filter := conntrack.Filter{
			Protocols: []conntrack.Protocol{proto},
			DstPorts:  []conntrack.PortRange{{First: dnsPort, Last: dnsPort}},
		}
		err := t.Dump(filter, func(e *conntrack.Entry) error {
			if slices.Contains(t.listen, e.Original.Dst) {
				n++
			}
			return nil
		})
		if err != nil {
			return 0, err
		}
	}
	return n, nil
}

// compareWithConntrackL counts the same with the program conntrack. No query comes any
// more, so entries only expire: its number must lie between two of ours.
func (t *table) compareWithConntrackL(node *lab.Node) (ConntrackL, error) {
	var c ConntrackL
	var err error
	if c.Before, err = t.clients(); err != nil {
		return c, err
	}
	for _, family := range []string{"ipv4", "ipv6"} {
		var out []byte
		err := node.Namespace.Do(func() (err error) {
			out, err = exec.Command("conntrack", "-L", "-f", family).Output()
			return err
		})
		if err != nil {
			return c, fmt.Errorf("conntrack -L -f %s: %w", family, err)
		}
		for line := range strings.Lines(string(out)) {
			for _, a := range t.listen {
				// The original direction comes first.
				original, _, _ := strings.Cut(line, " dport=53 ")
				if strings.HasPrefix(line, "udp ") || strings.HasPrefix(line, "tcp ") {
					if strings.Contains(original+" ", " dst="+a.String()+" ") {
						c.Lines++
					}
				}
			}
		}
	}
	c.After, err = t.clients()
	return c, err
}
