package checks

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/agent/sockets"
	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/reconcile"
	"github.com/trackless-dns/trackless/iptables/reconcile/lease"
)

// What a check waits for depends on how punctual our own timers are.
func TestPatience(t *testing.T) {
	const ms = time.Millisecond
	for _, tc := range []struct {
		name     string
		late     time.Duration // each look at the clock
		progress bool
		least    time.Duration // the wait, by the clock on the wall
		most     time.Duration
		starved  bool
	}{
		{"punctual", 0, false, checkTimeout, checkTimeout + 2*lease.Pulse, false},
		{"others are answered", 0, true, busyTimeout, busyTimeout + 2*lease.Pulse, false},
		{"a little late", 3 * ms, false, checkTimeout - 2*lease.Pulse, checkTimeout + 2*lease.Pulse, false},
		{"late by as much as it waits", lease.Pulse, false, 2 * checkTimeout * 3 / 4, 2 * checkTimeout, false},
		{"it does not run for seconds", 2 * time.Second, false, longestPatience, longestPatience + 3*time.Second, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			answered := uint64(0)
			ctx, cancel := context.WithCancelCause(t.Context())
			began := time.Now()
			p := &patience{
				progress: func() uint64 { return answered }, idle: checkTimeout, busy: busyTimeout,
				began: began, last: began, cancel: cancel, timer: time.NewTimer(time.Hour),
			}
			defer p.end()
			now := began
			for ctx.Err() == nil && now.Sub(began) < time.Minute {
				now = now.Add(lease.Pulse + tc.late)
				if tc.progress {
					answered++
				}
				p.look(now)
			}
			if waited := now.Sub(began); waited < tc.least || waited > tc.most {
				t.Errorf("it waited for %s, want %s to %s", waited, tc.least, tc.most)
			}
			err := explain(ctx, errors.New("timeout"))
			if got := errors.Is(err, reconcile.ErrStarved); got != tc.starved {
				t.Errorf("it failed with %v", err)
			}
			if explain(ctx, nil) != nil {
				t.Error("an answer is said to be none")
			}
		})
	}
}

// A listener that always answers the lease probe before the last holds the lease.
func TestALateAnswerRenews(t *testing.T) {
	server, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	listen := sockets.Unmap(server.LocalAddr().(*net.UDPAddr).AddrPort())
	e := iptables.Endpoint{Addr: listen.Addr(), Port: listen.Port(), Proto: iptables.UDP}
	own, other := identityOf(t), identityOf(t)
	for _, tc := range []struct {
		name   string
		label  string
		answer *Identity
		renews bool
	}{
		{"a lease probe", LeaseLabel, own, true},
		{"a check", CheckLabel, own, false},
		{"another instance's", LeaseLabel, other, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := New(Config{
				Identity: own, Zones: map[iptables.Endpoint]string{e: "."},
				Progress: func() uint64 { return 0 }, Lost: func() uint64 { return 0 },
			})
			conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = conn.Close() })
			if err := stamp(conn); err != nil {
				t.Fatal(err)
			}
			answer, err := tc.answer.Answer(own.Query(tc.label, "."), "one").Pack()
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan struct{})
			go func() {
				defer close(done)
				// Its answer is to another query than the one that it reads, and the next
				// copy of that shows that the answer was read.
				buf := make([]byte, dns.MinMsgSize)
				for n := range 4 {
					_, from, err := server.ReadFromUDPAddrPort(buf)
					if err != nil {
						return
					}
					if n == 0 {
						_, _ = server.WriteToUDPAddrPort(answer, from)
					}
				}
				cancel()
			}()
			began := time.Now()
			x, err := c.sendLease(e, conn)
			if err != nil {
				t.Fatal(err)
			}
			at, err := x.awaitLease(ctx)
			cancel()
			<-done
			if renewed := err == nil; renewed != tc.renews {
				t.Errorf("renewed %t, %v", renewed, err)
			}
			if err == nil && (at.Before(began) || at.After(time.Now())) {
				t.Errorf("renewed %s after the question", at.Sub(began))
			}
		})
	}
	if err := server.Close(); err != nil {
		t.Error(err)
	}
}
