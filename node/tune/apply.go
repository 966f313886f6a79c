package tune

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/trackless-dns/trackless/conntrack/sysctl"
)

// Files of the host: what Revert needs, and the parameter with the hash size.
const (
	StateFile    = "/var/lib/trackless/tune.json"
	HashsizeFile = "/sys/module/nf_conntrack/parameters/hashsize"
	hashsizeName = "hashsize"
)

// state is what --revert needs: what was before the first --apply, and what
// was set since.
type state struct {
	Time     time.Time    `json:"time"`
	Settings []value      `json:"settings"`
	Files    []fileBefore `json:"files"`
}

// value is a sysctl, or the hash size under the name hashsize.
type value struct {
	Name     string `json:"name"`
	Previous string `json:"previous"`
	Set      string `json:"set"`
}

type fileBefore struct {
	Path string `json:"path"`
	// Previous is nil if there was no such file.
	Previous *string `json:"previous"`
}

// A Step is something that was done, or was to be restored and is left alone.
type Step struct {
	Kind StepKind
	// Name is the name of a setting or the path of a file.
	Name string
	// Value is what a setting is now. Other is what it was before, or for LeftAlone
	// what it had been set to.
	Value, Other string
}

// A StepKind says what was done.
type StepKind int

// The kinds of steps.
const (
	ValueSet StepKind = iota
	FileWritten
	ValueRestored
	ValueLeftAlone // somebody changed it since
	FileRestored
	FileRemoved // there was none before
)

// An UnchangedError says why nothing was done.
type UnchangedError struct{ err error }

func (e *UnchangedError) Error() string { return e.err.Error() }
func (e *UnchangedError) Unwrap() error { return e.err }

// Apply writes the files and sets the settings, or leaves all as it was. An
// *UnchangedError says that it did not begin. Refusal has to be asked before.
func (p *Plan) Apply(root string, done func(Step)) error {
	state, err := readState(root)
	if err != nil {
		return &UnchangedError{err}
	}
	var undos []func() error // each undoes a step
	undo := func(cause error) error {
		errs := []error{cause}
		for _, step := range slices.Backward(undos) {
			errs = append(errs, step())
		}
		return fmt.Errorf("%w\nwhat was changed before is as it was again", errors.Join(errs...))
	}
	// The former settings are on disk before anything changes.
	values, err := p.changes(root)
	if err != nil {
		return &UnchangedError{err}
	}
	state.Time = time.Now().UTC()
	for _, v := range values {
		state.remember(v)
	}
	for _, f := range p.Files {
		previous, err := readIfThere(root, f.Path)
		if err != nil {
			return &UnchangedError{err}
		}
		state.rememberFile(f.Path, previous)
	}
	before, err := state.write(root)
	if err != nil {
		return err
	}
	undos = append(undos, func() error { _, err := writeKeeping(root, StateFile, before); return err })

	for _, v := range values {
		if err := writeValue(root, v.Name, v.Set); err != nil {
			return undo(err)
		}
		undos = append(undos, func() error { return writeValue(root, v.Name, v.Previous) })
		done(Step{ValueSet, v.Name, v.Set, v.Previous})
	}
	for _, f := range p.Files {
		previous, err := writeKeeping(root, f.Path, &f.Content)
		if err != nil {
			return undo(err)
		}
		undos = append(undos, func() error { _, err := writeKeeping(root, f.Path, previous); return err })
		done(Step{Kind: FileWritten, Name: f.Path})
	}
	return nil
}

// changes returns the values that are to change, with what they are now: the
// hash before the limit that it is for.
func (p *Plan) changes(root string) ([]value, error) {
	wanted := []value{{Name: hashsizeName, Set: fmt.Sprint(p.Size.Buckets)}}
	for _, s := range p.Settings {
		wanted = append(wanted, value{Name: s.Name, Set: fmt.Sprint(s.Value)})
	}
	var list []value
	for _, v := range wanted {
		var err error
		if v.Previous, err = readValue(root, v.Name); err != nil {
			return nil, err
		}
		if v.Previous != v.Set {
			list = append(list, v)
		}
	}
	return list, nil
}

// Refusal says why settings cannot be applied here: "" if they can.
func Refusal(root string, getenv func(string) string) string {
	if root == "/" {
		for _, name := range []string{"KUBERNETES_SERVICE_HOST", "container"} {
			if getenv(name) != "" {
				return "this is a container (environment variable " + name + ")"
			}
		}
		for _, file := range []string{"/.dockerenv", "/run/.containerenv"} {
			if _, err := os.Stat(file); err == nil {
				return "this is a container (" + file + ")"
			}
		}
	}
	path := filepath.Join(root, "proc/sys/net/netfilter/nf_conntrack_max")
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return fmt.Sprintf("nf_conntrack_max cannot be written (%v): not root, or not in the host's network namespace", err)
	}
	_ = f.Close()
	if info, err := os.Stat(path); err == nil && info.Mode()&0o200 == 0 {
		return "nf_conntrack_max is read-only: this is not the host's network namespace"
	}
	return ""
}

