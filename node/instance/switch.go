package instance

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/control"
	"github.com/trackless-dns/trackless/iptables/owner"
)

// SwitchOptions say which instances attach or detach.
type SwitchOptions struct {
	Attach  bool   // else they detach
	Socket  string // the one control socket to ask, "" for all
	PID     int    // the one process to ask, 0 for all
	Timeout time.Duration
}

// Switched is the JSON of one instance's answer.
type Switched struct {
	Table  string `json:"table,omitempty"`
	PID    int    `json:"pid,omitempty"`
	Socket string `json:"socket,omitempty"`
	State  string `json:"state,omitempty"`
	Error  string `json:"error,omitempty"`
}

// Switch has instances attach or detach and returns the answer of each. An
// error says that none could be asked.
func Switch(ctx context.Context, node Node, o SwitchOptions) ([]Switched, error) {
	// Tables tell of instances that no socket leads to. Reading them needs a
	// privilege that asking does not.
	instances, err := node.Instances()
	var unsupported *iptables.UnsupportedError
	if err != nil && !errors.Is(err, iptables.ErrPermission) && !errors.As(err, &unsupported) {
		return nil, err
	}
	found, silent := Reach(ctx, node, o.Socket, LocalPIDs(instances))
	unreached := beyondReach(instances, found, o)
	found = slices.DeleteFunc(found, func(r Reached) bool { return o.PID != 0 && r.PID() != o.PID })

	results := make([]Switched, len(found))
	ctx, cancel := context.WithTimeoutCause(ctx, o.Timeout, fmt.Errorf("no answer within %s; it goes on by itself", o.Timeout))
	defer cancel()
	var wg sync.WaitGroup
	for i, f := range found {
		wg.Go(func() { results[i] = switchOne(ctx, f, o.Attach) })
	}
	wg.Wait()
	results = append(results, unreached...)
	if o.Socket != "" || o.PID == 0 && len(unreached) == 0 {
		// A silent socket may belong to any of them.
		for _, s := range silent {
			results = append(results, Switched{Socket: s.Socket, Error: s.Err.Error()})
		}
	}
	if len(results) == 0 {
		return nil, NoAnswer(o.PID)
	}
	return results, nil
}

// Failures joins the errors of those that failed, nil if none did.
func Failures(results []Switched) error {
	var failed []string
	for _, r := range results {
		if r.Error != "" {
			failed = append(failed, r.Error)
		}
	}
	if len(failed) > 0 {
		return errors.New(strings.Join(failed, "; "))
	}
	return nil
}

func switchOne(ctx context.Context, f Reached, attach bool) Switched {
	do := f.Detach
	if attach {
		do = f.Attach
	}
	r := Switched{Table: f.Answer.Table, PID: f.PID(), Socket: f.Socket()}
	status, err := do(ctx)
	var refused *control.RefusedError
	switch {
	case errors.As(err, &refused):
		r.Error = fmt.Sprintf("pid %d refused: %s", r.PID, refused.Reason)
	case err != nil:
		r.Error = fmt.Sprintf("pid %d: %v", r.PID, err)
		if ctx.Err() != nil {
			// Ask the instance for its status: it may know why it takes so long.
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), StatusTimeout)
			defer cancel()
			if status, err := f.Status(ctx); err == nil && status.Reason != "" {
				r.Error += ": " + status.Reason
			}
		}
	default:
		r.State = status.State
	}
	return r
}

// beyondReach are the tables of living processes that answer on no socket.
func beyondReach(instances []iptables.Instance, found []Reached, o SwitchOptions) []Switched {
	if o.Socket != "" {
		return nil
	}
	var out []Switched
	for _, i := range instances {
		pid := i.Owner.LocalPID
		if pid == 0 {
			pid = i.Owner.PID
		}
		answers := slices.ContainsFunc(found, func(r Reached) bool { return r.Answer.Table == i.Table })
		if answers || i.Owner.Life == owner.Dead || o.PID != 0 && o.PID != pid {
			continue
		}
		what := fmt.Sprintf("table inet %s can be changed by its owner alone, %s, which answers on no control socket: name its socket with --socket if `trackless serve` was given another -control",
			i.Table, OwnerName(i.Owner))
		if i.Owner.LocalPID != 0 {
			what += fmt.Sprintf("; or end it with `kill %d`, which takes its rules away", i.Owner.LocalPID)
		}
		out = append(out, Switched{Table: i.Table, PID: pid, Error: what})
	}
	return out
}

// NoAnswer says that no instance answers, or not the one with that process id.
func NoAnswer(pid int) error {
	if pid != 0 {
		return fmt.Errorf("no instance with pid %d answers on this node; `trackless rules show` lists the instances", pid)
	}
	return fmt.Errorf("no instance answers on this node: is `trackless serve` running? In a container, run this inside it or as root on its host, or name the socket with --socket")
}
