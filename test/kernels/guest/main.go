// Command guest is the first process of a machine whose initramfs package vm
// wrote. It runs the cases, reports on the second serial port, and switches the
// machine off. Called as modprobe, which the kernel does, it loads modules.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/test/kernels"
)

const (
	planFile    = "/plan.json"
	reportsPort = "/dev/ttyS1"
)

func main() {
	if filepath.Base(os.Args[0]) == "modprobe" {
		if err := modprobe(os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, "modprobe:", err)
			os.Exit(1)
		}
		return
	}
	if len(os.Args) > 1 && os.Args[1] == "cases" {
		if err := runPlan(); err != nil {
			fmt.Fprintln(os.Stderr, "guest:", err)
			os.Exit(1)
		}
		return
	}
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "guest: this is the first process of a virtual machine, and does nothing elsewhere")
		os.Exit(2)
	}
	if err := first(); err != nil {
		fmt.Fprintln(os.Stderr, "guest:", err)
		report(kernels.Report{Error: err.Error()})
	}
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

// first makes the machine usable and waits for the child that runs the cases,
// and for orphans, which become children of the first process.
func first() error {
	if err := setUp(); err != nil {
		return err
	}
	child := exec.Command("/proc/self/exe", "cases")
	child.Stdout, child.Stderr = os.Stdout, os.Stderr
	if err := child.Start(); err != nil {
		return fmt.Errorf("start the process that runs the cases: %w", err)
	}
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Errorf("wait for children: %w", err)
		case pid == child.Process.Pid && status.ExitStatus() != 0:
			return fmt.Errorf("the process that runs the cases ended with status %d (signal %d)", status.ExitStatus(), status.Signal())
		case pid == child.Process.Pid:
			return nil
		}
	}
}

// setUp mounts what programs expect and brings lo up.
func setUp() error {
	for _, m := range []struct{ kind, at string }{
		{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}, {"tmpfs", "/run"}, {"tmpfs", "/tmp"}, {"cgroup2", "/sys/fs/cgroup"},
	} {
		if err := os.MkdirAll(m.at, 0o755); err != nil && m.kind != "cgroup2" {
			return err
		}
		if err := unix.Mount(m.kind, m.at, m.kind, unix.MS_NOSUID, ""); err != nil {
			return fmt.Errorf("mount %s at %s: %w", m.kind, m.at, err)
		}
	}
	for _, variable := range []struct{ name, value string }{
		{"PATH", "/usr/sbin:/usr/bin:/sbin:/bin"}, {"HOME", "/root"}, {"TMPDIR", "/tmp"},
		{"TRACKLESS_REQUIRE_PRIVILEGED", "1"}, {"TRACKLESS_PROGRAM", "/usr/bin/trackless"},
	} {
		if err := os.Setenv(variable.name, variable.value); err != nil {
			return err
		}
	}
	if err := unix.Sethostname([]byte("guest")); err != nil {
		return fmt.Errorf("set the host name: %w", err)
	}
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		return fmt.Errorf("set lo up: %w\n%s", err, out)
	}
	return nil
}

var port *os.File

// report writes a line to the host. Without the port there is nobody to tell
// but the console.
func report(r kernels.Report) {
	if port == nil {
		var err error
		if port, err = openPort(reportsPort); err != nil {
			fmt.Fprintln(os.Stderr, "guest:", err)
			port = os.Stderr
		}
	}
	if err := json.NewEncoder(port).Encode(r); err != nil {
		fmt.Fprintln(os.Stderr, "guest: report:", err)
	}
}

// openPort opens a serial port and takes the terminal's ways from it: no line
// end is rewritten.
func openPort(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	state, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err != nil {
		return nil, fmt.Errorf("read the settings of %s: %w", path, err)
	}
	state.Oflag &^= unix.OPOST
	state.Lflag &^= unix.ECHO
	if err := unix.IoctlSetTermios(int(f.Fd()), unix.TCSETS, state); err != nil {
		return nil, fmt.Errorf("set up %s: %w", path, err)
	}
	return f, nil
}
