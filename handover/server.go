package handover

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"time"
)

// Server gives the state of this process to successors.
type Server struct {
	key      []byte
	offers   func() []Offer
	done     func(Given)
	listener net.Listener
	tasks    sync.WaitGroup

	mu      sync.Mutex
	closing bool      // Close was called
	all     []*served // in the order in which they came
}

// stage is how far a successor is.
type stage int

const (
	greets stage = iota // it has not proved yet that it knows the key
	takes
	waits // for our end
)

// served is one successor.
type served struct {
	conn   net.Conn
	wire   *wire
	wanted []Section
	asked  time.Time
	stage  stage // guarded by Server.mu
}

// Given reports one handover to the process that gives.
type Given struct {
	// Known: the successor has proved that it knows the key. Any process on the node can
	// connect, and fail to prove it.
	Known    bool
	Sections int
	Bytes    int
	Took     time.Duration
	Err      error // why it is not whole, or why nothing was given
}

// NameOf returns the name of the socket of the instance with this table.
func NameOf(table string) string { return "@trackless/handover/" + table }

// Listen gives the sections that offers returns to successors that know the key, until
// Close. The socket has an abstract name, which ends with the process. done is called
// after each handover.
func Listen(name string, key []byte, offers func() []Offer, done func(Given)) (*Server, error) {
	listener, err := new(net.ListenConfig).Listen(context.Background(), "unix", name)
	if err != nil {
		return nil, fmt.Errorf("hand the state over to a successor: %w", err)
	}
	return serveOn(listener, key, offers, done), nil
}

func serveOn(listener net.Listener, key []byte, offers func() []Offer, done func(Given)) *Server {
	s := &Server{key: key, offers: offers, done: done, listener: listener}
	s.tasks.Go(s.accept)
	return s
}

// acceptPause is the pause after a connection could not be accepted: no descriptor is free,
// mostly.
const acceptPause = 20 * time.Millisecond

func (s *Server) accept() {
	for {
		conn, err := s.listener.Accept()
		switch {
		case errors.Is(err, net.ErrClosed):
			return // Close
		case err != nil:
			time.Sleep(acceptPause)
			continue
		}
		if err := sameUser(conn); err != nil {
			_ = conn.Close()
			s.done(Given{Err: err})
			continue
		}
		to := &served{conn: conn}
		if !s.admit(to) {
			_ = conn.Close()
			continue
		}
		s.tasks.Go(func() { s.serve(to) })
	}
}

// admit adds a connection. If there are too many, the oldest one that gives no proof goes,
// else the oldest one that waits: strangers and successors that hang keep nobody out.
func (s *Server) admit(to *served) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return false
	}
	if len(s.all) >= maxServed {
		oldest := func(at stage) int {
			return slices.IndexFunc(s.all, func(o *served) bool { return o.stage == at })
		}
		n := oldest(greets)
		if n < 0 {
			n = oldest(waits)
		}
		if n < 0 {
			return false
		}
		_ = s.all[n].conn.Close()
		s.all = slices.Delete(s.all, n, n+1)
	}
	s.all = append(s.all, to)
	return true
}

var errCrowd = errors.New("too many other instances are taking the state")

// enter notes how far a successor is. It reports whether Close was called.
func (s *Server) enter(to *served, next stage) (closing bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if next == takes {
		taking := 0
		for _, o := range s.all {
			if o.stage == takes {
				taking++
			}
		}
		if taking >= maxTaking {
			return s.closing, errCrowd
		}
	}
	to.stage = next
	return s.closing, nil
}

func (s *Server) leave(to *served) {
	_ = to.conn.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = slices.DeleteFunc(s.all, func(o *served) bool { return o == to })
}

func (s *Server) serve(to *served) {
	defer s.leave(to)
	var given Given
	begun := time.Now()
	last, err := s.give(to, &given)
	given.Took, given.Err = time.Since(begun), err
	s.done(given)
	if err != nil || !last {
		return
	}
	if closing, _ := s.enter(to, waits); !closing {
		// A successor sends nothing more: this ends with the connection, or by Close.
		var one [1]byte
		if _, err := to.conn.Read(one[:]); !errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
	}
	_ = s.send(to, atEnd, giveTime, &given)
}

