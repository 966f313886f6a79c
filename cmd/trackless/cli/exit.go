package cli

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/trackless-dns/trackless/conntrack"
)

// Exit statuses shared by the verbs. A verb with more of them documents them
// in its help text.
const (
	ExitFailure = 1 // what was asked for did not work, or a promise did not hold
	ExitUsage   = 2 // the command line is wrong, or this machine cannot run it
	// ExitCannotMeasure is that of verbs that read the table where it cannot be
	// read, and of verbs that judge for a wrong command line.
	ExitCannotMeasure = 3
	ExitInterrupted   = 130 // by a signal, as shells have it
)

// Exit gives an error its exit status.
func Exit(code int, err error) error { return &ExitError{code, err} }

// ExitError carries an exit status through cobra.
type ExitError struct {
	Code int
	err  error
}

func (e *ExitError) Error() string { return e.err.Error() }

func (e *ExitError) Unwrap() error { return e.err }

// ExitStatus returns the exit status of an error. An error that carries none is a
// wrong command line, unless the output could not be written, as on a full disk.
func ExitStatus(err error) int {
	var exit *ExitError
	var file *fs.PathError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.Code
	case errors.As(err, &file) && file.Op == "write":
		return ExitFailure
	}
	return ExitUsage
}

// CannotMeasure gives an error that kept a verb from reading the table its exit
// status.
func CannotMeasure(err error) error {
	if err == nil {
		return nil
	}
	var has *ExitError
	if errors.As(err, &has) {
		return err
	}
	if errors.Is(err, conntrack.ErrInterrupted) {
		return Exit(ExitFailure, err)
	}
	if conntrack.IsPermission(err) {
		err = fmt.Errorf("%w\nwithout it `trackless conntrack limits` works, and `trackless conntrack stats` shows how full the table is", err)
	}
	return Exit(ExitCannotMeasure, err)
}
