package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/trackless-dns/trackless/cmd/trackless/cli"
	"github.com/trackless-dns/trackless/conntrack/sysctl"
)

const (
	tuneStateFile = "/var/lib/trackless/tune.json"
	hashsizeFile  = "/sys/module/nf_conntrack/parameters/hashsize"
	hashsizeName  = "hashsize"
)

// tuneState is what --revert needs: what was before the first --apply, and what
// was set since.
type tuneState struct {
	Time     time.Time     `json:"time"`
	Settings []tunedValue  `json:"settings"`
	Files    []tunedBefore `json:"files"`
}

// tunedValue is a sysctl, or the hash size under the name hashsize.
type tunedValue struct {
	Name     string `json:"name"`
	Previous string `json:"previous"`
	Set      string `json:"set"`
}

type tunedBefore struct {
	Path string `json:"path"`
	// Previous is nil if there was no such file.
	Previous *string `json:"previous"`
}

// apply writes the files and sets the settings, or leaves all as it was.
func (t *tuning) apply(root string, getenv func(string) string, out io.Writer) error {
	if why := refusal(root, getenv); why != "" {
		return t.refuse(why, out)
	}
	state, err := readTuneState(root)
	if err != nil {
		return cli.Exit(cli.ExitCannotLook, err)
	}
	var done []func() error // each undoes a step
	undo := func(cause error) error {
		errs := []error{cause}
		for _, step := range slices.Backward(done) {
			errs = append(errs, step())
		}
		return cli.Exit(cli.ExitFailure, fmt.Errorf("%w\nwhat was changed before is as it was again", errors.Join(errs...)))
	}
	// What was before is on disk before anything changes.
	values, err := t.changes(root)
	if err != nil {
		return cli.Exit(cli.ExitCannotLook, err)
	}
	state.Time = time.Now().UTC()
	for _, v := range values {
		state.remember(v)
	}
	for _, f := range t.Files {
		previous, err := readIfThere(root, f.Path)
		if err != nil {
			return cli.Exit(cli.ExitCannotLook, err)
		}
		state.rememberFile(f.Path, previous)
	}
	before, err := state.write(root)
	if err != nil {
		return cli.Exit(cli.ExitFailure, err)
	}
	done = append(done, func() error { _, err := writeKeeping(root, tuneStateFile, before); return err })

	for _, v := range values {
		if err := writeTuned(root, v.Name, v.Set); err != nil {
			return undo(err)
		}
		done = append(done, func() error { return writeTuned(root, v.Name, v.Previous) })
		_, _ = fmt.Fprintf(out, "set %s to %s (was %s)\n", v.Name, v.Set, v.Previous)
	}
	for _, f := range t.Files {
		previous, err := writeKeeping(root, f.Path, &f.Content)
		if err != nil {
			return undo(err)
		}
		done = append(done, func() error { _, err := writeKeeping(root, f.Path, previous); return err })
		_, _ = fmt.Fprintf(out, "wrote %s\n", f.Path)
	}
	_, err = fmt.Fprintf(out, "previous values are in %s; trackless tune --revert restores them\n", tuneStateFile)
	for _, name := range t.Overridden {
		_, _ = fmt.Fprintf(out, "kube-proxy sets %s again when it starts: give it the output of trackless tune --for kube-proxy\n", name)
	}
	return err
}

// changes returns the values that are to change, with what they are now: the
// hash before the limit that it is for.
func (t *tuning) changes(root string) ([]tunedValue, error) {
	wanted := []tunedValue{{Name: hashsizeName, Set: fmt.Sprint(t.Size.Buckets)}}
	for _, s := range t.Settings {
		wanted = append(wanted, tunedValue{Name: s.Name, Set: fmt.Sprint(s.Value)})
	}
	var list []tunedValue
	for _, v := range wanted {
		var err error
		if v.Previous, err = readTuned(root, v.Name); err != nil {
			return nil, err
		}
		if v.Previous != v.Set {
			list = append(list, v)
		}
	}
	return list, nil
}

