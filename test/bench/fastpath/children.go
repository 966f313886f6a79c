package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/trackless-dns/trackless/lab"
	"github.com/trackless-dns/trackless/test/bench/fastpath/generator"
)

// Verbs of this program that a benchmark starts.
const (
	verbAsk     = "ask"     // a generator; its options are the argument, its result is written
	verbDNSPerf = "dnsperf" // a run of dnsperf, with the same argument and result
	verbEcho    = "echo"    // a server that sends every query back, until it is terminated
)

// ask plays the load of the options.
func ask(argument string) error {
	var o generator.Options
	if err := json.Unmarshal([]byte(argument), &o); err != nil {
		return err
	}
	debug.SetGCPercent(-1) // a load makes no garbage to speak of
	runtime.LockOSThread()
	r, err := generator.Run(o)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(r)
}

// echo is the least that a server in user space has to do: it reads a query, sets QR and
// writes it.
func echo(argument string) error {
	address, err := netip.ParseAddrPort(argument)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(address))
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { _ = conn.Close() })
	message := make([]byte, 512)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(message)
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		if n < 12 {
			continue
		}
		message[2] |= 0x80 // QR of RFC 1035 section 4.1.1
		if _, err := conn.WriteToUDPAddrPort(message[:n], from); err != nil && !errors.Is(err, net.ErrClosed) {
			return err
		}
	}
}

// asking is a running generator.
type asking struct {
	*lab.Child
	last time.Duration
}

// startAsking starts a generator in a pod, pinned to a CPU.
func startAsking(self string, pod *lab.Pod, cpu int, o generator.Options) (*asking, error) {
	return start(self, verbAsk, pod, cpu, o, o.Last)
}

func start(self, verb string, pod *lab.Pod, cpu int, options any, last time.Duration) (*asking, error) {
	argument, err := json.Marshal(options)
	if err != nil {
		return nil, err
	}
	child, err := pod.Start("generator", exec.Command("taskset", "-c", fmt.Sprint(cpu), self, verb, string(argument)))
	if err != nil {
		return nil, err
	}
	return &asking{Child: child, last: last}, nil
}

// wait waits until the generator has ended. A machine that is busy may keep it from
// that for a while.
func (a *asking) wait(ctx context.Context) (r generator.Result, err error) {
	const spare = time.Minute
	timer := time.NewTimer(a.last + spare)
	defer timer.Stop()
	select {
	case <-a.Done():
	case <-ctx.Done():
		return r, errors.Join(context.Cause(ctx), a.Kill())
	case <-timer.C:
		return r, errors.Join(fmt.Errorf("the generator did not end within %s of its time", spare), a.Kill())
	}
	if err := json.Unmarshal([]byte(a.Output()), &r); err != nil {
		return r, fmt.Errorf("a generator failed: %s", a.Output())
	}
	return r, nil
}
