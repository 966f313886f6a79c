package process

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/lab"
	"github.com/trackless-dns/trackless/test/chaos/scene"
)

const (
	// loopsPerProcessor are the programs that never sleep, for each processor.
	loopsPerProcessor = 2

	// starvedFor is how long they run, and hungAfter how long before a hang.
	starvedFor = time.Minute
	hungAfter  = 2 * time.Second
)

// Starvations are cases beside programs that take all the time of all processors.
func Starvations() []*scene.Case {
	return []*scene.Case{
		{
			Name: "starved", Fault: "two busy loops for each processor, for 60 s", Bar: "0 lost, no lapse of the lease",
			Sabotage: scene.Sabotage{
				What:  "its share of the processors: it runs when nobody else wants to",
				Fails: scene.FailLost, At: "starved", Apply: leaveProcessors,
			},
			Play: playStarved,
		},
		{
			Name: "starved-sigstop", Fault: "SIGSTOP for 3 s beside two busy loops for each processor, SIGCONT",
			Bar:      "at most 1.5 s of queries, recovery 0 lost",
			Sabotage: answeredInTheEnd,
			Play: func(s *scene.Scene) error {
				stop, err := startLoops(s)
				if err != nil {
					return err
				}
				time.Sleep(hungAfter)
				if err := s.Fault("stopped", scene.LeaseBar); err != nil {
					return err
				}
				if err := s.Server.Signal(syscall.SIGSTOP); err != nil {
					return err
				}
				return errors.Join(hangAndRecover(s, func() error { return s.Server.Signal(syscall.SIGCONT) }, nil), stop())
			},
		},
		{
			Name: "starved-deadlock", Fault: "deadlock in `cache` beside two busy loops for each processor",
			Bar:    "at most 1.5 s of queries, recovery 0 lost",
			Faulty: true,
			// As that of the deadlock alone.
			Sabotage: scene.Sabotage{What: scene.RulesStay.What, Fails: scene.FailResponder, Apply: scene.LeaveRules},
			Play: func(s *scene.Scene) error {
				stop, err := startLoops(s)
				if err != nil {
					return err
				}
				time.Sleep(hungAfter)
				if err := s.Fault("deadlocked", scene.LeaseBar); err != nil {
					return err
				}
				if err := command(s, "hold chain"); err != nil {
					return err
				}
				return errors.Join(hangAndRecover(s, func() error { return command(s, "release chain") }, nil), stop())
			},
		},
	}
}

func playStarved(s *scene.Scene) error {
	if err := s.Fault("starved", scene.NoLoss); err != nil {
		return err
	}
	stop, err := startLoops(s)
	if err != nil {
		return err
	}
	if err := s.Reach("starved"); err != nil {
		return err
	}
	last := starvedFor
	if s.Sabotaged {
		last = scene.Patience // it loses queries soon
	}
	s.Let(last)
	if err := scene.FirstError(stop, s.NoLapses); err != nil {
		return err
	}
	s.Steady("after", lab.Trackless, 700*time.Millisecond)
	return s.ProveTakeover()
}

// startLoops starts programs that never sleep. They end with the scene, at the latest.
func startLoops(s *scene.Scene) (stop func() error, err error) {
	var loops []*lab.Child
	stop = func() error {
		var errs []error
		for _, loop := range loops {
			errs = append(errs, loop.Kill())
		}
		loops = nil
		return errors.Join(errs...)
	}
	s.Cleanups = append(s.Cleanups, func() error { return stop() })
	for range loopsPerProcessor * runtime.NumCPU() {
		loop, err := s.Node.Namespace.Start("busy loop", exec.Command("sh", "-c", "while :; do :; done"))
		if err != nil {
			return nil, err
		}
		loops = append(loops, loop)
	}
	return stop, nil
}

// leaveProcessors has the kernel run the server only when nobody else wants to.
func leaveProcessors(s *scene.Scene) error {
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", s.Server.PID()))
	if err != nil {
		return err
	}
	for _, thread := range threads {
		tid, err := strconv.Atoi(filepath.Base(thread))
		if err != nil {
			return err
		}
		idle := &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_IDLE}
		if err := unix.SchedSetAttr(tid, idle, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return os.NewSyscallError("sched_setattr", err)
		}
	}
	return nil
}
