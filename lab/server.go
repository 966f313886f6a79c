package lab

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// stopGrace is how long a server may take to stop: CoreDNS drains for up to
// its upstream timeout of 5 s, and a busy machine takes longer.
const stopGrace = 30 * time.Second

// A Server is `trackless serve` running as a child inside a namespace.
type Server struct {
	*Child
	Namespace *Namespace
	corefile  *os.File
	client    *http.Client // for metrics
}

// StartServer runs program (a trackless binary) as `serve` inside the
// namespace with the Corefile given as text. The Corefile lies in a memory
// file, so nothing has to be removed afterwards. It returns as soon as the
// process runs; whether it answers is for the caller to find out.
func (ns *Namespace) StartServer(name, program, corefile string) (*Server, error) {
	server := &Server{Namespace: ns, client: ns.httpClient()}
	fd, err := unix.MemfdCreate("Corefile", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make a memory file for the Corefile of %s: %w", name, err)
	}
	server.corefile = os.NewFile(uintptr(fd), "Corefile")
	if err := server.writeCorefile(corefile); err != nil {
		return nil, errors.Join(err, server.corefile.Close())
	}
	// An abstract socket belongs to the namespace and leaves no file.
	cmd := exec.Command(program, "serve", "-conf", "/proc/self/fd/3", "-control", "@trackless/control.sock")
	cmd.Args[0] = "trackless"                    // whatever the file is called
	cmd.ExtraFiles = []*os.File{server.corefile} // becomes descriptor 3
	server.Child, err = ns.Start(name, cmd)
	if err != nil {
		return nil, errors.Join(err, server.corefile.Close())
	}
	return server, nil
}

// Reload gives the server another Corefile and sends it SIGUSR1, which makes
// CoreDNS load it. It does not wait for that.
func (s *Server) Reload(corefile string) error {
	if err := s.writeCorefile(corefile); err != nil {
		return err
	}
	return s.Signal(syscall.SIGUSR1)
}

// Close stops the server as Stop does, with a grace of some seconds.
func (s *Server) Close() error {
	s.client.CloseIdleConnections()
	return errors.Join(s.Stop(stopGrace), s.corefile.Close())
}

// abandon ends the server without ceremony, if it still runs.
func (s *Server) abandon() error {
	s.client.CloseIdleConnections()
	err := s.Kill()
	if closeErr := s.corefile.Close(); !errors.Is(closeErr, os.ErrClosed) {
		err = errors.Join(err, closeErr)
	}
	return err
}

// AwaitAttached waits until the server, whose prometheus directive names the
// address, has its NOTRACK rules in force at all its listen addresses.
func (s *Server) AwaitAttached(ctx context.Context, metrics string) error {
	return s.await(ctx, "attached", func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
		defer cancel()
		now, err := s.Metrics(ctx, metrics)
		if err != nil {
			return err
		}
		addresses := now["coredns_notrack_attached"].GetMetric()
		if len(addresses) == 0 {
			return errors.New("it shows no metric coredns_notrack_attached")
		}
		for _, address := range addresses {
			if address.GetGauge().GetValue() != 1 {
				return fmt.Errorf("not attached at %s", address.GetLabel())
			}
		}
		return nil
	})
}

func (s *Server) writeCorefile(text string) error {
	if err := s.corefile.Truncate(0); err != nil {
		return fmt.Errorf("empty the Corefile in memory: %w", err)
	}
	if _, err := s.corefile.WriteAt([]byte(text), 0); err != nil {
		return fmt.Errorf("write the Corefile to memory: %w", err)
	}
	return nil
}

// await calls ready until it returns nil, the server ends, or the context
// does. The error is then the last one of ready, or the server's last output.
func (s *Server) await(ctx context.Context, what string, ready func(context.Context) error) error {
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for {
		err := ready(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-s.Done():
			return s.failure("ended before " + what)
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("wait for %s to be %s: %w", s.name, what, context.Cause(ctx)), err,
				s.failure("was waited for"))
		case <-ticker.C:
		}
	}
}
