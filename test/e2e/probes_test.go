//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/procfs"
)

const (
	// maxProbeCost is what the probes of a pod may cost its control group, in CPU
	// time a minute.
	maxProbeCost = 100 * time.Millisecond

	probedFor = 2 * time.Minute
)

// TestProbeCost measures what the probes of the manifests cost a pod: all CPU time of
// its control group that is not the server's own. It is CPU time, so that a busy
// machine does not matter.
func TestProbeCost(t *testing.T) {
	manifest := overlay(t, "cluster-ip")
	apply(t, manifest)
	rolledOut(t, "trackless")
	time.Sleep(30 * time.Second) // until both probes run
	pid := lab.containerPID(t, "n1", "trackless")
	group := controlGroup(t, pid)
	groupBefore, serverBefore := groupCPU(t, group), processCPU(t, pid)
	time.Sleep(probedFor)
	server := processCPU(t, pid) - serverBefore
	probes := groupCPU(t, group) - groupBefore - server
	cost := time.Duration(float64(probes) / probedFor.Minutes())
	t.Logf("in %s the server took %s, probes %s: %s a minute", probedFor, server, probes, cost)
	// There are four of them, and to start a program takes more than a millisecond.
	if cost > maxProbeCost || probes < 4*time.Millisecond {
		t.Errorf("the probes of a pod cost %s of CPU a minute, want at most %s, and something", cost, maxProbeCost)
	}
	remove(t, manifest)
	nothingLeft(t)
}

// controlGroup is the directory of a process's group in the hierarchy that accounts
// CPU time.
func controlGroup(t *testing.T, pid int) string {
	t.Helper()
	for line := range strings.Lines(readFile(t, fmt.Sprintf("/proc/%d/cgroup", pid))) {
		if f := strings.SplitN(strings.TrimSpace(line), ":", 3); len(f) == 3 && strings.Contains(","+f[1]+",", ",cpuacct,") {
			return filepath.Join("/sys/fs/cgroup/cpuacct", f[2])
		}
	}
	t.Fatalf("process %d is in no group of cpuacct", pid)
	return ""
}

func groupCPU(t *testing.T, group string) time.Duration {
	t.Helper()
	return time.Duration(number(t, strings.TrimSpace(readFile(t, filepath.Join(group, "cpuacct.usage")))))
}

// processCPU is the CPU time of all threads of a process, those that have ended
// included.
func processCPU(t *testing.T, pid int) time.Duration {
	t.Helper()
	p, err := procfs.NewProc(pid)
	if err != nil {
		t.Fatal(err)
	}
	stat, err := p.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return time.Duration(stat.CPUTime() * float64(time.Second))
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func number(t *testing.T, text string) int64 {
	t.Helper()
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
