// Package labtest is what tests need to work on a lab node: the program under
// test, built from these sources, and a node that goes with the test.
package labtest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/lab"
)

// command is the package of the program that lab nodes run.
const command = "github.com/trackless-dns/trackless/cmd/trackless"

// Program returns the path of a trackless binary built from these sources, once
// for all tests of the process. Where the environment variable
// TRACKLESS_PROGRAM names one, it is that. The path is good for this process
// and its children; no file is left behind.
func Program(t testing.TB) string {
	t.Helper()
	path, err := program()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

var program = sync.OnceValues(func() (string, error) {
	if path := os.Getenv("TRACKLESS_PROGRAM"); path != "" {
		return filepath.Abs(path)
	}
	dir, err := os.MkdirTemp("", "trackless-program-")
	if err != nil {
		return "", err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	path := filepath.Join(dir, "trackless")
	if output, err := exec.Command("go", "build", "-o", path, command).CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w\n%s", command, err, output)
	}
	// The open file outlives its name and ends with this process. An os.File
	// would be closed when nothing refers to it.
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("open %s: %w", path, err)
	}
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fd), nil
})

// Require skips the test on a machine that cannot run a lab node, with the
// reason, or fails it if TRACKLESS_REQUIRE_PRIVILEGED=1.
func Require(t testing.TB) {
	t.Helper()
	if err := missing(); err != nil {
		testns.Skip(t, "this machine cannot run a lab node: %v", err)
	}
}

var missing = sync.OnceValue(func() error {
	return lab.Missing(lab.Options{WithoutIPv6: !lab.HasIPv6()})
})

// NewNode builds a node that is closed with the test. The options' Program is
// filled in unless set, and IPv6 left out where this kernel has none.
func NewNode(t testing.TB, options lab.Options) *lab.Node {
	t.Helper()
	Require(t)
	if options.Program == "" && !options.WithoutKubeDNS {
		options.Program = Program(t)
	}
	options.WithoutIPv6 = options.WithoutIPv6 || !lab.HasIPv6()
	node, err := lab.NewNode(t.Context(), options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := node.Close(); err != nil {
			t.Errorf("close the node: %v", err)
		}
	})
	return node
}
