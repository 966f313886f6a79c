package lab

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netns"

	"github.com/trackless-dns/trackless/lab/internal/privilege"
)

// A Child is a process started inside a namespace. It dies with this process,
// however that ends, and leads a process group of its own, so that a Ctrl-C at
// the terminal reaches this process alone.
type Child struct {
	name   string
	cmd    *exec.Cmd
	output *tail
	done   <-chan struct{}
	err    error // what Wait returned; valid once done is closed
}

// Start runs the command inside the namespace. The last of its output is kept
// for Output; Stdout, Stderr and SysProcAttr of the command are set here.
func (ns *Namespace) Start(name string, cmd *exec.Cmd) (*Child, error) {
	child := &Child{name: name, cmd: cmd, output: &tail{limit: 64 << 10}}
	cmd.Stdout, cmd.Stderr = child.output, child.output
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}

	started := make(chan error, 1)
	// The parent-death signal is sent when the thread that forked ends, not the
	// process. So that thread stays until the child is gone.
	child.done = spawnLocked(func() {
		if err := netns.Set(ns.handle); err != nil {
			started <- err
			return
		}
		err := cmd.Start()
		started <- err
		if err == nil {
			child.err = cmd.Wait()
		}
	})
	if err := <-started; err != nil {
		<-child.done
		return nil, fmt.Errorf("start %s in %s: %w", name, ns.name, privilege.Explain(err))
	}
	return child, nil
}

// PID is the child's process id.
func (c *Child) PID() int { return c.cmd.Process.Pid }

// Done is closed when the child has ended and was waited for.
func (c *Child) Done() <-chan struct{} { return c.done }

// Signal sends the child a signal; os.ErrProcessDone if it has ended.
func (c *Child) Signal(signal os.Signal) error {
	if err := c.cmd.Process.Signal(signal); err != nil {
		return fmt.Errorf("signal %s to %s (pid %d): %w", signal, c.name, c.PID(), err)
	}
	return nil
}

// Output is the last of what the child wrote to standard output and error, at
// most 64 KiB.
func (c *Child) Output() string { return c.output.String() }

// Lines are the times at which the child wrote lines, at most the first 10,000.
func (c *Child) Lines() []time.Time {
	c.output.mu.Lock()
	defer c.output.mu.Unlock()
	return slices.Clone(c.output.lines)
}

// Stop asks the child to end, waits for that at most the given time, and then
// kills it. A child that ended by itself, was killed by Stop, or ended with a
// status other than 0 is an error, with its last output.
func (c *Child) Stop(grace time.Duration) error {
	select {
	case <-c.done:
		return c.failure("ended by itself")
	default:
	}
	if err := c.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return errors.Join(err, c.Kill())
	}
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-c.done:
		if c.err != nil {
			return c.failure("stopped badly")
		}
		return nil
	case <-timer.C:
		return errors.Join(c.failure(fmt.Sprintf("did not stop within %s of SIGTERM", grace)), c.Kill())
	}
}

// Kill ends the child with SIGKILL and waits until it is gone.
func (c *Child) Kill() error {
	if err := c.Signal(syscall.SIGKILL); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-c.done
	return nil
}

// failure describes what became of the child.
func (c *Child) failure(what string) error {
	status := "still running"
	select {
	case <-c.done:
		status = "exit status 0"
		if c.err != nil {
			status = c.err.Error()
		}
	default:
	}
	return fmt.Errorf("%s (pid %d) %s: %s; its last output:\n%s", c.name, c.PID(), what, status, c.Output())
}

// tail is a writer that keeps the last bytes written to it.
type tail struct {
	mu    sync.Mutex
	limit int
	kept  []byte
	lines []time.Time
}

// maxLines is of how many lines the time is kept.
const maxLines = 10_000

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for range bytes.Count(p, []byte("\n")) {
		if len(t.lines) < maxLines {
			t.lines = append(t.lines, time.Now())
		}
	}
	t.kept = append(t.kept, p...)
	if excess := len(t.kept) - t.limit; excess > 0 {
		t.kept = append(t.kept[:0], t.kept[excess:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.kept)
}
