package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
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
		return &childFlood{from: from, target: netip.AddrPortFrom(target, lab.DNSPort), rate: rate}
	}
	return &clients.Flood{From: from, Target: target, Rate: rate, Ports: floodPorts}
}

// childFlood is a tcpFlood in a process of its own: its thousands of goroutines would hold up
// those that measure.
type childFlood struct {
	from   *lab.Namespace
	target netip.AddrPort
	rate   int
	child  *lab.Child
}

// floodCommand is the first argument of that process. The target and the rate follow.
const floodCommand = "flood-over-tcp"

// Start implements flood.
func (f *childFlood) Start() (err error) {
	f.child, err = f.from.Start("flood", exec.Command("/proc/self/exe", floodCommand, f.target.String(), strconv.Itoa(f.rate)))
	return err
}

// Stop implements flood.
func (f *childFlood) Stop() (sent int, err error) {
	const grace = 10 * time.Second
	if err := f.child.Stop(grace); err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(f.child.Output()))
}

// floodHere is the process of a childFlood. It writes how many queries it has sent.
func floodHere(arguments []string) error {
	if len(arguments) != 2 {
		return fmt.Errorf("%s TARGET RATE: got %q", floodCommand, arguments)
	}
	target, err := netip.ParseAddrPort(arguments[0])
	if err != nil {
		return err
	}
	rate, err := strconv.Atoi(arguments[1])
	if err != nil {
		return err
	}
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer cancel()
	f := &tcpFlood{target: target, rate: rate, stop: ctx.Done()}
	f.run()
	_, err = fmt.Println(f.sent.Load())
	return err
}

// tcpFlood asks over many connections, without waiting for answers, and opens others again
// and again.
type tcpFlood struct {
	target netip.AddrPort
	rate   int

	stop    <-chan struct{}
	running sync.WaitGroup
	sent    atomic.Int64
	names   atomic.Int64
}

// run floods until stop is closed.
func (f *tcpFlood) run() {
	for range askingConns {
		f.running.Go(f.ask)
	}
	for range idleConns {
		f.running.Go(f.idle)
	}
	f.running.Wait()
}

// dial returns nil if there is no connection.
func (f *tcpFlood) dial() *os.File {
	fd, err := lab.OpenSocket(lab.TCP, f.target.Addr().Is6())
	if err != nil {
		return nil
	}
	if err := lab.Connect(fd, lab.TCP, 0, f.target); err != nil {
		_ = unix.Close(fd)
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
