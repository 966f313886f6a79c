package chaos

import (
	"context"
	"fmt"
	"io"
	"slices"

	"github.com/trackless-dns/trackless/test/chaos/scene"
)

// A Matrix plays cases one after the other and writes a line for each.
type Matrix struct {
	Cases    []*scene.Case
	Programs *scene.Programs

	// Sabotage also plays every case with its sabotage.
	Sabotage bool

	// Out takes the lines; nil means none.
	Out io.Writer
}

// Select keeps the cases of the given names, or returns an error that lists
// those that there are.
func (m *Matrix) Select(names []string) error {
	var selected []*scene.Case
	for _, name := range names {
		if !slices.ContainsFunc(m.Cases, func(c *scene.Case) bool { return c.Name == name }) {
			known := make([]string, 0, len(m.Cases))
			for _, c := range m.Cases {
				known = append(known, c.Name)
			}
			return fmt.Errorf("no fault is called %q; there are %v", name, known)
		}
		for _, c := range m.Cases {
			if c.Name == name {
				selected = append(selected, c)
			}
		}
	}
	m.Cases = selected
	return nil
}

// Run plays the cases until the context ends. ok is false if a promise was
// broken, or a case survived its sabotage.
func (m *Matrix) Run(ctx context.Context) (results []*scene.Result, ok bool) {
	out := m.Out
	if out == nil {
		out = io.Discard
	}
	scene.WriteHead(out)
	ok = true
	for _, c := range m.Cases {
		if ctx.Err() != nil {
			return results, false
		}
		result := c.Run(ctx, m.Programs, false)
		results = append(results, result)
		result.WriteLine(out)
		result.WriteFailures(out)
		ok = ok && (result.Passed || result.Skipped != "")
		if !m.Sabotage || result.Skipped != "" {
			continue
		}
		if err := c.RunSabotaged(ctx, m.Programs); err != nil {
			ok = false
			fmt.Fprintf(out, "    sabotage: %v\n", err)
		}
	}
	return results, ok
}