// Revert restores what was before the first Apply. A value that somebody else
// changed since is left alone. An *UnchangedError says that it did not begin.
func Revert(root string, getenv func(string) string, done func(Step)) error {
	state, err := readState(root)
	if err != nil {
		return &UnchangedError{err}
	}
	if len(state.Settings) == 0 && len(state.Files) == 0 {
		return &UnchangedError{fmt.Errorf("tune --revert: nothing was applied on this host (no %s)", StateFile)}
	}
	if why := Refusal(root, getenv); why != "" {
		return &UnchangedError{fmt.Errorf("tune --revert: %s; nothing was changed", why)}
	}
	var errs []error
	for _, v := range slices.Backward(state.Settings) { // the limit before the hash that is for it
		now, err := readValue(root, v.Name)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if now != v.Set {
			done(Step{ValueLeftAlone, v.Name, now, v.Set})
			continue
		}
		if err := writeValue(root, v.Name, v.Previous); err != nil {
			errs = append(errs, err)
			continue
		}
		done(Step{ValueRestored, v.Name, v.Previous, v.Set})
	}
	for _, f := range state.Files {
		if _, err := writeKeeping(root, f.Path, f.Previous); err != nil {
			errs = append(errs, err)
			continue
		}
		kind := FileRestored
		if f.Previous == nil {
			kind = FileRemoved
		}
		done(Step{Kind: kind, Name: f.Path})
	}
	if len(errs) > 0 { // the state stays, for another try
		return errors.Join(errs...)
	}
	if err := os.Remove(filepath.Join(root, StateFile)); err != nil {
		return fmt.Errorf("tune --revert: %w", err)
	}
	return nil
}

// remember keeps the value before the first --apply over later ones.
func (s *state) remember(v value) {
	for i := range s.Settings {
		if s.Settings[i].Name == v.Name {
			s.Settings[i].Set = v.Set
			return
		}
	}
	s.Settings = append(s.Settings, v)
}

func (s *state) rememberFile(path string, previous *string) {
	if !slices.ContainsFunc(s.Files, func(f fileBefore) bool { return f.Path == path }) {
		s.Files = append(s.Files, fileBefore{path, previous})
	}
}

func readState(root string) (*state, error) {
	path := filepath.Join(root, StateFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return &state{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("tune: previous values: %w", err)
	}
	var s state
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, fmt.Errorf("tune: previous values in %s: %w (move the file away to start anew)", path, err)
	}
	return &s, nil
}

// write writes the state and returns what the file held before.
func (s *state) write(root string) (*string, error) {
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return nil, err
	}
	text := string(b) + "\n"
	return writeKeeping(root, StateFile, &text)
}

func readValue(root, name string) (string, error) {
	b, err := os.ReadFile(valuePath(root, name))
	if err != nil {
		return "", fmt.Errorf("tune: read %s: %w", name, err)
	}
	return strings.TrimSpace(string(b)), nil
}

func writeValue(root, name, value string) error {
	if name != hashsizeName {
		return sysctl.WriteSetting(root, name, value)
	}
	if err := os.WriteFile(valuePath(root, name), []byte(value+"\n"), 0o644); err != nil {
		return fmt.Errorf("tune: set the hash to %s buckets: %w", value, err)
	}
	return nil
}

func valuePath(root, name string) string {
	if name == hashsizeName {
		return filepath.Join(root, HashsizeFile)
	}
	return filepath.Join(root, "proc/sys", strings.ReplaceAll(name, ".", "/"))
}

// writeKeeping replaces a file by content, or removes it if content is nil, and
// returns what it held before, nil if it was not there. A reader sees the old
// file or the new one, never half of one.
func writeKeeping(root, path string, content *string) (*string, error) {
	full := filepath.Join(root, path)
	previous, err := readIfThere(root, path)
	if err != nil {
		return nil, err
	}
	if content == nil {
		if err := os.Remove(full); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return previous, fmt.Errorf("tune: %w", err)
		}
		return previous, nil
	}
	if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
		return previous, fmt.Errorf("tune: %w", err)
	}
	temp := full + ".new"
	if err := os.WriteFile(temp, []byte(*content), 0o644); err != nil {
		return previous, fmt.Errorf("tune: %w", err)
	}
	if err := os.Rename(temp, full); err != nil {
		_ = os.Remove(temp)
		return previous, fmt.Errorf("tune: %w", err)
	}
	return previous, nil
}

// readIfThere returns what a file holds, nil if there is none.
func readIfThere(root, path string) (*string, error) {
	b, err := os.ReadFile(filepath.Join(root, path))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("tune: %w", err)
	}
	s := string(b)
	return &s, nil
}