// refusal says why settings cannot be applied here: "" if they can.
func refusal(root string, getenv func(string) string) string {
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

// refuse prints what to do on the host instead.
func (t *tuning) refuse(why string, out io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "# %s. As root on the host:\n", why)
	for _, f := range t.Files {
		fmt.Fprintf(&b, "cat > %s <<'EOF'\n%sEOF\n", f.Path, f.Content)
	}
	fmt.Fprintf(&b, "echo %d > %s\nsysctl -p %s\n", t.Size.Buckets, hashsizeFile, sysctlFile)
	if _, err := io.WriteString(out, b.String()); err != nil {
		return err
	}
	return cli.Exit(cli.ExitCannotLook, fmt.Errorf("tune --apply: %s; nothing was changed, the commands for the host are printed", why))
}

// revertTuning restores what was before the first --apply. What somebody else
// changed since is left alone, and said.
func revertTuning(root string, getenv func(string) string, out io.Writer) error {
	state, err := readTuneState(root)
	if err != nil {
		return cli.Exit(cli.ExitCannotLook, err)
	}
	if len(state.Settings) == 0 && len(state.Files) == 0 {
		return cli.Exit(cli.ExitCannotLook, fmt.Errorf("tune --revert: nothing was applied on this host (no %s)", tuneStateFile))
	}
	if why := refusal(root, getenv); why != "" {
		return cli.Exit(cli.ExitCannotLook, fmt.Errorf("tune --revert: %s; nothing was changed", why))
	}
	var errs []error
	for _, v := range slices.Backward(state.Settings) { // the limit before the hash that is for it
		now, err := readTuned(root, v.Name)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if now != v.Set {
			_, _ = fmt.Fprintf(out, "left %s at %s: it was set to %s, somebody changed it since\n", v.Name, now, v.Set)
			continue
		}
		if err := writeTuned(root, v.Name, v.Previous); err != nil {
			errs = append(errs, err)
			continue
		}
		_, _ = fmt.Fprintf(out, "set %s back to %s\n", v.Name, v.Previous)
	}
	for _, f := range state.Files {
		if _, err := writeKeeping(root, f.Path, f.Previous); err != nil {
			errs = append(errs, err)
			continue
		}
		verb := "restored"
		if f.Previous == nil {
			verb = "removed"
		}
		_, _ = fmt.Fprintf(out, "%s %s\n", verb, f.Path)
	}
	if len(errs) > 0 { // the state stays, for another try
		return cli.Exit(cli.ExitFailure, errors.Join(errs...))
	}
	if err := os.Remove(filepath.Join(root, tuneStateFile)); err != nil {
		return cli.Exit(cli.ExitFailure, fmt.Errorf("tune --revert: %w", err))
	}
	return nil
}

// remember keeps the value before the first --apply over later ones.
func (s *tuneState) remember(v tunedValue) {
	for i := range s.Settings {
		if s.Settings[i].Name == v.Name {
			s.Settings[i].Set = v.Set
			return
		}
	}
	s.Settings = append(s.Settings, v)
}

func (s *tuneState) rememberFile(path string, previous *string) {
	if !slices.ContainsFunc(s.Files, func(f tunedBefore) bool { return f.Path == path }) {
		s.Files = append(s.Files, tunedBefore{path, previous})
	}
}

func readTuneState(root string) (*tuneState, error) {
	path := filepath.Join(root, tuneStateFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return &tuneState{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("tune: previous values: %w", err)
	}
	var s tuneState
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, fmt.Errorf("tune: previous values in %s: %w (move the file away to start anew)", path, err)
	}
	return &s, nil
}

// write writes the state and returns what the file held before.
func (s *tuneState) write(root string) (*string, error) {
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return nil, err
	}
	text := string(b) + "\n"
	return writeKeeping(root, tuneStateFile, &text)
}

func readTuned(root, name string) (string, error) {
	b, err := os.ReadFile(tunedPath(root, name))
	if err != nil {
		return "", fmt.Errorf("tune: read %s: %w", name, err)
	}
	return strings.TrimSpace(string(b)), nil
}

func writeTuned(root, name, value string) error {
	if name != hashsizeName {
		return sysctl.WriteSetting(root, name, value)
	}
	if err := os.WriteFile(tunedPath(root, name), []byte(value+"\n"), 0o644); err != nil {
		return fmt.Errorf("tune: set the hash to %s buckets: %w", value, err)
	}
	return nil
}

func tunedPath(root, name string) string {
	if name == hashsizeName {
		return filepath.Join(root, hashsizeFile)
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
