package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/trackless-dns/trackless/test/kernels"
)

// An emulator runs a kernel with an initramfs, without a disk and without a
// network, on an emulated processor: it needs no /dev/kvm.
type emulator struct {
	kernel    *kernel
	initramfs string
	console   string // a file for what the kernel and the first process say
	memory    int    // MiB
}

// consoleTail is how much of the console an error shows.
const consoleTail = 4 << 10

// run starts the machine, calls hear with each of its reports, and returns when
// it has switched itself off. It is an error if that happened before the last
// report, or the context ended.
func (e *emulator) run(ctx context.Context, hear func(kernels.Report)) error {
	cmd := exec.CommandContext(ctx, "nice", "-n", "10", "qemu-system-x86_64",
		// The machine's clock counts instructions, a nanosecond each, and runs
		// ahead while there is nothing to do: a busy host makes the machine take
		// longer, and not its programs miss their deadlines. With several
		// processors the kernel does not come up that way.
		"-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off", "-cpu", "max",
		"-m", strconv.Itoa(e.memory),
		"-kernel", e.kernel.image, "-initrd", e.initramfs,
		// A panic ends the machine, which -no-reboot makes the end of QEMU.
		"-append", "console=ttyS0 quiet panic=-1", "-no-reboot",
		"-nodefaults", "-display", "none",
		"-serial", "file:"+e.console, "-serial", "stdio")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	// The machine ends with this process, however that does. The signal is sent
	// when the thread ends that started it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	reports, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start QEMU: %w", err)
	}
	done, heardErr := listen(bufio.NewReader(reports), hear)
	err = cmd.Wait()
	switch {
	case context.Cause(ctx) != nil:
		return fmt.Errorf("the machine was ended: %w; its console:\n%s", context.Cause(ctx), e.consoleEnd())
	case err != nil:
		return fmt.Errorf("QEMU: %w\n%s", err, stderr.String())
	case heardErr != nil:
		return heardErr
	case !done:
		return fmt.Errorf("the machine ended before its last report; its console:\n%s", e.consoleEnd())
	}
	return nil
}

// listen reads reports, one a line, to the end.
func listen(r *bufio.Reader, hear func(kernels.Report)) (done bool, err error) {
	for {
		line, readErr := r.ReadBytes('\n')
		if len(line) > 0 {
			var report kernels.Report
			switch jsonErr := json.Unmarshal(line, &report); {
			case jsonErr != nil:
				err = errors.Join(err, fmt.Errorf("not a report: %q: %w", line, jsonErr))
			case report.Error != "":
				err = errors.Join(err, fmt.Errorf("the machine: %s", report.Error))
			default:
				done = done || report.Done
				hear(report)
			}
		}
		if readErr != nil {
			return done, err
		}
	}
}

func (e *emulator) consoleEnd() string {
	text, err := os.ReadFile(e.console)
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-consoleTail):])
}

// bounded ends the machine after a time.
func bounded(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, limit, fmt.Errorf("not done after %s", limit))
}
