package fingerprint

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/coredns/caddy/caddyfile"
)

// Directives take files for arguments: the nameservers of forward, zones,
// hosts, certificates. A reload reads them again, so their contents are part of
// the fingerprint.
//
// Which argument is a file only its directive knows. An argument counts as one
// where a file or folder of that name is: too many of them cost a look each, one
// too few would keep answers that are wrong.

const (
	// maxContents bounds the bytes read for a fingerprint. A file beyond it is
	// told from another by what the kernel notes of it, so that any change
	// counts.
	maxContents = 64 << 20
	// maxFiles bounds the files and folders looked at in a folder.
	maxFiles = 10000
	// defaultHosts is read by hosts where it names no file.
	defaultHosts = "/etc/hosts"
)

// contents maps the files that arguments name to what is in them.
type contents map[string]string

// reader reads files within bounds, and each of them once: server blocks may
// name the same ones.
type reader struct {
	known contents
	bytes int64 // that may still be read
	limit int   // of files and folders in a folder
	files int   // that may still be looked at in this one
}

func newReader() *reader {
	return &reader{known: contents{}, bytes: maxContents, limit: maxFiles}
}

var errTooManyFiles = errors.New("too many files in a folder")

// directives adds the files that the directives name to found. root is that of
// the directive of this name, empty if there is none.
func (r *reader) directives(found contents, tokens map[string][]caddyfile.Token, root string) error {
	// In a fixed order, since the bounds depend on what was read before.
	for _, directive := range slices.Sorted(maps.Keys(tokens)) {
		for _, name := range argumentsOf(directive, tokens[directive]) {
			if err := r.named(found, name, root); err != nil {
				return fmt.Errorf("%s: %w", directive, err)
			}
		}
	}
	return nil
}

// argumentsOf returns what may be a file: every word of the directive, and
// what it reads unnamed.
func argumentsOf(directive string, tokens []caddyfile.Token) []string {
	var names []string
	for i, t := range tokens {
		if t.Text == directive && (i == 0 || newLine(tokens[i-1], t)) {
			if directive == "hosts" && (i+1 == len(tokens) || tokens[i+1].Text == "{" || newLine(t, tokens[i+1])) {
				names = append(names, defaultHosts)
			}
			continue
		}
		name := t.Text
		if _, path, ok := strings.Cut(name, "://"); ok {
			name = path // of a file with nameservers, of which the transport is given
		}
		// The root zone is no folder.
		if name != "" && name != "." && name != "{" && name != "}" {
			names = append(names, name)
		}
	}
	return names
}

// named adds the file of that name, if there is one: relative to the working
// directory, and relative to root where there is one, since only the directive
// knows which.
func (r *reader) named(found contents, name, root string) error {
	paths := []string{name}
	if root != "" && !filepath.IsAbs(name) {
		paths = append(paths, filepath.Join(root, name))
	}
	for _, path := range paths {
		if sum, done := r.known[path]; done {
			found[path] = sum
			continue
		}
		info, err := os.Stat(path)
		switch {
		case isNoFile(err):
			continue
		case err != nil:
			return err
		}
		sum, err := r.read(path, info)
		if err != nil {
			return err
		}
		r.known[path], found[path] = sum, sum
	}
	return nil
}

// isNoFile reports whether an error says that there is no file of a name, or
// that it is not the name of one.
func isNoFile(err error) bool {
	for _, no := range []error{fs.ErrNotExist, syscall.ENOTDIR, syscall.ENAMETOOLONG, syscall.EINVAL} {
		if errors.Is(err, no) {
			return true
		}
	}
	return false
}

func (r *reader) read(path string, info fs.FileInfo) (string, error) {
	r.files = r.limit
	sum := sha256.New()
	var err error
	if info.IsDir() {
		err = r.folder(sum, path)
	} else {
		err = r.file(sum, path, info)
	}
	return hex.EncodeToString(sum.Sum(nil)), err
}

// folder adds the names and contents of what is in the folder, and below it.
// Links to other folders are not followed, where they lead is added.
func (r *reader) folder(sum hash.Hash, path string) error {
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		return err
	}
	return filepath.WalkDir(path, func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fmt.Fprintf(sum, "%q %v\n", name, entry.Type())
		if entry.IsDir() {
			return r.count()
		}
		if entry.Type() == fs.ModeSymlink {
			target, err := os.Readlink(name)
			if err != nil {
				return err
			}
			fmt.Fprintf(sum, "to %q\n", target)
		}
		info, err := os.Stat(name)
		switch {
		case isNoFile(err): // a link to nothing
			return nil
		case err != nil:
			return err
		case info.IsDir():
			return nil
		}
		return r.file(sum, name, info)
	})
}

func (r *reader) file(sum hash.Hash, path string, info fs.FileInfo) error {
	if err := r.count(); err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is no regular file", path) // reading it may take for ever
	}
	if info.Size() > r.bytes {
		return identity(sum, path, info)
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	// What grows meanwhile, or is larger than it says as files in /proc are, is
	// not followed beyond the bound.
	n, err := io.Copy(sum, io.LimitReader(f, r.bytes+1))
	if err != nil {
		return err
	}
	if r.bytes -= n; r.bytes < 0 {
		r.bytes = 0
		return fmt.Errorf("%s is larger than it says", path)
	}
	return nil
}

func (r *reader) count() error {
	if r.files--; r.files < 0 {
		return fmt.Errorf("%w: more than %d", errTooManyFiles, r.limit)
	}
	return nil
}

// identity adds what changes with every change of a file: its inode, size and
// the time of the last change of either (inode(7)).
func identity(sum hash.Hash, path string, info fs.FileInfo) error {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return fmt.Errorf("%s is too large to read", path)
	}
	fmt.Fprintf(sum, "%d %d %d %v %v", stat.Dev, stat.Ino, stat.Size, stat.Mtim, stat.Ctim)
	return nil
}
