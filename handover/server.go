package handover

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
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
	slots    chan struct{}
	tasks    sync.WaitGroup

	mu      sync.Mutex
	closing time.Time        // when Close ends; zero before
	waiting map[*served]bool // successors that wait for our end
	active  map[net.Conn]bool
}

// served is one successor.
type served struct {
	wire   *wire
	wanted []Section
	asked  time.Time
}

// Given reports one handover to the process that gives.
type Given struct {
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
	s := &Server{
		key: key, offers: offers, done: done, listener: listener, slots: make(chan struct{}, maxServed),
		waiting: map[*served]bool{}, active: map[net.Conn]bool{},
	}
	s.tasks.Go(s.accept)
	return s, nil
}

func (s *Server) accept() {
	for {
		conn, err := s.listener.Accept()
		if err != nil {
			return // Close
		}
		select {
		case s.slots <- struct{}{}:
		default:
			_ = conn.Close()
			continue
		}
		s.tasks.Go(func() {
			defer func() { <-s.slots }()
			s.serve(conn)
		})
	}
}

// hold keeps a connection, so that Close ends it. It reports false if Close was called.
func (s *Server) hold(conn net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	open := s.closing.IsZero()
	if open {
		s.active[conn] = true
	}
	return open
}

func (s *Server) serve(conn net.Conn) {
	if !s.hold(conn) {
		_ = conn.Close()
		return
	}
	begun := time.Now()
	given, successor, err := s.give(conn)
	given.Took, given.Err = time.Since(begun), err
	s.done(given)
	s.mu.Lock()
	delete(s.active, conn)
	closing := s.closing
	waits := err == nil && successor != nil
	if waits && closing.IsZero() {
		s.waiting[successor] = true
	}
	s.mu.Unlock()
	switch {
	case !waits:
		_ = conn.Close()
		return
	case !closing.IsZero():
		s.giveLast(successor, closing)
		return
	}
	// A successor sends nothing more: this ends with the connection, or by Close.
	var one [1]byte
	_, _ = conn.Read(one[:])
	s.mu.Lock()
	mine := s.waiting[successor]
	delete(s.waiting, successor)
	s.mu.Unlock()
	if mine {
		_ = conn.Close()
	}
}

// give hands the state over. The successor is not nil if it waits for our end.
func (s *Server) give(conn net.Conn) (given Given, waits *served, err error) {
	if err := conn.SetDeadline(time.Now().Add(helloTime)); err != nil {
		return given, nil, err
	}
	w, err := shakeHands(conn, predecessor, s.key)
	if err != nil {
		return given, nil, err
	}
	k, content, err := w.read(maxRequest)
	asked := time.Now()
	if err != nil {
		return given, nil, err
	}
	var r request
	if k != kindRequest {
		return given, nil, errFrame
	}
	if err := json.Unmarshal(content, &r); err != nil {
		return given, nil, fmt.Errorf("%w: %w", errFrame, err)
	}
	to := &served{wire: w, wanted: r.Sections, asked: asked}
	if err := s.send(to, func(Offer) bool { return true }, &given); err != nil {
		return given, nil, err
	}
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return given, nil, err
	}
	if r.Last {
		waits = to
	}
	return given, waits, nil
}

// giveTime limits how long a piece waits for the successor, which has a limit of its own.
const giveTime = 5 * time.Second

// send sends the sections that the successor wants and for which chosen returns true.
func (s *Server) send(to *served, chosen func(Offer) bool, given *Given) error {
	offers := s.offers()
	for i, section := range to.wanted {
		n := slices.IndexFunc(offers, func(o Offer) bool { return o.Section == section && chosen(o) })
		if n < 0 || section.Fingerprint == "" {
			continue
		}
		if err := to.wire.writeJSON(kindBegin, begin{Index: i}); err != nil {
			return err
		}
		var broken error
		put := func(piece []byte) error {
			broken = to.wire.conn.SetDeadline(time.Now().Add(giveTime))
			if broken == nil {
				broken = to.wire.write(kindPiece, piece)
			}
			given.Bytes += len(piece)
			return broken
		}
		var reason []byte
		if err := offers[n].Send(to.asked, put); err != nil {
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

// Close gives the last sections to successors that wait for our end, for at most the time,
// and ends the socket.
func (s *Server) Close(limit time.Duration) error {
	err := s.listener.Close()
	deadline := time.Now().Add(limit)
	s.mu.Lock()
	s.closing = deadline
	waiting := s.waiting
	s.waiting = map[*served]bool{}
	for conn := range s.active {
		err = errors.Join(err, conn.SetDeadline(deadline))
	}
	s.mu.Unlock()
	for to := range waiting {
		s.giveLast(to, deadline)
	}
	s.tasks.Wait()
	return err
}

// giveLast gives the last sections to one successor, which may have ended.
func (s *Server) giveLast(to *served, deadline time.Time) {
	conn := to.wire.conn
	// A put extends the deadline of its piece: the end of the time ends it.
	stop := time.AfterFunc(time.Until(deadline), func() { _ = conn.Close() })
	defer stop.Stop()
	var given Given
	_ = s.send(to, func(o Offer) bool { return o.Last }, &given)
	_ = conn.Close()
}
