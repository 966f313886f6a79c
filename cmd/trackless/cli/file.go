package cli

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// OrToStandardOutput names the way out of a container in which nothing can be
// written.
func OrToStandardOutput(verb string, err error) error {
	if errors.Is(err, unix.EROFS) || errors.Is(err, fs.ErrPermission) {
		err = fmt.Errorf("%w; from a container whose file system is read-only, have it on the standard output: `kubectl exec POD -- trackless %s -o - > FILE`", err, verb)
	}
	return fmt.Errorf("%s: %w", verb, err)
}

// CanWrite fails where writeFile would, before a measurement that takes long.
func CanWrite(path string) error {
	info, err := os.Stat(path)
	switch {
	case err == nil && info.IsDir():
		return fmt.Errorf("write %s: it is a directory; name a file in it", path)
	case err == nil && !info.Mode().IsRegular():
		return nil // a pipe or a device
	}
	f, err := createBeside(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w; make the directory first, or name another file", err)
	case errors.Is(err, unix.ENOTDIR):
		return fmt.Errorf("%w; %s is no directory, name another file", err, filepath.Dir(path))
	case err != nil:
		return err
	}
	return errors.Join(f.Close(), os.Remove(f.Name()))
}

// createBeside makes a file that can be renamed to path.
func createBeside(path string) (*os.File, error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-")
	if err != nil {
		// The name of a file that nobody asked for says nothing.
		return nil, fmt.Errorf("write %s: %w", path, errors.Unwrap(err))
	}
	return f, nil
}

// WriteFile writes a file with that mode, whole or not at all.
func WriteFile(path string, mode os.FileMode, write func(io.Writer) error) (err error) {
	if info, statErr := os.Stat(path); statErr == nil && !info.Mode().IsRegular() {
		// A pipe or a device cannot be replaced.
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		return errors.Join(write(f), f.Close())
	}
	f, err := createBeside(path)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	if err := errors.Join(write(f), f.Chmod(mode), f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return os.Rename(f.Name(), path)
}
