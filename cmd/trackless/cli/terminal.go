package cli

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// IsTerminal reports whether the writer is a terminal.
func IsTerminal(w io.Writer) bool {
	file, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(file.Fd()), unix.TCGETS)
	return err == nil
}

// Coloured reports whether output is for a terminal that can show colour and
// wants it (https://no-color.org).
func Coloured(out io.Writer) bool {
	return IsTerminal(out) && !DumbTerminal() && os.Getenv("NO_COLOR") == ""
}

// DumbTerminal reports whether the terminal knows no escape sequences (term(7)).
func DumbTerminal() bool { return os.Getenv("TERM") == "dumb" }

// ReadableWidth is the longest line of running text.
const ReadableWidth = 90

// TerminalWidth is the number of columns of a terminal, 0 for anything else and
// for one that does not say.
func TerminalWidth(w io.Writer) int {
	file, ok := w.(*os.File)
	if !ok {
		return 0
	}
	size, err := unix.IoctlGetWinsize(int(file.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0
	}
	return int(size.Col)
}

// TextWidth is the width of running text on w.
func TextWidth(w io.Writer) int {
	if width := TerminalWidth(w); width > 0 {
		return min(width, ReadableWidth)
	}
	return ReadableWidth
}

// WriteWrapped writes text behind a lead in lines of a width, further lines
// indented as far.
func WriteWrapped(b *bytes.Buffer, width int, lead, text string) {
	column := utf8.RuneCountInString(lead)
	indent := column
	b.WriteString(lead)
	for i, word := range strings.Fields(text) {
		length := utf8.RuneCountInString(word)
		if i > 0 && column+1+length > width {
			fmt.Fprintf(b, "\n%*s", indent, "")
			column = indent
		} else if i > 0 {
			b.WriteByte(' ')
			column++
		}
		b.WriteString(word)
		column += length
	}
	b.WriteByte('\n')
}

// WriteLine writes a line, wrapped where a terminal has a width.
func WriteLine(b *bytes.Buffer, width int, text string) {
	if width == 0 {
		b.WriteString(text + "\n")
		return
	}
	WriteWrapped(b, width, "", text)
}

// ClearLine goes to the start of the line and empties it.
const ClearLine = "\r\x1b[K"

// Colours of ANSI X3.64.
const (
	Green  = "32"
	Yellow = "33"
	Red    = "31"
	Bold   = "1"
)

// Painted returns a text in a colour, or as it is.
func Painted(text, code string, colour bool) string {
	if !colour || code == "" {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}
