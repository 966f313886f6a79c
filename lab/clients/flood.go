package clients

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/lab"
)

// A Flood is one client that asks without end for names that nobody has asked
// for before, and does not care for answers.
type Flood struct {
	From   *lab.Namespace
	Target netip.Addr // port 53, over UDP

	// Rate is the number of queries a second, and Ports that of the source
	// ports from which they come in turn.
	Rate, Ports int

	sent    atomic.Int64
	stop    chan struct{}
	running sync.WaitGroup
	err     error
}

const (
	// floodTick is how often a flood sends what is due.
	floodTick = 2 * time.Millisecond

	// floodBacklog is of how much time a flood makes up for what it did not send.
	floodBacklog = 50 * time.Millisecond
)

// Start lets the client ask until Stop.
func (f *Flood) Start() error {
	var sockets []int
	err := f.From.Do(func() error {
		for range f.Ports {
			fd, err := lab.OpenSocket(lab.UDP, f.Target.Is6())
			if err == nil {
				sockets = append(sockets, fd)
				err = unix.Connect(fd, lab.Sockaddr(netip.AddrPortFrom(f.Target, lab.DNSPort)))
			}
			if err != nil {
				return fmt.Errorf("flood %s: %w", f.Target, err)
			}
		}
		return nil
	})
	closeAll := func() {
		for _, fd := range sockets {
			_ = unix.Close(fd)
		}
	}
	if err != nil {
		closeAll()
		return err
	}
	f.stop = make(chan struct{})
	f.running.Go(func() {
		defer closeAll()
		f.err = f.send(sockets)
	})
	return nil
}

// Stop ends the flood and returns how many queries were sent.
func (f *Flood) Stop() (sent int, err error) {
	close(f.stop)
	f.running.Wait()
	return int(f.sent.Load()), f.err
}

func (f *Flood) send(sockets []int) error {
	// The digits of the label and the id are written over for every query.
	const digits = "0000000000"
	query, err := new(dns.Msg).SetQuestion("flood-"+digits+".invalid.lab.", dns.TypeA).Pack()
	if err != nil {
		return err
	}
	const label = 12 + 1 + len("flood-") // behind the header and the length (RFC 1035 section 4.1.1)
	tick := time.NewTicker(floodTick)
	defer tick.Stop()
	last, owed := time.Now(), 0.0
	for n := 0; ; {
		select {
		case <-f.stop:
			return nil
		case <-tick.C:
		}
		// Queries that a busy machine kept us from sending are left out.
		owed += min(time.Since(last), floodBacklog).Seconds() * float64(f.Rate)
		last = time.Now()
		for ; owed >= 1; n, owed = n+1, owed-1 {
			binary.BigEndian.PutUint16(query, uint16(n))
			for i, rest := len(digits)-1, n; i >= 0; i, rest = i-1, rest/10 {
				query[label+i] = byte('0' + rest%10)
			}
			_, err := unix.Write(sockets[n%len(sockets)], query)
			// An error of an earlier query, or no room in a buffer: it is a flood.
			if err != nil && !errors.Is(err, unix.ECONNREFUSED) && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.ENOBUFS) {
				return fmt.Errorf("flood %s: %w", f.Target, err)
			}
			f.sent.Add(1)
		}
	}
}
