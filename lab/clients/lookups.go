package clients

import (
	"encoding/binary"
	"fmt"
	"io"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/lab"
)

// Lookups are programs of a pod that look names up as glibc does: A and AAAA at
// once over one socket, and both again when one of them fails or nothing has come
// after the timeout (resolv.conf(5), options timeout and attempts).
type Lookups struct {
	From   *lab.Namespace
	Target netip.Addr // port 53

	// Rate is the number of queries a second. Half of the lookups are for one of a
	// few names, the others for a name that nobody has asked for before, and every
	// fourth is over TCP.
	Rate int

	stop    chan struct{}
	sender  sync.WaitGroup
	waiting sync.WaitGroup
	began   time.Time

	mu       sync.Mutex
	outcomes []Outcome
	err      error
}

// Outcome is what came of one query.
type Outcome struct {
	Sent, Ended time.Time
	Protocol    lab.Protocol
	Hot         bool // one of the few names

	// Lost says why there was no response; Rcode is the RCODE of the response.
	Lost  string
	Rcode int
}

// Failed reports whether the response says that the upstream did not answer.
func (o Outcome) Failed() bool { return o.Lost == "" && o.Rcode == dns.RcodeServerFailure }

// Answered reports whether there is a response with an answer.
func (o Outcome) Answered() bool { return o.Lost == "" && o.Rcode == dns.RcodeSuccess }

const (
	lookupTimeout  = 5 * time.Second
	lookupAttempts = 2
	hotNames       = 40
)

// Start begins to look names up, until Stop.
func (l *Lookups) Start() {
	l.stop, l.began = make(chan struct{}), time.Now()
	l.sender.Go(func() {
		if err := l.From.Do(l.send); err != nil {
			l.fail(err)
		}
	})
}

// Stop begins no more lookups, waits for those under way, and returns the queries.
func (l *Lookups) Stop() ([]Outcome, error) {
	close(l.stop)
	l.sender.Wait()
	l.waiting.Wait()
	return l.outcomes, l.err
}

func (l *Lookups) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err == nil {
		l.err = fmt.Errorf("look names up at %s from %s: %w", l.Target, l.From.Name(), err)
	}
}

// send begins lookups at the rate. It stays on its thread, whose namespace is that
// of the sockets.
func (l *Lookups) send() error {
	interval := 2 * time.Second / time.Duration(l.Rate)
	for i := 0; ; i++ {
		select {
		case <-l.stop:
			return nil
		case <-time.After(time.Until(l.began.Add(time.Duration(i) * interval))):
		}
		hot, protocol := i%2 == 0, lab.UDP
		if i/2%4 == 3 {
			protocol = lab.TCP
		}
		name := lab.HostName(hotNames + i)
		if hot {
			name = lab.HostName(i / 2 % hotNames)
		}
		var sockets [lookupAttempts]int
		for n := range sockets {
			fd, err := lab.OpenSocket(protocol, l.Target.Is6())
			if err != nil {
				return err
			}
			sockets[n] = fd
		}
		l.waiting.Go(func() {
			done := false
			for _, fd := range sockets {
				if done {
					_ = unix.Close(fd)
					continue
				}
				done = l.attempt(fd, protocol, hot, name.Text)
			}
		})
	}
}

// attempt asks for both addresses once and reports whether there is nothing left to
// ask.
func (l *Lookups) attempt(fd int, protocol lab.Protocol, hot bool, name string) (done bool) {
	sent := time.Now()
	outcomes := make(map[uint16]*Outcome)
	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		for _, o := range outcomes {
			if o.Ended.IsZero() {
				o.Ended = time.Now()
			}
			l.outcomes = append(l.outcomes, *o)
		}
	}()
	var queries [][]byte
	for id, qtype := range []uint16{dns.TypeA, dns.TypeAAAA} {
		q := new(dns.Msg).SetQuestion(name, qtype)
		q.Id = uint16(id)
		packed, err := q.Pack()
		if err != nil {
			l.fail(err)
			return true
		}
		queries = append(queries, packed)
		outcomes[q.Id] = &Outcome{Sent: sent, Protocol: protocol, Hot: hot, Lost: "no answer"}
	}
	err := lab.Connect(fd, protocol, 0, netip.AddrPortFrom(l.Target, lab.DNSPort))
	if err != nil {
		_ = unix.Close(fd)
		l.lost(outcomes, err)
		return false
	}
	file := os.NewFile(uintptr(fd), string(protocol))
	defer file.Close()
	if err := file.SetDeadline(sent.Add(lookupTimeout)); err != nil {
		l.fail(err)
		return true
	}
	for _, q := range queries {
		if protocol == lab.TCP {
			q = append(binary.BigEndian.AppendUint16(nil, uint16(len(q))), q...)
		}
		if _, err := file.Write(q); err != nil {
			l.lost(outcomes, err)
			return false
		}
	}
	done = true
	for range queries {
		m, err := readMessage(file, protocol)
		if err != nil {
			l.lost(outcomes, err)
			return false
		}
		if o := outcomes[m.Id]; o != nil {
			o.Ended, o.Rcode, o.Lost = time.Now(), m.Rcode, ""
			done = done && m.Rcode != dns.RcodeServerFailure
		}
	}
	return done
}

func (l *Lookups) lost(outcomes map[uint16]*Outcome, err error) {
	for _, o := range outcomes {
		if o.Ended.IsZero() {
			o.Lost = err.Error()
		}
	}
}

func readMessage(file *os.File, protocol lab.Protocol) (*dns.Msg, error) {
	buffer := make([]byte, dns.MinMsgSize)
	if protocol == lab.TCP {
		var length [2]byte
		if _, err := io.ReadFull(file, length[:]); err != nil {
			return nil, err
		}
		buffer = make([]byte, binary.BigEndian.Uint16(length[:]))
		if _, err := io.ReadFull(file, buffer); err != nil {
			return nil, err
		}
	} else {
		n, err := file.Read(buffer)
		if err != nil {
			return nil, err
		}
		buffer = buffer[:n]
	}
	m := new(dns.Msg)
	return m, m.Unpack(buffer)
}
