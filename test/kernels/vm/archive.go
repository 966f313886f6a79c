package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
)

// An archive writes an initramfs: cpio entries of the format "newc"
// (Documentation/driver-api/early-userspace/buffer-format.rst). Folders come
// before what is in them by themselves. Nothing is compressed: to decompress
// costs an emulated processor more than to copy.
type archive struct {
	w       *bufio.Writer
	inode   int
	written map[string]bool
	err     error
}

func newArchive(w io.Writer) *archive {
	return &archive{w: bufio.NewWriterSize(w, 1<<20), written: map[string]bool{"": true, "/": true, ".": true}}
}

const (
	modeFolder  = 0o040755
	modeRegular = 0o100000
	modeLink    = 0o120777
)

// folder adds an empty folder, with those that it is in.
func (a *archive) folder(name string) {
	name = strings.Trim(path.Clean(name), "/")
	if a.written[name] {
		return
	}
	a.folder(path.Dir(name))
	a.entry(name, modeFolder, 0, nil)
}

// has reports whether there is an entry of the name.
func (a *archive) has(name string) bool { return a.written[strings.Trim(path.Clean(name), "/")] }

// link adds a symbolic link.
func (a *archive) link(name, target string) {
	a.add(name, modeLink, int64(len(target)), strings.NewReader(target))
}

// text adds a file that anybody may read.
func (a *archive) text(name, content string) {
	a.add(name, modeRegular|0o644, int64(len(content)), strings.NewReader(content))
}

// file adds a copy of a file of this machine, with its permissions; symbolic
// links are followed.
func (a *archive) file(name, source string) error {
	f, err := os.Open(source)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	a.add(name, modeRegular|int(info.Mode().Perm()), info.Size(), f)
	return a.err
}

func (a *archive) add(name string, mode int, size int64, content io.Reader) {
	name = strings.Trim(path.Clean(name), "/")
	a.folder(path.Dir(name))
	a.entry(name, mode, size, content)
}

func (a *archive) entry(name string, mode int, size int64, content io.Reader) {
	if a.err != nil || a.written[name] {
		return
	}
	a.written[name] = true
	a.inode++
	// c_magic, c_ino, c_mode, c_uid, c_gid, c_nlink, c_mtime, c_filesize,
	// c_maj, c_min, c_rmaj, c_rmin, c_namesize, c_chksum.
	header := fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		a.inode, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, len(name)+1, 0, name)
	a.pad(a.w.WriteString(header))
	if content == nil || a.err != nil {
		return
	}
	n, err := io.Copy(a.w, content)
	if err == nil && n != size {
		err = fmt.Errorf("changed while it was read: %d bytes, not %d", n, size)
	}
	if err != nil {
		a.err = fmt.Errorf("%s: %w", name, err)
	}
	a.pad(int(n%4), nil)
}

// pad fills up to a multiple of four bytes.
func (a *archive) pad(n int, err error) {
	if err == nil {
		_, err = a.w.WriteString("\x00\x00\x00"[:(4-n%4)%4])
	}
	if a.err == nil {
		a.err = err
	}
}

// close ends the archive.
func (a *archive) close() error {
	a.entry("TRAILER!!!", 0, 0, nil)
	if a.err != nil {
		return a.err
	}
	return a.w.Flush()
}
