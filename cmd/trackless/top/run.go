package top

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// Run shows the screen on a terminal until a key or the end of the context ends it. Read runs
// meanwhile on the calling thread: it hands over pages until its context ends.
func Run(ctx context.Context, s Screen, in io.Reader, out io.Writer, read func(ctx context.Context, show func(Page)) error) error {
	keyboard, isFile := in.(*os.File)
	display, isFileToo := out.(*os.File)
	if !isFile || !isFileToo {
		return errors.New("the screen needs a terminal; --once writes the groups without one")
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	pages := make(chan Page)
	ended := make(chan error, 1)
	go func() {
		defer cancel()
		ended <- s.show(ctx, keyboard, display, pages)
	}()
	failed := read(ctx, func(p Page) {
		select {
		case pages <- p:
		case <-ctx.Done():
		}
	})
	cancel()
	err := <-ended
	if err != nil {
		err = fmt.Errorf("show the screen: %w; --once needs no terminal", err)
	}
	return errors.Join(failed, err)
}

// Control sequences (XTerm Control Sequences, "Functions using CSI").
const (
	enterScreen = "\x1b[?1049h\x1b[?25l\x1b]2;trackless\a" // another screen, no cursor, a title
	leaveScreen = "\x1b[?25h\x1b[?1049l"
	toTheTop    = "\x1b[H"
	clearRest   = "\x1b[K" // of the line
	clearBelow  = "\x1b[J"
)

// escapeDelay is how long the rest of a key may take after ESC, which is a key, too.
const escapeDelay = 50 * time.Millisecond

// show draws the screen anew at each page, key and change of the terminal's size. It
// leaves the terminal as it was.
func (s Screen) show(ctx context.Context, keyboard, display *os.File, pages <-chan Page) error {
	before, err := term.MakeRaw(int(keyboard.Fd()))
	if err != nil {
		return fmt.Errorf("have the terminal send single keys: %w", err)
	}
	defer func() { _ = term.Restore(int(keyboard.Fd()), before) }()
	if _, err := display.WriteString(enterScreen); err != nil {
		return err
	}
	defer func() { _, _ = display.WriteString(leaveScreen) }()
	resized := make(chan os.Signal, 1)
	signal.Notify(resized, unix.SIGWINCH)
	defer signal.Stop(resized)
	input := inputOf(ctx, keyboard)
	var rest []byte // the beginning of a key
	for {
		if err := s.draw(display); err != nil {
			return err
		}
		var late <-chan time.Time
		if len(rest) > 0 {
			late = time.After(escapeDelay)
		}
		var keys []string
		select {
		case <-ctx.Done():
			return nil
		case p := <-pages:
			s = s.With(p)
		case <-resized:
		case <-late:
			keys, rest = keysOf(rest, true)
		case more, open := <-input:
			if !open {
				return nil // the terminal is gone
			}
			keys, rest = keysOf(append(rest, more...), false)
		}
		for _, key := range keys {
			var quit bool
			if s, quit = s.Press(key); quit {
				return nil
			}
		}
	}
}

// inputOf hands over the input of a terminal. A goroutine waits for a key until the process
// ends: nothing interrupts it.
func inputOf(ctx context.Context, keyboard io.Reader) <-chan []byte {
	input := make(chan []byte)
	go func() {
		defer close(input)
		for {
			buffer := make([]byte, 64)
			n, err := keyboard.Read(buffer)
			if err != nil {
				return
			}
			select {
			case input <- buffer[:n]:
			case <-ctx.Done():
				return
			}
		}
	}()
	return input
}

// draw writes the screen in the terminal's present size.
func (s *Screen) draw(display *os.File) error {
	width, height, err := term.GetSize(int(display.Fd()))
	if err != nil {
		return fmt.Errorf("ask the terminal for its size: %w", err)
	}
	*s = s.Sized(width, height)
	_, err = display.WriteString(frame(s.Lines(), s.height))
	return err
}

// frame returns the bytes that replace a screen by these lines.
func frame(lines []string, height int) string {
	text := toTheTop + clearRest + strings.Join(lines, "\r\n"+clearRest)
	if len(lines) < height {
		text += "\r\n" + clearBelow
	}
	return text
}
