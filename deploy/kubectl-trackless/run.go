package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"golang.org/x/term"
)

// A view makes the summary of the answers, and writes the details after it. It marks
// answers that it cannot read.
type view func(answers []answer) (summary table, details func(b *bytes.Buffer))

// run asks the nodes that the flags name, and writes their answers.
func (o *options) run(cmd *cobra.Command, q question, look view) error {
	answers, err := o.collect(cmd, func(string) question { return q })
	if err != nil {
		return err
	}
	return o.write(cmd, q.verb(), answers, look)
}

// collect asks the nodes that the flags name.
func (o *options) collect(cmd *cobra.Command, questionFor func(node string) question) ([]answer, error) {
	ctx := cmd.Context()
	if err := o.check(); err != nil {
		return nil, err
	}
	c, err := o.cluster()
	if err != nil {
		return nil, err
	}
	targets, err := c.targets(ctx, o)
	if err != nil {
		return nil, err
	}
	if err := c.mayAsk(ctx, targets, questionFor(targets[0].node)); err != nil {
		return nil, err
	}
	return c.askAll(ctx, targets, o.parallel, cmd.ErrOrStderr(), questionFor), nil
}

// write writes the answers, and returns the error that ends the program with their
// exit status.
func (o *options) write(cmd *cobra.Command, verb string, answers []answer, look view) error {
	summary, details := look(answers)
	status := statusOf(answers)
	if o.output == "json" {
		if err := writeJSON(cmd.OutOrStdout(), verb, status, answers); err != nil {
			return fmt.Errorf("write the answers: %w", err)
		}
		return verdict(verb, status, answers)
	}
	if err := writeText(cmd.OutOrStdout(), summary, answers, details); err != nil {
		return fmt.Errorf("write the answers: %w", err)
	}
	return verdict(verb, status, answers)
}

// askAll asks every target, some at a time, and returns the answers in their order.
func (c *cluster) askAll(ctx context.Context, targets []target, parallel int, errs io.Writer, questionFor func(node string) question) []answer {
	answers := make([]answer, len(targets))
	p := progress{out: errs, of: len(targets), shown: isTerminal(errs)}
	p.say()
	var group errgroup.Group
	group.SetLimit(parallel)
	for i, t := range targets {
		group.Go(func() error {
			answers[i] = c.ask(ctx, t, questionFor(t.node))
			p.one()
			return nil
		})
	}
	stop := context.AfterFunc(ctx, func() { p.note("interrupted: debug pods are being removed") })
	_ = group.Wait() // its functions return no errors
	stop()
	p.clear()
	return answers
}

// A progress is a line on a terminal.
type progress struct {
	mu    sync.Mutex
	out   io.Writer
	shown bool
	done  int
	of    int
}

func (p *progress) one() {
	p.mu.Lock()
	p.done++
	p.mu.Unlock()
	p.say()
}

func (p *progress) say() { p.note(fmt.Sprintf("%d of %d nodes answered", p.done, p.of)) }

const clearLine = "\r\x1b[K"

func (p *progress) note(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.shown {
		fmt.Fprint(p.out, clearLine+text)
	}
}

func (p *progress) clear() { p.note("") }

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// writeJSON is the output of -o json: the same for every verb.
func writeJSON(out io.Writer, verb string, status int, answers []answer) error {
	e := json.NewEncoder(out)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(struct {
		Command string   `json:"command"`
		Status  int      `json:"status"`
		Nodes   []answer `json:"nodes"`
	}{verb, status, answers})
}

// statusOf is the exit status for all nodes: findings before nodes that could not be
// measured, as with one node.
func statusOf(answers []answer) int {
	has := map[int]bool{}
	for _, a := range answers {
		has[a.Status] = true
	}
	for _, status := range []int{exitCritical, exitWarnings, exitCannotMeasure} {
		if has[status] {
			return status
		}
	}
	return 0
}

// verdict is the error that ends the program with the exit status of all nodes.
func verdict(verb string, status int, answers []answer) error {
	if status == 0 {
		return nil
	}
	count := map[int]int{}
	for _, a := range answers {
		count[a.Status]++
	}
	var parts []string
	for _, p := range []struct {
		status int
		text   string
	}{{exitCritical, "with critical findings"}, {exitWarnings, "with warnings"}, {exitCannotMeasure, "not measured"}} {
		if n := count[p.status]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, p.text))
		}
	}
	return &statusError{status, errors.New(verb + ": of " + nodeCount(len(answers)) + " " + strings.Join(parts, ", "))}
}

func nodeCount(n int) string {
	if n == 1 {
		return "1 node"
	}
	return fmt.Sprintf("%d nodes", n)
}
