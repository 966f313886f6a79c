package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/lab"
	"github.com/trackless-dns/trackless/test/bench/fastpath/generator"
)

// dnsperf asks one query after the other, as many as it can, from 16 sockets with 200
// queries under way: the server is saturated, and packets seldom wait for it together.
type dnsperf struct {
	generator.Options
	Binary string
}

// askDNSPerf plays the load of the options with dnsperf.
func askDNSPerf(argument string) (err error) {
	var o dnsperf
	if err := json.Unmarshal([]byte(argument), &o); err != nil {
		return err
	}
	names, err := os.CreateTemp("", "trackless-dnsperf-")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(names.Name()) }()
	for i := range o.Names {
		fmt.Fprintln(names, lab.HostName(o.First+i).Text, "A")
	}
	if err := names.Close(); err != nil {
		return err
	}
	out, err := exec.Command(o.Binary, "-s", o.Server.Addr().String(), "-p", fmt.Sprint(o.Server.Port()), "-d", names.Name(),
		"-c", "16", "-q", "200", "-T", "1", "-t", "1", "-l", fmt.Sprint(int(o.Last.Seconds()))).CombinedOutput()
	if err != nil {
		return fmt.Errorf("run %s: %w: %s", o.Binary, err, out)
	}
	r, err := dnsperfResult(string(out))
	if err != nil {
		return err
	}
	if r.CPU, err = processorTimeOf(unix.RUSAGE_CHILDREN); err != nil {
		return err
	}
	own, err := processorTimeOf(unix.RUSAGE_SELF)
	if err != nil {
		return err
	}
	r.Process = r.CPU + own
	return json.NewEncoder(os.Stdout).Encode(r)
}

func processorTimeOf(who int) (time.Duration, error) {
	var u unix.Rusage
	err := unix.Getrusage(who, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), err
}

var (
	dnsperfSent      = regexp.MustCompile(`Queries sent: +(\d+)`)
	dnsperfCompleted = regexp.MustCompile(`Queries completed: +(\d+)`)
	dnsperfRight     = regexp.MustCompile(`Response codes:.* NOERROR (\d+)`)
	dnsperfTook      = regexp.MustCompile(`Run time \(s\): +([\d.]+)`)
)

// dnsperfResult reads the statistics of dnsperf.
func dnsperfResult(out string) (*generator.Result, error) {
	var numbers [4]float64
	for i, of := range []*regexp.Regexp{dnsperfSent, dnsperfCompleted, dnsperfRight, dnsperfTook} {
		found := of.FindStringSubmatch(out)
		if found == nil {
			return nil, fmt.Errorf("dnsperf tells no %q: %s", of, out)
		}
		n, err := strconv.ParseFloat(found[1], 64)
		if err != nil {
			return nil, fmt.Errorf("dnsperf tells %q: %w", found[0], err)
		}
		numbers[i] = n
	}
	sent, completed, right := int(numbers[0]), int(numbers[1]), int(numbers[2])
	return &generator.Result{
		Sent: sent, Answered: right, Wrong: completed - right,
		Took: time.Duration(numbers[3] * float64(time.Second)),
	}, nil
}
