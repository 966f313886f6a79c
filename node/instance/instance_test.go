package instance_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/control"
	"github.com/trackless-dns/trackless/iptables/owner"
	"github.com/trackless-dns/trackless/node/instance"
	"github.com/trackless-dns/trackless/node/nodetest"
)

func TestReach(t *testing.T) {
	first := nodetest.NewSocket("/run/trackless/control.sock", 7, "trackless-a")
	alias := nodetest.NewSocket(nodetest.InContainer(7), 7, "trackless-a")
	elsewhere := nodetest.NewSocket("/run/trackless/elsewhere.sock", 8, "trackless-b")
	elsewhere.State.Process.NetNamespace = 2
	stale := nodetest.NewSocket("/run/trackless/stale.sock", 9, "")
	stale.StatusErr = errors.New("connection refused")
	hung := nodetest.NewSocket("/run/trackless/hung.sock", 10, "")
	hung.StatusErr = context.DeadlineExceeded
	node := &nodetest.Node{Controls: []*nodetest.Socket{alias, first, elsewhere, stale, hung}}
	for _, tc := range []struct {
		name          string
		found, silent []string
	}{
		{"", []string{first.Name}, []string{hung.Name}},
		{elsewhere.Name, []string{elsewhere.Name}, nil}, // who names a socket means it
		{stale.Name, nil, []string{stale.Name}},
	} {
		found, silent := instance.Reach(t.Context(), node, tc.name, nil)
		var names, quiet []string
		for _, f := range found {
			names = append(names, f.Socket())
		}
		for _, s := range silent {
			quiet = append(quiet, s.Socket)
		}
		if !slices.Equal(names, tc.found) || !slices.Equal(quiet, tc.silent) {
			t.Errorf("socket %q: found %q, silent %q", tc.name, names, quiet)
		}
	}
}

func TestSwitch(t *testing.T) {
	living := iptables.Instance{Table: "trackless-c", Owner: owner.Owner{PID: 11, LocalPID: 11, Life: owner.Alive}}
	refusing := func() *nodetest.Socket {
		s := nodetest.NewSocket("/run/trackless/control-8.sock", 8, "trackless-b")
		s.SwitchErr = &control.RefusedError{Reason: "this process is stopping"}
		return s
	}
	for _, tc := range []struct {
		name    string
		options instance.SwitchOptions
		tables  []iptables.Instance
		asked   []string // of the two sockets
		results []string
		fails   string
	}{
		{"all attach", instance.SwitchOptions{Attach: true}, nil, []string{"attach", "attach"}, []string{"7 attached", "8 "}, "pid 8 refused"},
		{"one detaches", instance.SwitchOptions{PID: 7}, nil, []string{"detach", ""}, []string{"7 detached"}, ""},
		{"one without a socket", instance.SwitchOptions{PID: 11}, []iptables.Instance{living}, []string{"", ""}, []string{"11 "}, "`kill 11`"},
	} {
		node := &nodetest.Node{Tables: tc.tables, Controls: []*nodetest.Socket{nodetest.NewSocket("/run/trackless/control.sock", 7, "trackless-a"), refusing()}}
		tc.options.Timeout = time.Minute
		results, err := instance.Switch(t.Context(), node, tc.options)
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
		}
		var got, asked []string
		for _, r := range results {
			got = append(got, fmt.Sprintf("%d %s", r.PID, r.State))
		}
		for _, s := range node.Controls {
			asked = append(asked, s.Asked)
		}
		if !slices.Equal(got, tc.results) || !slices.Equal(asked, tc.asked) {
			t.Errorf("%s: results %q, asked %q", tc.name, got, asked)
		}
		if err := instance.Failures(results); (err != nil) != (tc.fails != "") || err != nil && !strings.Contains(err.Error(), tc.fails) {
			t.Errorf("%s: failures %v, want %q", tc.name, err, tc.fails)
		}
	}
	if _, err := instance.Switch(t.Context(), &nodetest.Node{}, instance.SwitchOptions{PID: 5, Timeout: time.Second}); err == nil {
		t.Error("nobody is there, and it is no error")
	}
}

func TestOwnerName(t *testing.T) {
	for want, o := range map[string]owner.Owner{
		"pid 7":                            {PID: 7, LocalPID: 7, Life: owner.Alive},
		"pid 815 (pid 1 in its container)": {PID: 1, LocalPID: 815, Life: owner.Alive},
		"pid 9":                            {PID: 9, Life: owner.Dead},
		"pid 1 of a container that cannot be seen from here": {PID: 1, Life: owner.Unknown},
		"a process that the table does not name":             {},
	} {
		if got := instance.OwnerName(o); got != want {
			t.Errorf("%+v is %q, want %q", o, got, want)
		}
	}
}
