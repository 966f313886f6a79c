package generator

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// socket sends bursts.
type socket struct {
	fd      int
	out, in *messages
	queries [][]byte // of the burst on its way
	first   uint16   // its first id
	missing uint64   // a bit for each query without an answer
}

// bursts plays a load of bursts. The sockets take turns in two halves: while the
// queries of one half are at the server, those of the other are collected and sent
// again. So neither waits for the other, and the generator sleeps once for many
// queries, not for each.
func (o Options) bursts(queries [][]byte, r *Result) error {
	sockets := make([]*socket, 0, o.Sockets)
	defer func() {
		for _, s := range sockets {
			_ = unix.Close(s.fd)
		}
	}()
	for range o.Sockets {
		fd, err := o.connect()
		if err != nil {
			return err
		}
		sockets = append(sockets, &socket{fd: fd, out: newMessages(o.Burst), in: newMessages(o.Burst), queries: make([][]byte, o.Burst)})
	}
	next := 0
	send := func(s *socket) error {
		for i := range s.queries {
			s.queries[i] = queries[next%len(queries)]
			next++
		}
		r.Sent += o.Burst
		return s.send()
	}
	began := time.Now()
	for _, s := range sockets {
		if err := send(s); err != nil {
			return err
		}
	}
	half := len(sockets) / 2
	for turn := 0; time.Since(began) < o.Last; turn++ {
		now, later := sockets[turn%2*half:][:half], sockets[(turn+1)%2*half:][:half]
		// When the other half begins to be answered, this one has been.
		if err := await(later[0].fd); err != nil {
			return err
		}
		for _, s := range now {
			if err := o.collect(s, r); err != nil {
				return err
			}
			if err := send(s); err != nil {
				return err
			}
		}
	}
	for _, s := range sockets {
		if err := o.collect(s, r); err != nil {
			return err
		}
	}
	r.Took = time.Since(began)
	return nil
}

// send sends the socket's burst.
func (s *socket) send() error {
	s.first += uint16(len(s.queries))
	for i, query := range s.queries {
		s.out.set(i, query, s.first+uint16(i))
	}
	s.missing = 1<<len(s.queries) - 1
	deadline := time.Now().Add(patience)
	for sent := 0; sent < len(s.queries); {
		n, err := s.out.send(s.fd, sent, len(s.queries))
		if err != nil {
			return err
		}
		if n == 0 && time.Now().After(deadline) {
			return fmt.Errorf("the kernel takes no query for %s", patience)
		}
		sent += n
	}
	return nil
}

// collect waits for the answers to the socket's burst, at most for the patience.
func (o Options) collect(s *socket, r *Result) error {
	var deadline time.Time
	for s.missing != 0 {
		n, err := s.in.receive(s.fd, len(s.queries))
		if err != nil {
			return err
		}
		for i := range n {
			s.take(o, s.in.received(i), r)
		}
		switch {
		case n > 0:
			continue
		case deadline.IsZero():
			deadline = time.Now().Add(patience)
		case time.Now().After(deadline):
			return nil
		}
		if err := await(s.fd); err != nil {
			return err
		}
	}
	return nil
}

// take counts a response. One to an earlier burst comes too late to count.
func (s *socket) take(o Options, response []byte, r *Result) {
	if len(response) < headerSize {
		r.Wrong++
		return
	}
	i := int(id(response) - s.first)
	if i >= len(s.queries) || s.missing&(1<<i) == 0 {
		return
	}
	s.missing &^= 1 << i
	if !o.right(s.queries[i], response) {
		r.Wrong++
		return
	}
	r.Answered++
}
