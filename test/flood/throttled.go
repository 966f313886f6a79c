package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/procfs"

	"github.com/trackless-dns/trackless/internal/testcgroup"
	"github.com/trackless-dns/trackless/lab"
	"github.com/trackless-dns/trackless/lab/clients"
	"github.com/trackless-dns/trackless/test/flood/contained"
)

// What is asked of Trackless under a CPU limit.
const (
	// lapsesPerMinute is how often the lease may run out.
	lapsesPerMinute = 1.0

	// lostNoise is by how many percent of all queries two runs of the same server
	// under the same limit differ.
	lostNoise = 1.0

	// startSeconds is how long the work of a start takes part of the limit. A lease may run
	// out then, once, even under a load that fits afterwards.
	startSeconds = 3
)

// throttled is a server under a CPU limit and a steady load of cached names.
type throttled struct {
	*contained.Container
	quota time.Duration
	rate  int
	last  time.Duration
}

// A throttledResult is what became of the load. Its JSON form is stable.
type throttledResult struct {
	Server string `json:"server"`

	Queries     int     `json:"queries"`
	Lost        int     `json:"lost"`
	LostPercent float64 `json:"lost_percent"`

	// ElsewherePercent is how many of the queries kube-dns answered.
	ElsewherePercent float64 `json:"elsewhere_percent"`

	// LostBySecond is how many of the queries of each second were lost, and
	// ElsewhereBySecond how many of them kube-dns answered.
	LostBySecond      []int `json:"lost_by_second"`
	ElsewhereBySecond []int `json:"elsewhere_by_second"`

	P50MS float64 `json:"p50_ms"`
	P90MS float64 `json:"p90_ms"`

	// ThrottledPercent is in how many of the periods in which the server wanted
	// processor time it used up its limit.
	ThrottledPercent float64 `json:"throttled_percent"`

	// MilliCPU is the processor time that the server took, in thousandths of a
	// processor.
	MilliCPU float64 `json:"milli_cpu"`

	// Lapses are leases that ran out. Not of a server without the directive.
	Lapses int `json:"lapses"`

	Seconds     float64 `json:"seconds"`
	LoadAverage string  `json:"load_average"`

	Failures []string `json:"failures,omitempty"`
}

func (t *throttled) run(ctx context.Context, logs io.Writer) (r *throttledResult, err error) {
	t.Limits = testcgroup.Limits{CPU: t.quota}
	if err := t.Open(ctx); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, t.Close()) }()
	if logs != nil {
		defer func() {
			text, _ := os.ReadFile(t.Log)
			_, _ = logs.Write(text)
		}()
	}
	periods, without, err := t.Group.Throttled()
	if err != nil {
		return nil, err
	}
	usedBefore, began := processorTime(t.Running.PID()), time.Now()
	// One client in each pod, as many as there are.
	var streams []clients.Stream
	for _, pod := range t.Node.Pods {
		streams = append(streams, clients.Stream{
			Kind: clients.FreshPort, From: pod.Namespace, Target: lab.ClusterDNS4, Rate: float64(t.rate) / float64(len(t.Node.Pods)),
		})
	}
	load := clients.StartStreams(streams, 0)
	select {
	case <-time.After(t.last):
	case <-ctx.Done():
	}
	used := processorTime(t.Running.PID()) - usedBefore
	r = &throttledResult{Server: t.Name, Seconds: t.last.Seconds(), MilliCPU: 1000 * used.Seconds() / time.Since(began).Seconds()}
	sent, err := load.Stop()
	if err := errors.Join(err, ctx.Err()); err != nil {
		return nil, err
	}
	r.count(slices.Concat(sent...))
	if asked := int(float64(t.rate) * t.last.Seconds()); r.Queries < asked*9/10 {
		return nil, fmt.Errorf("this machine is too busy: %d queries were sent, it should have been %d", r.Queries, asked)
	}
	if text, err := os.ReadFile("/proc/loadavg"); err == nil {
		r.LoadAverage, _, _ = strings.Cut(string(text), " ")
	}
	all, throttled, err := t.Group.Throttled()
	if err != nil {
		return nil, err
	}
	r.ThrottledPercent = percent(throttled-without, all-periods)
	if t.NoTrack {
		r.Lapses, err = t.Lapses(ctx)
	}
	return r, err
}

