// Package kernels runs tests on another kernel than this machine's: Debian's
// 6.1, as its package delivers it, in a virtual machine that is emulated in
// software. It names the cases and says how the machine reports on them; package
// vm builds the machine and starts it, package guest is its first process.
//
// Everything the machine has lies in its initramfs: the tests as binaries, the
// program under test, the modules of the package, and the programs with which
// tests compare, copied from this machine with the libraries they need. Modules
// are loaded when the kernel asks for them, as on a Debian machine.
//
// The machine has one processor and its clock counts instructions, so that its
// times and deadlines are the same on any host, however busy.
package kernels

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// A Case is a set of tests that together show one thing.
type Case struct {
	// Name is stable; What says what the tests show.
	Name string
	What string

	// Package holds the tests, as a path from the top of the module. Tests is
	// the expression that selects them and Skip that of those left out (go test
	// -run, -skip); an empty one selects all, or none. A test that skips itself
	// fails the case.
	Package     string
	Tests, Skip string
}

// Binary is the name of the case's test binary: the package's path, since two
// packages may have the same last word.
func (c Case) Binary() string { return strings.ReplaceAll(c.Package, "/", "-") + ".test" }

// Select returns the cases of the given names, or an error that lists those that
// there are.
func Select(cases []Case, names []string) ([]Case, error) {
	var selected []Case
	for _, name := range names {
		at := slices.IndexFunc(cases, func(c Case) bool { return c.Name == name })
		if at < 0 {
			known := make([]string, 0, len(cases))
			for _, c := range cases {
				known = append(known, c.Name)
			}
			return nil, fmt.Errorf("no case is called %q; there are %s", name, strings.Join(known, ", "))
		}
		selected = append(selected, cases[at])
	}
	return selected, nil
}

// A Plan is what the machine is to do.
type Plan struct {
	Cases []Case

	// Limit bounds each case, by the machine's clock.
	Limit time.Duration
}

// A Report is one line that the machine writes to its second serial port, as
// JSON: Kernel when it is up, Result after each case, Done at the end. Error is
// why there was nothing to be done.
type Report struct {
	Kernel string  `json:",omitempty"`
	Result *Result `json:",omitempty"`
	Done   bool    `json:",omitempty"`
	Error  string  `json:",omitempty"`
}

// A Result is what became of a case. The fields are what JSON output shows.
type Result struct {
	Name    string   `json:"name"`
	What    string   `json:"what"`
	Passed  bool     `json:"passed"`
	Tests   int      `json:"tests"`
	Skipped []string `json:"skipped,omitempty"`
	Seconds float64  `json:"seconds"` // of the machine's clock

	// Failure says why it did not pass, with the last output of its tests.
	Failure string `json:"failure,omitempty"`
}
