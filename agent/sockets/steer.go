package sockets

import (
	"errors"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/internal/logger"
	"github.com/trackless-dns/trackless/internal/reuseport"
	"github.com/trackless-dns/trackless/internal/sockets"
	"github.com/trackless-dns/trackless/iptables"
)

// A Steering keeps what clients send in one of the instances that share their addresses
// during an update.
//
// Without it the kernel spreads clients over the sockets of both from the moment on that the
// successor opens its own: also before it reads them, and whatever waits in them is lost if
// it is killed. So an instance that is alone at an address attaches a program that chooses
// its own sockets. These keep their indexes when another instance comes: its sockets get
// nothing but its own checks. Leave ends that, while both are alive.
//
// It does so for the UDP sockets at the listen addresses, and for all TCP listeners: those
// for metrics and health, too. The zero value is ready once Log, Serves and Elsewhere are set.
type Steering struct {
	Log logger.Logger
	// Serves returns a function that tells whether this instance serves an address now, and
	// whether others do.
	Serves func() func(netip.Addr) (ours, others bool)
	// Elsewhere reports whether somebody else chooses the UDP sockets at an address.
	Elsewhere func(netip.AddrPort) bool

	fds func() []int // nil: all of this process; for tests

	mu     sync.Mutex
	places map[address]*place
	listen []iptables.Endpoint
	again  *time.Timer // nil: no other instance is here
	left   bool
	began  bool // it has looked, in this process
}

// address is one that sockets share.
type address struct {
	at  netip.AddrPort
	tcp bool
}

// lookAgain is the time between two looks while another instance shares an address.
const lookAgain = time.Second

// Look finds out who shares the addresses of this process, and chooses. It does so again
// until nobody does.
func (s *Steering) Look(listen []iptables.Endpoint) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.listen = listen
	s.look()
}

func (s *Steering) look() {
	if s.left {
		return
	}
	found, err := s.own()
	if err != nil {
		s.Log.Debugf("it cannot be seen who else listens here: %v", err)
	}
	shared, serves := err != nil, sync.OnceValue(s.Serves)
	for at, own := range found {
		p := s.places[at]
		shared = p.shared() || shared
		switch takes := s.takes(at, p, serves); {
		case p.first >= 0 && takes:
			p.chosen = true
			if err := reuseport.Attach(own.fd, s.choice(at, p)); err != nil {
				s.Log.Warningf("%s: an instance that replaces this one gets queries before it serves: %v", at.at, err)
			}
		case p.first < 0 && (takes || p.chosen):
			// The program may choose sockets of one that does not read them.
			p.chosen = false
			_ = reuseport.Detach(own.fd)
		}
	}
	if s.again != nil {
		s.again.Stop()
		s.again = nil
	}
	if shared {
		s.again = time.AfterFunc(lookAgain, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.again != nil { // Release may have been first
				s.look()
			}
		})
	}
}

// takes reports whether this instance is to get what clients send to an address.
func (s *Steering) takes(at address, p *place, serves func() func(netip.Addr) (ours, others bool)) bool {
	if !p.shared() {
		return true
	}
	// Another instance that does not serve hangs: what it keeps would be lost.
	ours, others := s.serves(at, serves())
	return ours && !others
}

// choice returns the program that chooses our sockets at an address.
func (s *Steering) choice(at address, p *place) []bpf.Instruction {
	if s.isListen(at) {
		return reuseport.BySource(at.at.Addr(), p.indexes())
	}
	return reuseport.Any(p.indexes())
}

// isListen reports whether it gets what is sent to a listen address, such as our checks: it is
// one, or the wildcard address.
func (s *Steering) isListen(at address) bool {
	proto := iptables.UDP
	if at.tcp {
		proto = iptables.TCP
	}
	return slices.ContainsFunc(s.listen, func(e iptables.Endpoint) bool {
		return e.Port == at.at.Port() && e.Proto == proto && (e.Addr == at.at.Addr() || at.at.Addr().IsUnspecified())
	})
}

// serves tells it of an address. The wildcard address, and those for metrics and health,
// belong to all listen addresses.
func (s *Steering) serves(at address, serves func(netip.Addr) (ours, others bool)) (ours, others bool) {
	if s.isListen(at) && !at.at.Addr().IsUnspecified() {
		return serves(at.at.Addr())
	}
	ours = true
	for _, e := range s.listen {
		o, t := serves(e.Addr)
		ours, others = ours && o, others || t
	}
	return ours, others
}

