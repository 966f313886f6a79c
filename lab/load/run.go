package load

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/lab"
	"github.com/trackless-dns/trackless/lab/kubeproxy"
)

// MaxOutstanding bounds the sockets a load has open at once, below what the
// process may open.
const MaxOutstanding = 16384

// overdue is when a query stops to count as being on its way.
const overdue = time.Second

// Run sends the load from the node's pods and the node itself, and returns
// when every query was answered or given up. That queries are lost is no error
// but part of the result; an error means that the load could not be sent as
// planned, or that the context ended.
func Run(ctx context.Context, n *lab.Node, load Load) (*Result, error) {
	load, err := load.WithDefaults(n)
	if err != nil {
		return nil, err
	}
	return send(ctx, n, load, load.plan(len(n.Pods)))
}

// warmTries is how often Warm asks. Nothing of it is measured, and a busy machine may lose
// a query.
const warmTries = 3

// Warm asks for everything that the load asks for repeatedly, so that a cache has it. It
// asks again if an answer is lost. That one is lost each time is an error.
func Warm(ctx context.Context, n *lab.Node, load Load) error {
	load, err := load.WithDefaults(n)
	if err != nil {
		return err
	}
	load.Progress = nil
	var figures Figures
	for range warmTries {
		result, err := send(ctx, n, load, warmPlan(load))
		if err != nil {
			return err
		}
		if figures = result.Figures(); figures.Lost == 0 {
			return nil
		}
	}
	return fmt.Errorf("warm the cache: %d of %d queries lost%s", figures.Lost, figures.Queries, Losses(figures.LostTo))
}

func send(ctx context.Context, n *lab.Node, load Load, plan []plannedQuery) (*Result, error) {
	run := &run{
		load:    load,
		plan:    plan,
		open:    make(chan struct{}, socketBudget()),
		slots:   make(chan struct{}, load.Outstanding),
		started: time.Now(),
	}
	run.attempts = make([]attempt, len(run.plan))
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	run.fail = cancel

	stopProgress := run.reportProgress()
	var senders sync.WaitGroup
	for origin := FromNode; origin < len(n.Pods); origin++ {
		ns := n.Namespace
		if origin != FromNode {
			ns = n.Pods[origin].Namespace
		}
		senders.Go(func() {
			if err := ns.Do(func() error { return run.send(ctx, origin) }); err != nil {
				cancel(err)
			}
		})
	}
	senders.Wait()
	run.waiting.Wait()
	stopProgress()
	if err := context.Cause(ctx); err != nil {
		return nil, fmt.Errorf("send DNS load: %w", err)
	}
	return &Result{Elapsed: time.Since(run.started), plan: run.plan, attempts: run.attempts}, nil
}

// run is a load on its way.
type run struct {
	load     Load
	plan     []plannedQuery
	attempts []attempt // one for each query of the plan
	started  time.Time
	fail     context.CancelCauseFunc

	open    chan struct{} // holds a token for every open socket
	slots   chan struct{} // holds a token for every query that is on its way and not overdue
	waiting sync.WaitGroup
	done    atomic.Int64
}

// send sends the queries of one origin when they are due. It runs on a thread
// inside the origin's namespace, since that is where a socket belongs that is
// made there; who waits for the answer no longer matters.
func (r *run) send(ctx context.Context, origin int) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for i, q := range r.plan {
		if q.origin != origin {
			continue
		}
		due := r.started.Add(time.Duration(i) * time.Second / time.Duration(r.load.Rate))
		if wait := time.Until(due); wait > 0 {
			timer.Reset(wait)
			select {
			case <-timer.C:
			case <-ctx.Done():
				return nil
			}
		}
		for _, tokens := range []chan struct{}{r.slots, r.open} {
			select {
			case tokens <- struct{}{}:
			case <-ctx.Done():
				return nil
			}
		}
		leaveSlot := sync.OnceFunc(func() { <-r.slots })
		fd, err := lab.OpenSocket(q.protocol, q.ipv6)
		if err != nil {
			return err
		}
		r.waiting.Go(func() {
			late := time.AfterFunc(overdue, leaveSlot)
			r.attempts[i] = r.ask(ctx, fd, q, uint16(i))
			late.Stop()
			leaveSlot()
			<-r.open
			r.done.Add(1)
		})
	}
	return nil
}

// ask makes one attempt and closes its socket.
func (r *run) ask(ctx context.Context, fd int, q plannedQuery, id uint16) attempt {
	asked := q.name()
	query := new(dns.Msg).SetQuestion(asked.Text, q.qtype)
	query.Id = id
	wire, err := query.Pack()
	if err != nil {
		r.fail(fmt.Errorf("pack the query for %s: %w", asked.Text, err))
		return attempt{}
	}
	server := netip.AddrPortFrom(kubeproxy.Address(r.load.Targets, q.ipv6), lab.DNSPort)
	begin := time.Now()
	wire, err = lab.Exchange(ctx, fd, q.protocol, q.port, server, wire, r.load.Timeout)
	latency := time.Since(begin)
	if err != nil {
		if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) {
			r.fail(err)
		}
		return attempt{loss: Reason(err)}
	}
	response := new(dns.Msg)
	if err := response.Unpack(wire); err != nil {
		return attempt{loss: "malformed response"}
	}
	if err := asked.Check(response, q.qtype); err != nil {
		if response.Rcode != dns.RcodeSuccess {
			return attempt{loss: dns.RcodeToString[response.Rcode]}
		}
		return attempt{loss: "wrong answer"}
	}
	return attempt{latency: latency, by: lab.Identify(response)}
}

// Reason names a loss in few words, the same for all losses of a kind.
func Reason(err error) string {
	var errno syscall.Errno
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return "timeout"
	case errors.As(err, &errno):
		return errno.Error()
	}
	return err.Error()
}

// reportProgress calls Load.Progress until the returned function is called.
func (r *run) reportProgress() (stop func()) {
	if r.load.Progress == nil {
		return func() {}
	}
	quit := make(chan struct{})
	var reporter sync.WaitGroup
	reporter.Go(func() {
		ticker := time.NewTicker(200 * time.Millisecond)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				r.load.Progress(int(r.done.Load()))
			case <-quit:
				r.load.Progress(int(r.done.Load()))
				return
			}
		}
	})
	return func() { close(quit); reporter.Wait() }
}

// socketBudget is how many sockets a load may have open: all that the process
// may open but a few hundred.
func socketBudget() int {
	const reserve = 256
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil || limit.Cur < 2*reserve {
		return reserve
	}
	return int(min(limit.Cur-reserve, MaxOutstanding))
}
