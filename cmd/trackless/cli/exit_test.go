package cli

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"
	"testing"

	"github.com/trackless-dns/trackless/conntrack"
)

func TestExitStatus(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		err  error
		want int
	}{
		{"none", nil, 0},
		{"a wrong command line", errors.New("unknown flag"), ExitUsage},
		{"a full disk", &fs.PathError{Op: "write", Path: "/dev/full", Err: syscall.ENOSPC}, ExitFailure},
		{"its own", fmt.Errorf("verb: %w", Exit(7, errors.New("x"))), 7},
		{"a table that cannot be read", CannotMeasure(errors.New("not loaded")), ExitCannotMeasure},
		{"a table that was rebuilt each time", CannotMeasure(fmt.Errorf("gave up: %w", conntrack.ErrInterrupted)), ExitFailure},
		{"one that has a status keeps it", CannotMeasure(Exit(7, errors.New("x"))), 7},
		{"nothing kept it from looking", CannotMeasure(nil), 0},
	} {
		if got := ExitStatus(test.err); got != test.want {
			t.Errorf("%s: exit status %d, want %d", test.name, got, test.want)
		}
	}
}

func TestProgressSaysThatItReadsAgain(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	Progress(&b).Again(conntrack.ErrInterrupted, 2)
	if !strings.Contains(b.String(), "attempt 2 of 3") {
		t.Errorf("%q", b.String())
	}
}
