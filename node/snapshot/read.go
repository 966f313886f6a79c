package snapshot

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
)

// maxSize bounds what is read; a snapshot has some ten kilobytes.
const maxSize = 64 << 20

// ErrNewer is in the error of Read for a snapshot of a version that it does not
// know.
var ErrNewer = errors.New("it was taken by a newer Trackless")

// Read reads a snapshot and checks that it is one, and whole. Fields that are
// not known are left out. The error is a sentence without the file's name.
func Read(r io.Reader) (*Snapshot, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxSize+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxSize {
		return nil, fmt.Errorf("no snapshot: it has more than %d MiB", maxSize>>20)
	}
	if len(bytes.TrimSpace(b)) == 0 {
		return nil, errors.New("the file is empty; take the snapshot again")
	}
	var head struct {
		Schema string `json:"schema"`
	}
	if err := json.Unmarshal(b, &head); err != nil {
		return nil, notJSON(b, err)
	}
	if err := checkSchema(head.Schema); err != nil {
		return nil, err
	}
	var s Snapshot
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, notJSON(b, err)
	}
	return &s, s.check()
}

func notJSON(b []byte, err error) error {
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) && syntax.Offset >= int64(len(b)) && bytes.HasPrefix(bytes.TrimSpace(b), []byte("{")) {
		return fmt.Errorf("it ends after %d bytes in the middle of the snapshot; copy or take it again", len(b))
	}
	return fmt.Errorf("no snapshot: %w", err)
}

func checkSchema(schema string) error {
	const name = "trackless.snapshot/v"
	known, _ := strconv.Atoi(strings.TrimPrefix(Schema, name))
	version, ok := strings.CutPrefix(schema, name)
	n, err := strconv.Atoi(version)
	switch {
	case schema == "":
		return errors.New("no snapshot: it has no field schema; `trackless snapshot` writes them")
	case !ok || err != nil || n < 1:
		return fmt.Errorf("no snapshot: its schema is %q, that of a snapshot %s", schema, Schema)
	case n > known:
		return fmt.Errorf("%w: its schema is %s, and this version knows %s; use that version for both", ErrNewer, schema, Schema)
	}
	return nil
}

// check finds what a program that writes snapshots would not write.
func (s *Snapshot) check() error {
	if s.Time.IsZero() {
		return errors.New("no whole snapshot: it does not say when it was taken")
	}
	if s.WindowSeconds < 0 || math.IsInf(s.WindowSeconds, 0) {
		return fmt.Errorf("no snapshot: a window of %v seconds", s.WindowSeconds)
	}
	for i, p := range s.Samples {
		if p.Seconds < 0 || i > 0 && p.Seconds < s.Samples[i-1].Seconds {
			return fmt.Errorf("no snapshot: sample %d, at %v seconds, is out of order", i+1, p.Seconds)
		}
	}
	return nil
}
