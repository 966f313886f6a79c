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

// Arguments of directives name files: nameservers of forward, zones, hosts,
// certificates. A reload reads the files again, so their contents are part of the
// fingerprint.
//
// Only the directive knows which of its arguments are files. Here, an argument is a
// file if there is a file or folder of that name. One file too many costs a read. One
// too few would keep answers that are wrong.

const (
	// maxContents is the number of bytes that are read for a fingerprint. For files
	// beyond it, inode, size and times stand for the contents, so that any change of
	// them counts.
	maxContents = 64 << 20
	// maxFiles is the number of files and folders that are read in a folder.
	maxFiles = 10000
	// defaultHosts is the file of the directive hosts if it names none.
	defaultHosts = "/etc/hosts"
)

// contents maps paths of files to hashes of their contents.
type contents map[string]string

// reader reads files within bounds. It reads a file once, also if several server blocks
// name it.
type reader struct {
	known contents
	bytes int64 // may still be read
	limit int   // number of files and folders in a folder
	files int   // may still be read in this folder
}

func newReader() *reader {
	return &reader{known: contents{}, bytes: maxContents, limit: maxFiles}
}

var errTooManyFiles = errors.New("too many files in a folder")

// directives adds the files that the directives name to found. root is the argument of
// the directive root, or empty.
func (r *reader) directives(found contents, tokens map[string][]caddyfile.Token, root string) error {
	// The order is fixed, since the files that are within the bounds depend on it.
	for _, directive := range slices.Sorted(maps.Keys(tokens)) {
		for _, name := range argumentsOf(directive, tokens[directive]) {
			if err := r.named(found, name, root); err != nil {
				return fmt.Errorf("%s: %w", directive, err)
			}
		}
	}
	return nil
}

// argumentsOf returns the words of a directive that may name a file, and the file that
// it reads without naming it.
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
			name = path // a file of nameservers may have a transport before it
		}
		// The name . is the root zone, not a folder.
		if name != "" && name != "." && name != "{" && name != "}" {
			names = append(names, name)
		}
	}
	return names
}

// named adds the file of that name to found, if there is one. It tries the name
// relative to the working directory and relative to root, since only the directive
// knows which of them it uses.
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

// isNoFile reports whether an error says that no file has the name, or that no file can
// have it.
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

// folder adds the names and contents of the files in the folder and below it. It does
// not follow links to folders, but adds their targets.
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
		return fmt.Errorf("%s is no regular file", path) // reading it may block
	}
	if info.Size() > r.bytes {
		return identity(sum, path, info)
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	// A file may grow meanwhile, and files in /proc are larger than their size says.
	// They are not read beyond the bound.
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

// identity adds the inode and size of a file and the times of its last changes, which
// differ after every change (inode(7)).
func identity(sum hash.Hash, path string, info fs.FileInfo) error {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return fmt.Errorf("%s is too large to read", path)
	}
	fmt.Fprintf(sum, "%d %d %d %v %v", stat.Dev, stat.Ino, stat.Size, stat.Mtim, stat.Ctim)
	return nil
}
