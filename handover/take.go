package handover

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Peer is an instance that may have a state to give.
type Peer struct {
	Table string // its name
	Key   []byte
}

// ErrAbsent is returned if there is no socket, so the instance hands nothing over: it is of a version
// without it, has it switched off, or ends.
var ErrAbsent = errors.New("the instance hands nothing over: it has no socket for it")

// Successor is a process that takes over the state of another one.
type Successor struct {
	wants []Want
	asked time.Time
	wire  *wire
}

// Take asks an instance for the sections and gives their content to the wants, for at most
// the time. Each want has an outcome. The error says why nothing could be asked for.
//
// If the successor is not nil, call its Last.
func Take(peer Peer, wants []Want, limit time.Duration) (outcomes []Outcome, s *Successor, err error) {
	deadline := time.Now().Add(limit)
	conn, err := (&net.Dialer{Deadline: deadline}).Dial("unix", NameOf(peer.Table))
	if err != nil {
		if errors.Is(err, unix.ECONNREFUSED) {
			err = ErrAbsent
		}
		return nil, nil, err
	}
	s = &Successor{wants: wants}
	if err := s.ask(conn, peer.Key, deadline); err != nil {
		return nil, nil, errors.Join(err, conn.Close())
	}
	outcomes, whole := s.receive()
	if whole {
		whole = conn.SetDeadline(time.Time{}) == nil
	}
	if !whole {
		s.Close()
		s = nil
	}
	return outcomes, s, nil
}

func (s *Successor) ask(conn net.Conn, key []byte, deadline time.Time) (err error) {
	if err := sameUser(conn); err != nil {
		return err
	}
	// An instance that hangs must not take the time in which another one could give.
	hello := time.Now().Add(helloTime)
	if hello.After(deadline) {
		hello = deadline
	}
	if err := conn.SetDeadline(hello); err != nil {
		return err
	}
	if s.wire, err = shakeHands(conn, successor, key); err != nil {
		return err
	}
	if err := conn.SetDeadline(deadline); err != nil {
		return err
	}
	r := request{Last: true}
	for _, w := range s.wants {
		r.Sections = append(r.Sections, w.Section)
	}
	s.asked = time.Now() // before the predecessor notes the time
	return s.wire.writeJSON(kindRequest, r)
}

// receive reads the state. whole is false if the connection is of no more use.
func (s *Successor) receive() (outcomes []Outcome, whole bool) {
	outcomes = make([]Outcome, len(s.wants))
	for i, w := range s.wants {
		outcomes[i] = Outcome{Section: w.Section, Result: Foreign, Reason: errForeign}
	}
	seen := make([]bool, len(s.wants))
	for {
		k, content, err := s.wire.read(MaxContent)
		if err == nil && k == kindDone {
			return outcomes, true
		}
		var b begin
		if err == nil && (k != kindBegin || json.Unmarshal(content, &b) != nil || b.Index < 0 || b.Index >= len(seen) || seen[b.Index]) {
			err = errFrame
		}
		if err != nil {
			// The sections that did not come.
			for i := range outcomes {
				if !seen[i] {
					outcomes[i].Result, outcomes[i].Reason = resultOf(err), explain(err)
				}
			}
			return outcomes, false
		}
		seen[b.Index] = true
		if !s.section(b.Index, &outcomes[b.Index]) {
			for i := range outcomes {
				if !seen[i] {
					outcomes[i].Result, outcomes[i].Reason = Partial, outcomes[b.Index].Reason
				}
			}
			return outcomes, false
		}
	}
}

var errForeign = errors.New("the instance has none that fits: its Corefile differs, or its version")

// section reads one section. It returns false if the connection is of no more use.
func (s *Successor) section(i int, o *Outcome) bool {
	begun := time.Now()
	defer func() { o.Took = time.Since(begun) }()
	*o = Outcome{Section: s.wants[i].Section, Result: Taken}
	for {
		k, content, err := s.wire.read(MaxContent)
		switch {
		case err == nil && k == kindEnd:
			if len(content) > 0 && o.Result == Taken {
				o.Result, o.Reason = Partial, fmt.Errorf("the instance could not give all of it: %s", content)
			}
			return true
		case err == nil && k == kindPiece:
		case err == nil:
			err = errFrame
			fallthrough
		default:
			o.Result, o.Reason = resultOf(err), explain(err)
			return false
		}
		o.Bytes += len(content)
		if o.Result == Damaged {
			continue // the rest of a section that cannot be read
		}
		taken, err := s.wants[i].Receive(s.asked, content)
		o.Items += taken
		if err != nil {
			o.Result, o.Reason = Damaged, err
		}
	}
}

// resultOf returns the result of a section during which the connection failed.
func resultOf(err error) Result {
	if errors.Is(err, ErrStranger) || errors.Is(err, errFrame) {
		return Damaged
	}
	return Partial
}

// explain returns the reason why a connection ended.
func explain(err error) error {
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return errTime
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, unix.ECONNRESET):
		return errEnded
	}
	return err
}

var (
	errTime  = errors.New("the time for it was over")
	errEnded = errors.New("the instance ended meanwhile")
)

// Last waits until the predecessor ends, and takes the sections that it gives then. The
// outcomes say Foreign for the others. It returns when the predecessor has ended, or after
// Close.
func (s *Successor) Last() []Outcome {
	defer s.Close()
	all, whole := s.receive()
	for whole {
		var more []Outcome
		more, whole = s.receive()
		for i, o := range more {
			switch {
			case o.Bytes > 0 && all[i].Bytes > 0:
				o.Items, o.Bytes = o.Items+all[i].Items, o.Bytes+all[i].Bytes
				fallthrough
			case o.Bytes > 0:
				all[i] = o
			}
		}
	}
	return all
}

// Close ends Last.
func (s *Successor) Close() { _ = s.wire.conn.Close() }
