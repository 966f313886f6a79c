package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"

	"github.com/trackless-dns/trackless/test/kernels"
)

// build compiles the machine's first process, the program under test and the
// tests, static and for the machine's processor, into a folder.
func build(ctx context.Context, source, to string, cases []kernels.Case) error {
	commands := [][]string{
		{"build", "-o", filepath.Join(to, "guest"), "./test/kernels/guest"},
		{"build", "-o", filepath.Join(to, "trackless"), "./cmd/trackless"},
	}
	built := map[string]bool{}
	for _, c := range cases {
		if !built[c.Package] {
			built[c.Package] = true
			commands = append(commands, []string{"test", "-c", "-tags", "kernels,privileged,load", "-o", filepath.Join(to, c.Binary()), "./" + c.Package})
		}
	}
	for _, args := range commands {
		args = slices.Insert(args, 1, "-ldflags", "-s -w")
		cmd := exec.CommandContext(ctx, "nice", append([]string{"-n", "10", "go"}, args...)...)
		cmd.Dir = source
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("go %v: %w\n%s", args, err, out)
		}
	}
	return nil
}
