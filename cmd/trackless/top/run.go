package top

import (
	"context"
	"errors"
	"fmt"
	"io"

	tea "charm.land/bubbletea/v2"
)

// Run shows the screen on a terminal until a key or the end of the context ends it. Read runs
// meanwhile on the calling thread: it hands over readings until its context ends.
func Run(ctx context.Context, s Screen, in io.Reader, out io.Writer, read func(ctx context.Context, show func(Reading)) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// Who calls has its own handling of signals: they end ctx.
	p := tea.NewProgram(s, tea.WithContext(ctx), tea.WithInput(in), tea.WithOutput(out), tea.WithoutSignalHandler())
	ended := make(chan error, 1)
	go func() {
		_, err := p.Run()
		cancel()
		ended <- err
	}()
	failed := read(ctx, func(r Reading) { p.Send(r) })
	p.Quit()
	err := <-ended
	if errors.Is(err, context.Canceled) {
		err = nil
	}
	if err != nil {
		err = fmt.Errorf("show the screen: %w; `--once` needs no terminal", err)
	}
	return errors.Join(failed, err)
}