// give hands the state over. last: the successor waits for our end.
func (s *Server) give(to *served, given *Given) (last bool, err error) {
	conn := to.conn
	if err := conn.SetDeadline(time.Now().Add(helloTime)); err != nil {
		return false, err
	}
	if to.wire, err = shakeHands(conn, predecessor, s.key); err != nil {
		return false, err
	}
	k, content, err := to.wire.read(maxRequest)
	to.asked = time.Now()
	if err != nil {
		return false, err
	}
	given.Known = true
	var r request
	if k != kindRequest {
		return false, errFrame
	}
	if err := json.Unmarshal(content, &r); err != nil {
		return false, fmt.Errorf("%w: %w", errFrame, err)
	}
	to.wanted = r.Sections
	if _, err := s.enter(to, takes); err != nil {
		return false, err
	}
	if err := s.send(to, whole, giveTime, given); err != nil {
		return false, err
	}
	return r.Last, conn.SetDeadline(time.Time{})
}

// giveTime limits how long a piece waits for the successor, which has a limit of its own.
const giveTime = 5 * time.Second

// A part of the state.
type part int

const (
	whole part = iota
	again
	atEnd
)

// in returns what gives that part of a section, nil if it has none.
func (p part) in(o Offer) func(time.Time, func([]byte) error) error {
	switch {
	case p == again:
		return o.Again
	case p == atEnd && !o.Last:
		return nil
	}
	return o.Send
}

// send sends a part of the sections that the successor wants. Each piece may take the time.
func (s *Server) send(to *served, p part, limit time.Duration, given *Given) error {
	if err := to.conn.SetWriteDeadline(time.Now().Add(limit)); err != nil {
		return err
	}
	offers := s.offers()
	for i, section := range to.wanted {
		n := slices.IndexFunc(offers, func(o Offer) bool { return o.Section == section && p.in(o) != nil })
		if n < 0 || section.Fingerprint == "" {
			continue
		}
		if err := to.wire.writeJSON(kindBegin, begin{Index: i}); err != nil {
			return err
		}
		var broken error
		put := func(piece []byte) error {
			broken = to.conn.SetWriteDeadline(time.Now().Add(limit))
			if broken == nil {
				broken = to.wire.write(kindPiece, piece)
			}
			given.Bytes += len(piece)
			return broken
		}
		var reason []byte
		if err := p.in(offers[n])(to.asked, put); err != nil {
			if broken != nil {
				return broken
			}
			reason = []byte(err.Error())
		}
		if err := to.wire.write(kindEnd, reason); err != nil {
			return err
		}
		given.Sections++
	}
	return to.wire.write(kindDone, nil)
}

// Again gives successors that wait for our end what came since they asked. Each piece may take
// the time.
func (s *Server) Again(limit time.Duration) {
	s.mu.Lock()
	waiting := slices.DeleteFunc(slices.Clone(s.all), func(to *served) bool { return to.stage != waits })
	s.mu.Unlock()
	for _, to := range waiting {
		if s.send(to, again, limit, &Given{}) != nil {
			_ = to.conn.Close() // in the middle of a frame
		}
	}
}

// Close gives the last sections to successors that wait for our end, for at most the time,
// and ends the socket.
func (s *Server) Close(limit time.Duration) error {
	err := s.listener.Close()
	s.mu.Lock()
	s.closing = true
	all := slices.Clone(s.all)
	for _, to := range all {
		switch to.stage {
		case greets:
			_ = to.conn.Close()
		case waits:
			err = errors.Join(err, to.conn.SetReadDeadline(time.Now()))
		}
	}
	s.mu.Unlock()
	// Each piece extends the deadline of its connection: only a closed one ends for certain.
	end := time.AfterFunc(limit, func() {
		for _, to := range all {
			_ = to.conn.Close()
		}
	})
	defer end.Stop()
	s.tasks.Wait()
	return err
}
