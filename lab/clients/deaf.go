package clients

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/lab"
)

// Deaf are TCP connections of a client that asks and reads no answer.
type Deaf struct{ sockets []int }

const (
	// deafQueries is how many queries each of the connections sends at most: their
	// answers fill the buffers of both sides several times.
	deafQueries = 2000

	// deafPause is the time between two connections: it is not their number of
	// queries that is the burden.
	deafPause = 20 * time.Millisecond
)

// NewDeaf opens connections from the namespace to port 53 of the target and sends
// queries for names that exist over each, as many as the server takes.
func NewDeaf(from *lab.Namespace, target netip.Addr, connections int) (*Deaf, error) {
	query, err := new(dns.Msg).SetQuestion(lab.HostName(0).Text, dns.TypeA).Pack()
	if err != nil {
		return nil, err
	}
	framed := append(binary.BigEndian.AppendUint16(nil, uint16(len(query))), query...)
	d := &Deaf{}
	err = from.Do(func() error {
		for range connections {
			if err := d.open(target, framed); err != nil {
				return fmt.Errorf("ask %s over TCP and read nothing: %w", target, err)
			}
			time.Sleep(deafPause)
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

func (d *Deaf) open(target netip.Addr, framed []byte) error {
	fd, err := lab.OpenSocket(lab.TCP, target.Is6())
	if err != nil {
		return err
	}
	d.sockets = append(d.sockets, fd)
	// The smallest receive buffer (tcp(7)): the server's is full the sooner.
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 1); err != nil {
		return err
	}
	if err := unix.SetNonblock(fd, false); err != nil {
		return err
	}
	if err := unix.Connect(fd, lab.Sockaddr(netip.AddrPortFrom(target, lab.DNSPort))); err != nil {
		return err
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return err
	}
	for range deafQueries {
		n, err := unix.Write(fd, framed)
		if errors.Is(err, unix.EAGAIN) || err == nil && n < len(framed) {
			break // the server's buffer is full, and ours
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Held is how many of the connections the server has not closed.
func (d *Deaf) Held() int {
	held := 0
	for _, fd := range d.sockets {
		state, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err == nil && state.State == tcpEstablished {
			held++
		}
	}
	return held
}

// tcpEstablished is TCP_ESTABLISHED of include/net/tcp_states.h.
const tcpEstablished = 1

// Close closes the connections.
func (d *Deaf) Close() error {
	var errs []error
	for _, fd := range d.sockets {
		errs = append(errs, unix.Close(fd))
	}
	d.sockets = nil
	return errors.Join(errs...)
}
