// Package server starts a DNS server on a node of its own, for benchmarks that measure
// several beside each other, and reads how much processor time it has taken.
package server

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/trackless-dns/trackless/lab"
)

// Metrics is where Trackless shows its metrics, on its node.
const Metrics = "127.0.0.1:9253"

// starting is how long a server may take until it answers.
const starting = 2 * time.Minute

// A Spec says what is started, and on which node.
type Spec struct {
	Name string
	Node lab.Options

	// Command starts the server: words of a shell, in which "$3" is the path of
	// Configuration, "$@" are the arguments of `trackless serve`, and ${0%/*} is a
	// folder that is removed with the server.
	Command       string
	Configuration string

	// Listen are the addresses at which it must answer, over UDP, and By is how such
	// an answer looks.
	Listen []netip.Addr
	By     lab.Responder

	// Attaches tells that it is Trackless with notrack: its rules must be in force.
	Attaches bool

	// Addressed puts the listen addresses on the node before the server starts.
	Addressed bool

	// Abrupt tells that the server dies of SIGTERM, as dnsdist does: its end says
	// nothing.
	Abrupt bool

	// Prepare, unless it is nil, runs on the node before the server starts.
	Prepare func() error
}

// A Server is a running one, alone on its node.
type Server struct {
	Node    *lab.Node
	Running *lab.Server

	directory string
	abrupt    bool
}

// Open builds the node, starts the server and returns when it answers. After an error
// nothing is left.
func Open(ctx context.Context, spec Spec) (*Server, error) {
	s := &Server{abrupt: spec.Abrupt}
	if err := s.open(ctx, spec); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", spec.Name, err), s.Close())
	}
	return s, nil
}

func (s *Server) open(ctx context.Context, spec Spec) (err error) {
	if s.directory, err = os.MkdirTemp("", "trackless-bench-"); err != nil {
		return err
	}
	if s.Node, err = lab.NewNode(ctx, spec.Node); err != nil {
		return err
	}
	if err := s.Node.Namespace.Do(func() error { return prepare(spec) }); err != nil {
		return err
	}
	// The script becomes the program. It is started as: serve -conf FILE -control SOCKET.
	script, log := filepath.Join(s.directory, "start"), filepath.Join(s.directory, "log")
	text := fmt.Sprintf("#!/bin/sh\nexec %s >%s 2>&1\n", spec.Command, log)
	if err := os.WriteFile(script, []byte(text), 0o700); err != nil {
		return err
	}
	if s.Running, err = s.Node.Namespace.StartServer(spec.Name, script, spec.Configuration); err != nil {
		return err
	}
	if err := s.await(ctx, spec); err != nil {
		text, _ := os.ReadFile(log)
		return fmt.Errorf("%w\n%s", err, text)
	}
	return nil
}

func prepare(spec Spec) error {
	for _, a := range spec.Listen {
		if !spec.Addressed {
			break
		}
		command := exec.Command("ip", "address", "add", a.String(), "dev", "lo")
		if out, err := command.CombinedOutput(); err != nil {
			return fmt.Errorf("add %s to the loopback device: %w: %s", a, err, out)
		}
	}
	if spec.Prepare == nil {
		return nil
	}
	return spec.Prepare()
}

func (s *Server) await(ctx context.Context, spec Spec) error {
	ctx, cancel := context.WithTimeout(ctx, starting)
	defer cancel()
	if spec.Attaches {
		if err := s.Running.AwaitAttached(ctx, Metrics); err != nil {
			return err
		}
	}
	for _, a := range spec.Listen {
		if err := s.Running.AwaitAnswer(ctx, s.Node.Namespace, lab.UDP, a, spec.By); err != nil {
			return err
		}
	}
	return nil
}

// Close ends the server and takes its node down.
func (s *Server) Close() error {
	var errs []error
	if s.Running != nil {
		if err := s.Running.Close(); !s.abrupt {
			errs = append(errs, err)
		}
	}
	if s.Node != nil {
		errs = append(errs, s.Node.Close())
	}
	if s.directory != "" {
		errs = append(errs, os.RemoveAll(s.directory))
	}
	return errors.Join(errs...)
}
