package main

import (
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// result is what `load` prints.
type result struct {
	Sent     int   `json:"sent"`
	Answered int   `json:"answered"`
	Lost     int   `json:"lost"`   // not answered within the timeout, or refused by the host
	Failed   int   `json:"failed"` // answered, but not with NOERROR
	GapMS    int64 `json:"gap_ms"` // the longest time between two answers with NOERROR
	// Errors are the distinct failures and how many there were of each.
	Errors map[string]int `json:"errors,omitempty"`
	// FailedAt is when the first of them were asked.
	FailedAt []string `json:"failed_at,omitempty"`
}

// maxFailedAt is the length of FailedAt.
const maxFailedAt = 20

// load asks at a steady pace, each query from a port of its own, and never
// twice: a resolver in a pod would, so what is lost here costs it a timeout.
func load(args []string) error {
	fs := flag.NewFlagSet("load", flag.ExitOnError)
	server := fs.String("server", "10.96.0.10", "`address` to ask")
	proto := fs.String("proto", "udp", "udp or tcp")
	name := fs.String("name", "kubernetes.default.svc.cluster.local", "`name` to ask for; a * in it becomes a number of its own for each query, or see -names")
	names := fs.Int("names", 0, "a * in the name becomes a number below this, at random")
	fill := fs.Duration("fill", 0, "how long it takes until all -names are asked for, so that their TTLs do not end at a time")
	every := fs.Duration("every", 5*time.Millisecond, "pace")
	length := fs.Duration("for", 0, "how long; by default until the standard input ends")
	timeout := fs.Duration("timeout", 5*time.Second, "how long an answer may take")
	if err := fs.Parse(args); err != nil {
		return err
	}

	var (
		mu   sync.Mutex
		wg   sync.WaitGroup
		r    = result{Errors: map[string]int{}}
		last = time.Now()
	)
	gap := func() { r.GapMS = max(r.GapMS, time.Since(last).Milliseconds()) }
	failed := func(asked time.Time, why string) {
		r.Errors[why]++
		if len(r.FailedAt) < maxFailedAt {
			r.FailedAt = append(r.FailedAt, asked.UTC().Format("15:04:05.000"))
		}
	}
	query := func(name string) {
		asked := time.Now()
		a, err := exchange(*server, *proto, name, *timeout)
		mu.Lock()
		defer mu.Unlock()
		switch {
		case err != nil:
			r.Lost++
			failed(asked, reason(err))
		case a.Rcode != dns.RcodeToString[dns.RcodeSuccess]:
			r.Answered++
			r.Failed++
			failed(asked, a.Rcode)
		default:
			r.Answered++
			gap()
			last = time.Now()
		}
	}
	end := make(chan struct{})
	if *length > 0 {
		time.AfterFunc(*length, func() { close(end) })
	} else {
		go func() {
			_, _ = io.Copy(io.Discard, os.Stdin)
			close(end)
		}()
	}
	nameOf := naming(*name, *names, *fill)
	ticker := time.NewTicker(*every)
	defer ticker.Stop()
	for running := true; running; {
		n := r.Sent
		r.Sent++
		wg.Go(func() { query(nameOf(n)) })
		select {
		case <-ticker.C:
		case <-end:
			running = false
		}
	}
	mu.Lock()
	gap() // here, since what is lost keeps us waiting below
	mu.Unlock()
	wg.Wait()
	return printJSON(r)
}

// naming returns a function that puts a number in place of a star: of this process and the
// query, or at random one of so many. Those grow from 1 on during the time of fill.
func naming(name string, names int, fill time.Duration) func(query int) string {
	began := time.Now()
	return func(query int) string {
		number := fmt.Sprintf("%d-%d", time.Now().UnixNano()&0xffffff, query)
		if names > 0 {
			known := names
			if elapsed := time.Since(began); elapsed < fill {
				known = 1 + int(float64(known-1)*elapsed.Seconds()/fill.Seconds())
			}
			number = strconv.Itoa(rand.IntN(known))
		}
		return strings.Replace(name, "*", number, 1)
	}
}

// reason is an error less the ports in it, which differ each time.
func reason(err error) string {
	type unwrapper interface{ Unwrap() error }
	for {
		u, ok := err.(unwrapper)
		if !ok || u.Unwrap() == nil {
			return fmt.Sprint(err)
		}
		err = u.Unwrap()
	}
}
