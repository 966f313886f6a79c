package scene

import (
	"bytes"
	"fmt"
	"os/exec"
	"strings"

	"github.com/trackless-dns/trackless/lab"
)

// RunProgram runs a program inside the namespace with the input, and returns its
// standard output. An error holds what it wrote to standard error.
func RunProgram(ns *lab.Namespace, input string, name string, args ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	err := ns.Do(func() error {
		cmd := exec.Command(name, args...)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(input), &stdout, &stderr
		return cmd.Run()
	})
	if err != nil {
		return "", fmt.Errorf("%s %s in %s: %w: %s",
			name, strings.Join(args, " "), ns.Name(), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// RunAll runs commands, given as lines of words, one after the other.
func RunAll(ns *lab.Namespace, lines ...string) error {
	for _, line := range lines {
		words := strings.Fields(line)
		if _, err := RunProgram(ns, "", words[0], words[1:]...); err != nil {
			return err
		}
	}
	return nil
}
