// Package format writes entries of the connection tracking table as text: for people (table,
// wide), for programs (json, jsonl, yaml), and in the form of conntrack(8), for scripts that
// read its output.
//
// Every writer streams: it does not keep entries that were written.
package format

import (
	"bufio"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/trackless-dns/trackless/conntrack"
)

// Names are the formats that New accepts.
var Names = []string{"table", "wide", "json", "jsonl", "yaml", "conntrack"}

// A Writer writes entries and events in one format. It buffers: call Flush when a reader
// waits, and Close at the end, which completes the document. It does not close the
// io.Writer.
type Writer struct {
	out   *bufio.Writer
	buf   []byte
	codec codec
	count int
}

// A codec appends the parts of a document. first is true for the first entry.
type codec interface {
	begin(b []byte) []byte
	entry(b []byte, e *conntrack.Entry, event conntrack.EventType, first bool) []byte
	end(b []byte, empty bool) []byte
}

const outputBufferSize = 64 << 10

// New returns a writer in the format with this name.
func New(name string, w io.Writer) (*Writer, error) {
	var c codec
	switch name {
	case "table":
		c = &table{columns: tableColumns()}
	case "wide":
		c = &table{columns: wideColumns()}
	case "json":
		c = jsonDocument{}
	case "jsonl":
		c = jsonLines{}
	case "yaml":
		c = &yamlDocument{}
	case "conntrack":
		c = conntrackLines{now: time.Now, program: programName}
	default:
		return nil, fmt.Errorf("no output format %q; there are %s", name, strings.Join(Names, ", "))
	}
	f := &Writer{out: bufio.NewWriterSize(w, outputBufferSize), codec: c}
	_, err := f.out.Write(c.begin(nil))
	return f, err
}

// Entry writes one entry. e is not kept.
func (w *Writer) Entry(e *conntrack.Entry) error { return w.Event(0, e) }

// Event writes one event. e is not kept.
func (w *Writer) Event(t conntrack.EventType, e *conntrack.Entry) error {
	w.buf = w.codec.entry(w.buf[:0], e, t, w.count == 0)
	w.count++
	_, err := w.out.Write(w.buf)
	return err
}

// Count returns how many entries and events were written.
func (w *Writer) Count() int { return w.count }

// Flush writes the buffered bytes to the io.Writer.
func (w *Writer) Flush() error { return w.out.Flush() }

// Close completes the document and flushes it.
func (w *Writer) Close() error {
	if _, err := w.out.Write(w.codec.end(w.buf[:0], w.count == 0)); err != nil {
		return err
	}
	return w.out.Flush()
}