// processorTime is that of a process so far, 0 if it is gone.
func processorTime(pid int) time.Duration {
	p, err := procfs.NewProc(pid)
	if err != nil {
		return 0
	}
	stat, err := p.Stat()
	if err != nil {
		return 0
	}
	return time.Duration(stat.CPUTime() * float64(time.Second))
}

// count adds what became of the queries.
func (r *throttledResult) count(sent []clients.Sent) {
	var latencies []time.Duration
	elsewhere := 0
	if len(sent) == 0 {
		return
	}
	began := slices.MinFunc(sent, func(a, b clients.Sent) int { return a.At.Compare(b.At) }).At
	for _, s := range sent {
		second := int(s.At.Sub(began).Seconds())
		for len(r.LostBySecond) <= second {
			r.LostBySecond, r.ElsewhereBySecond = append(r.LostBySecond, 0), append(r.ElsewhereBySecond, 0)
		}
		if r.Queries++; s.Loss != "" {
			r.Lost++
			r.LostBySecond[second]++
			continue
		}
		latencies = append(latencies, s.Latency)
		if s.By == lab.KubeDNS {
			elsewhere++
			r.ElsewhereBySecond[second]++
		}
	}
	r.LostPercent, r.ElsewherePercent = percent(r.Lost, r.Queries), percent(elsewhere, r.Queries)
	if slices.Sort(latencies); len(latencies) > 0 {
		r.P50MS = float64(latencies[len(latencies)/2].Microseconds()) / 1000
		r.P90MS = float64(latencies[len(latencies)*9/10].Microseconds()) / 1000
	}
}

func percent(part, whole int) float64 { return 100 * float64(part) / float64(max(whole, 1)) }

// judge notes what Trackless did not keep. bare is what became of the load at the
// same server without the directive. If lossless, nothing may be lost
// that is not lost there, and no lease may run out but one just after the start.
func (r *throttledResult) judge(bare *throttledResult, lossless bool) {
	fail := func(format string, args ...any) { r.Failures = append(r.Failures, fmt.Sprintf(format, args...)) }
	if lossless {
		if r.Lost > bare.Lost || r.Lapses > r.lapsesOfStart() {
			fail("%d queries were lost, without notrack %d, and the lease lapsed %d times: this load must cost nothing", r.Lost, bare.Lost, r.Lapses)
		}
		return
	}
	if most := lapsesPerMinute * max(r.Seconds/60, 1); float64(r.Lapses) > most {
		fail("the lease lapsed %d times in %.0f s, at most %.0f may be", r.Lapses, r.Seconds, most)
	}
	if r.LostPercent > bare.LostPercent+lostNoise {
		fail("%.2f %% of the queries were lost, without notrack %.2f %%", r.LostPercent, bare.LostPercent)
	}
}

// lapsesOfStart is 1 if kube-dns began to answer just after the start, and 0 otherwise.
func (r *throttledResult) lapsesOfStart() int {
	for _, n := range r.ElsewhereBySecond[:min(startSeconds, len(r.ElsewhereBySecond))] {
		if n > 0 {
			return 1
		}
	}
	return 0
}

const throttledFormat = "%-20s %9s %7s %8s %10s %9s %9s %6s %10s %7s %6s\n"

func writeThrottledHead(out io.Writer) {
	fmt.Fprintf(out, throttledFormat, "server", "queries", "lost", "lost", "kube-dns", "p50", "p90", "CPU", "throttled", "lapses", "load")
}

func (r *throttledResult) write(out io.Writer) {
	fmt.Fprintf(out, throttledFormat, r.Server, fmt.Sprint(r.Queries), fmt.Sprint(r.Lost), fmt.Sprintf("%.2f %%", r.LostPercent), fmt.Sprintf("%.1f %%", r.ElsewherePercent),
		fmt.Sprintf("%.1f ms", r.P50MS), fmt.Sprintf("%.1f ms", r.P90MS), fmt.Sprintf("%.0fm", r.MilliCPU), fmt.Sprintf("%.0f %%", r.ThrottledPercent), fmt.Sprint(r.Lapses), r.LoadAverage)
	for _, f := range r.Failures {
		fmt.Fprintf(out, "    %s\n", f)
	}
}
