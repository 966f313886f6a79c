// Package take takes a snapshot of a node: it watches the connection tracking table
// for a while and writes down what was there.
package take

import (
	"cmp"
	"context"
	"errors"
	"os"
	"time"

	"github.com/trackless-dns/trackless/conntrack"
	"github.com/trackless-dns/trackless/conntrack/reread"
	"github.com/trackless-dns/trackless/conntrack/summary"
	"github.com/trackless-dns/trackless/conntrack/sysctl"
	"github.com/trackless-dns/trackless/iptables/control"
	"github.com/trackless-dns/trackless/node/host"
	"github.com/trackless-dns/trackless/node/snapshot"
)

// Options say what is read, and for how long.
type Options struct {
	Node     string        // its name, "" for NODE_NAME of the environment or the host's
	Window   time.Duration // how long the table is watched, 0 for one reading
	Events   bool          // count new entries by the kernel's events
	Top      int           // length of the lists of addresses and ports
	Versions snapshot.Versions

	// Rules fills in what untracks DNS here, and returns the control sockets of the
	// instances, which are asked what they save.
	Rules func(context.Context, *snapshot.Snapshot) []*control.Client

	Progress reread.Progress
}

// Snapshot reads the node from the calling thread's namespace. The snapshot is nil if
// there is no table to read; an error beside it says that the entries could not
// be read.
func Snapshot(ctx context.Context, o Options) (*snapshot.Snapshot, error) {
	if _, err := sysctl.ReadLimits(""); err != nil {
		return nil, err
	}
	s := &snapshot.Snapshot{
		Schema:   snapshot.Schema,
		Versions: o.Versions,
		Counters: []snapshot.Counter{}, Listeners: []snapshot.Listener{}, Samples: []snapshot.Sample{},
	}
	missing := func(err error) {
		if err != nil {
			s.Missing = append(s.Missing, err.Error())
		}
	}
	missing(ReadNode(s, o.Node))
	settings, err := sysctl.ReadSettings("/")
	missing(err)
	s.Settings = map[string]uint64{}
	for _, setting := range settings {
		s.Settings[setting.Name] = setting.Value
	}

	w, err := startWatch(o, settings)
	if err != nil {
		return nil, err
	}
	defer w.close()
	w.sockets = o.Rules(ctx, s)
	if err := w.run(ctx, o.Progress); err != nil {
		return nil, err
	}
	w.finish(s)

	table, err := summary.ReadTable(conntrack.Filter{}, o.Top, o.Progress)
	if table == nil {
		return nil, err
	}
	s.Time = table.Time
	s.Table = snapshot.Table{
		Entries: table.Entries, Limit: table.Limit, Buckets: table.Buckets, FillPercent: table.FillPercent,
		MemoryBytes: table.Memory.NowBytes, MemoryLimitBytes: table.Memory.LimitBytes, Expectations: table.Expectations,
	}
	s.Table.SetSummary(table.Summary)
	s.Missing = append(s.Missing, table.Missing...)
	return s, err
}

// ReadNode fills in which node this is.
func ReadNode(s *snapshot.Snapshot, name string) error {
	name = cmp.Or(name, os.Getenv("NODE_NAME"))
	var hostErr error
	if name == "" {
		name, hostErr = os.Hostname()
	}
	var err error
	s.Node, err = snapshot.ReadNode("/", name)
	s.Node.NetworkNamespace = control.Self().NetNamespace
	var memoryErr error
	s.Node.MemoryBytes, memoryErr = host.MemTotal("/")
	return errors.Join(hostErr, err, memoryErr)
}
