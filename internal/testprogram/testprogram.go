// Package testprogram finds the trackless binary under test.
package testprogram

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// Var names the environment variable with the path of the binary. Without it the
// binary is built from these sources.
const Var = "TRACKLESS_PROGRAM"

// command is the package of the program.
const command = "github.com/trackless-dns/trackless/cmd/trackless"

// File is the path of the binary. One that is built lies in the folder: other users,
// and containers with processes of their own, can run it if they can read that.
func File(folder string) (string, error) {
	if path := os.Getenv(Var); path != "" {
		return filepath.Abs(path)
	}
	path := filepath.Join(folder, "trackless")
	build := exec.Command("go", "build", "-o", path, command)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if output, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w\n%s", command, err, output)
	}
	return path, nil
}

// Path is the path of the binary. One that is built is built once for the process
// and good for it and its children; no file is left behind.
func Path() (string, error) { return path() }

var path = sync.OnceValues(func() (string, error) {
	folder, err := os.MkdirTemp("", "trackless-program-")
	if err != nil {
		return "", err
	}
	defer func() { _ = os.RemoveAll(folder) }()
	path, err := File(folder)
	if err != nil || os.Getenv(Var) != "" {
		return path, err
	}
	// The open file outlives its name and ends with this process. An os.File
	// would be closed when nothing refers to it.
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("open %s: %w", path, err)
	}
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fd), nil
})
