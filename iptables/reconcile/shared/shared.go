// Package shared lets goroutines share a lease machine, which has no lock of its own.
package shared

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/trackless-dns/trackless/iptables/reconcile/lease"
)

// Machine is a lease machine behind a lock that is held for moments only.
type Machine struct {
	mu   sync.Mutex
	m    *lease.Machine
	view atomic.Pointer[lease.View]
	told func(map[netip.Addr]time.Time) // of the leases, after each event; nil: nobody
}

// Start gives it a new machine. It comes before all other calls.
func (s *Machine) Start(now time.Time) { s.m = lease.New(now) }

// Tell runs events of the machine, and shows readers what came of them.
func (s *Machine) Tell(events func(*lease.Machine)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	events(s.m)
	s.view.Store(s.m.View())
	if s.told != nil {
		s.told(s.m.Leases())
	}
}

// OnLeases has told called with [lease.Machine.Leases], now and after each event, under a lock.
func (s *Machine) OnLeases(told func(map[netip.Addr]time.Time)) {
	s.Tell(func(*lease.Machine) { s.told = told })
}

// View returns what readers see. It takes no lock.
func (s *Machine) View() *lease.View { return s.view.Load() }

// Ask returns what the machine answers.
func Ask[T any](s *Machine, question func(*lease.Machine) T) T {
	s.mu.Lock()
	defer s.mu.Unlock()
	return question(s.m)
}
