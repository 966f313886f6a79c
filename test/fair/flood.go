package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/lab"
	"github.com/trackless-dns/trackless/lab/clients"
)

// flood asks without end for names that do not exist.
type flood interface {
	Start() error
	Stop() (sent int, err error)
}

const (
	floodPorts = 1024

	// A flood over TCP has connections that ask, and others that do nothing.
	askingConns = 500
	idleConns   = 2000
)

func newFlood(from *lab.Namespace, target netip.Addr, protocol lab.Protocol, rate int) flood {
	if protocol == lab.TCP {
		return &tcpFlood{from: from, target: netip.AddrPortFrom(target, lab.DNSPort), rate: rate}
	}
	return &clients.Flood{From: from, Target: target, Rate: rate, Ports: floodPorts}
}

// tcpFlood asks over many connections, without waiting for answers, and opens others again
// and again.
type tcpFlood struct {
	from   *lab.Namespace
	target netip.AddrPort
	rate   int

	stop    chan struct{}
	running sync.WaitGroup
	sent    atomic.Int64
	names   atomic.Int64
}

// Start implements flood.
func (f *tcpFlood) Start() error {
	f.stop = make(chan struct{})
	for range askingConns {
		f.running.Go(f.ask)
	}
	for range idleConns {
		f.running.Go(f.idle)
	}
	return nil
}

// Stop implements flood.
func (f *tcpFlood) Stop() (sent int, err error) {
	close(f.stop)
	f.running.Wait()
	return int(f.sent.Load()), nil
}

// dial returns nil if there is no connection.
func (f *tcpFlood) dial() *os.File {
	fd := -1
	err := f.from.Do(func() (err error) {
		fd, err = lab.OpenSocket(lab.TCP, false)
		return err
	})
	if err == nil {
		err = lab.Connect(fd, lab.TCP, 0, f.target)
	}
	if err != nil {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
		return nil
	}
	return os.NewFile(uintptr(fd), "tcp")
}

// pause waits. It reports false at the end.
func (f *tcpFlood) pause(d time.Duration) bool {
	select {
	case <-f.stop:
		return false
	case <-time.After(d):
		return true
	}
}

func (f *tcpFlood) ask() {
	const every = 20 * time.Millisecond
	for f.pause(every) {
		conn := f.dial()
		if conn == nil {
			continue
		}
		go drain(conn)
		for f.pause(every) {
			batch := f.batch(max(1, f.rate*int(every/time.Millisecond)/1000/askingConns))
			_ = conn.SetWriteDeadline(time.Now().Add(every))
			if _, err := conn.Write(batch); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
		}
		_ = conn.Close()
	}
}

// batch makes queries for new names.
func (f *tcpFlood) batch(n int) []byte {
	var out []byte
	for range n {
		query, err := new(dns.Msg).SetQuestion(fmt.Sprintf("%s%d.invalid.lab.", floodPrefix, f.names.Add(1)), dns.TypeA).Pack()
		if err != nil {
			continue // cannot fail
		}
		out = append(binary.BigEndian.AppendUint16(out, uint16(len(query))), query...)
	}
	f.sent.Add(int64(n))
	return out
}

// idle holds a connection, and opens another one when it ends.
func (f *tcpFlood) idle() {
	for f.pause(100 * time.Millisecond) {
		conn := f.dial()
		if conn == nil {
			continue
		}
		ended := make(chan struct{})
		go func() {
			drain(conn)
			close(ended)
		}()
		select {
		case <-ended:
		case <-f.stop:
		}
		_ = conn.Close()
	}
}

func drain(conn io.Reader) {
	buffer := make([]byte, 4096)
	for {
		if _, err := conn.Read(buffer); err != nil {
			return
		}
	}
}