// Leave leaves new connections to the other instances at each address. Those that wait for
// our listeners are still accepted. For UDP see [LeaveToOthers].
func (s *Steering) Leave() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.left = true
	if s.again != nil {
		s.again.Stop()
	}
	found, err := s.own()
	for at, own := range found {
		p := s.places[at]
		if !at.tcp || !p.shared() || p.first < 0 {
			continue
		}
		err = errors.Join(err, reuseport.Attach(own.fd, reuseport.Any(p.others())))
	}
	return err
}

// Release leaves all to the kernel's own choice.
func (s *Steering) Release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.again != nil {
		s.again.Stop()
		s.again = nil
	}
	found, _ := s.own()
	for at, own := range found {
		if s.places[at].first >= 0 && !s.places[at].shared() {
			_ = reuseport.Detach(own.fd)
		}
	}
	s.places, s.left = nil, false
}

// ownSockets are those of this process at an address.
type ownSockets struct {
	fd     int // of one of them
	inodes []uint64
}

// own finds the sockets of this process, and brings their places up to date.
func (s *Steering) own() (map[address]*ownSockets, error) {
	found := map[address]*ownSockets{}
	fds := s.fds
	if fds == nil {
		fds = sockets.Descriptors
	}
	for _, fd := range fds() {
		at, ok := s.steered(fd)
		if !ok {
			continue
		}
		var stat unix.Stat_t
		if unix.Fstat(fd, &stat) != nil {
			continue
		}
		if found[at] == nil {
			found[at] = &ownSockets{fd: fd}
		}
		if !slices.Contains(found[at].inodes, stat.Ino) { // not a duplicate
			found[at].inodes = append(found[at].inodes, stat.Ino)
		}
	}
	all := map[bool]map[netip.AddrPort][]uint64{}
	for _, tcp := range []bool{false, true} {
		var at []netip.AddrPort
		for a := range found {
			if a.tcp == tcp {
				at = append(at, a.at)
			}
		}
		if len(at) == 0 {
			continue
		}
		bound, err := sockets.Bound("/proc/thread-self", tcp, at)
		if err != nil {
			return nil, err
		}
		all[tcp] = bound
	}
	places := map[address]*place{}
	for at, own := range found {
		p := s.places[at]
		if p == nil {
			p = &place{late: s.began}
		}
		p.seen(own.inodes, all[at.tcp][at.at])
		places[at] = p
	}
	s.places, s.began = places, true
	return found, nil
}

// steered returns the address of a socket that may share it.
func (s *Steering) steered(fd int) (at address, ok bool) {
	if reuse, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT); err != nil || reuse == 0 {
		return at, false
	}
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return at, false
	}
	at = address{at: sockets.NameOf(fd), tcp: kind == unix.SOCK_STREAM}
	if at.tcp {
		listens, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
		return at, err == nil && listens != 0
	}
	return at, kind == unix.SOCK_DGRAM && s.isListen(at) && !s.Elsewhere(at.at)
}

// Shared reports whether another process has sockets that get what is sent to an endpoint.
func Shared(e iptables.Endpoint) bool { return sockets.Shared(e.AddrPort(), e.Proto == iptables.TCP) }

// place is where our sockets are in the group of an address.
type place struct {
	first  int // the index of the first of them; negative: it is not known
	own    []uint64
	before []uint64 // of others, that came before ours
	all    int
	late   bool // the address came by a reload
	chosen bool // our program chooses, as far as we know
}

// seen follows who is in the group. A socket that comes is the last. One that goes changes
// the order of those behind it, so it is known where ours are if none before them went. Others
// that are there when this process begins came before. At an address that it gets by a reload
// they may have come later.
func (p *place) seen(own, all []uint64) {
	own = slices.Sorted(slices.Values(own))
	others := slices.DeleteFunc(slices.Clone(all), func(i uint64) bool { return slices.Contains(own, i) })
	isNew := p.own == nil
	same := slices.Equal(p.own, own)
	p.own, p.all = own, len(own)+len(others)
	switch {
	case len(others) == 0:
		p.first, p.before = 0, nil
	case isNew && !p.late:
		p.first, p.before = len(others), others
	case isNew || !same || slices.ContainsFunc(p.before, func(i uint64) bool { return !slices.Contains(others, i) }):
		p.first = -1
	}
}

// shared reports whether sockets of others are in the group.
func (p *place) shared() bool { return p.all > len(p.own) }

// indexes are those of our sockets, and others those of the others'.
func (p *place) indexes() (out []int) {
	for i := range p.own {
		out = append(out, p.first+i)
	}
	return out
}

func (p *place) others() (out []int) {
	for i := range p.all {
		if i < p.first || i >= p.first+len(p.own) {
			out = append(out, i)
		}
	}
	return out
}
