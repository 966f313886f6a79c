//go:build privileged

package kernel

import (
	"errors"
	"runtime"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/internal/testns"
)

// What the container has: without CAP_PERFMON the verifier is stricter. Without CAP_BPF
// the error says so.
func TestCapabilities(t *testing.T) {
	testns.Root(t)
	if err := liftLockedMemory(); err != nil { // container runtimes have no limit
		t.Fatal(err)
	}
	for _, row := range []struct {
		name string
		have []uint
		want string // the error
	}{
		{"BPF and NET_ADMIN", []uint{capBPF, unix.CAP_NET_ADMIN}, ""},
		{"NET_ADMIN", []uint{unix.CAP_NET_ADMIN}, "lacks CAP_BPF"},
		{"BPF", []uint{capBPF}, "lacks CAP_NET_ADMIN"},
	} {
		t.Run(row.name, func(t *testing.T) {
			p, err := loadWith(row.have)
			if err == nil {
				defer p.Close()
			}
			if err != nil && strings.Contains(err.Error(), "pointer comparison prohibited") {
				t.Skip("this kernel's verifier, as that of Linux 5.10, lets CAP_PERFMON alone read packets")
			}
			if row.want == "" && err != nil || row.want != "" && (err == nil || !strings.Contains(err.Error(), row.want)) {
				t.Errorf("error %v, want %q", err, row.want)
				if verifier := (*ebpf.VerifierError)(nil); errors.As(err, &verifier) {
					t.Logf("%+v", verifier)
				}
			}
		})
	}
}

// loadWith loads the program on a thread that has these capabilities, and ends with it.
func loadWith(have []uint) (p *Program, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var data [2]unix.CapUserData
		for _, c := range have {
			data[c/32].Effective |= 1 << (c % 32)
			data[c/32].Permitted |= 1 << (c % 32)
		}
		if err = unix.Capset(&header, &data[0]); err == nil {
			p, err = Load(1 << 20)
		}
	}()
	<-done
	return p, err
}

// A kernel that refuses for another cause is not told from one without the capability.
func TestExplain(t *testing.T) {
	testns.Root(t)
	for _, row := range []struct {
		name        string
		err, locked error
		want        string
	}{
		{"seccomp", unix.EPERM, nil, "seccomp"},
		{"locked memory", unix.EPERM, unix.EPERM, "LimitMEMLOCK"},
		{"the container's memory", unix.ENOMEM, nil, "memory limit of the container"},
		{"another", unix.EINVAL, nil, "invalid argument"},
	} {
		if got := explain(row.err, row.locked).Error(); !strings.Contains(got, row.want) {
			t.Errorf("%s: %s, want %q", row.name, got, row.want)
		}
	}
}
