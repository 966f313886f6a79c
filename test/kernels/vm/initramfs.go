package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/trackless-dns/trackless/test/kernels"
)

// programs are what tests run, besides those whose names begin with iptables
// and ip6tables.
var programs = []string{
	"ip", "tc", "nft", "conntrack", "dig", "sysctl", "unshare", "flock", "mount",
	"sh", "cat", "sleep", "timeout", "stdbuf",
}

// opened are files that the programs open at run time, and that ldd does not
// know of.
var opened = []string{"/usr/lib/*/xtables/*.so", "/usr/libexec/coreutils/libstdbuf.so"}

// configuration is what little the C library wants.
var configuration = map[string]string{
	"/etc/passwd":        "root:x:0:0:root:/root:/bin/sh\n",
	"/etc/group":         "root:x:0:\n",
	"/etc/hosts":         "127.0.0.1 localhost\n::1 localhost\n",
	"/etc/resolv.conf":   "",
	"/etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\nprotocols: files\nservices: files\n",
}

// A machine is what goes into the initramfs.
type machine struct {
	source  string // the top of the module
	built   string // a folder with guest, trackless and the test binaries
	kernel  *kernel
	modules kernels.Modules
	plan    kernels.Plan
}

func (m *machine) write(ctx context.Context, to string) (err error) {
	f, err := os.Create(to)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	a := newArchive(f)
	for _, folder := range []string{"/proc", "/sys", "/dev", "/run", "/tmp", "/root", "/usr/bin", "/usr/sbin", "/usr/lib", "/usr/lib64"} {
		a.folder(folder)
	}
	for _, merged := range []string{"bin", "sbin", "lib", "lib64"} {
		a.link("/"+merged, "usr/"+merged)
	}
	for name, text := range configuration {
		a.text(name, text)
	}
	for _, name := range []string{"/etc/protocols", "/etc/services"} {
		if err := a.file(name, name); err != nil {
			return fmt.Errorf("%w (Debian's package netbase has it)", err)
		}
	}
	for _, step := range []func() error{
		func() error { return m.addPrograms(ctx, a) },
		func() error { return m.addModules(a) },
		func() error { return m.addSource(a) },
		func() error { return m.addBuilt(a) },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return a.close()
}

// addPrograms copies the programs and every library that one of them needs. A
// program with several names looks at the name that it is called by.
func (m *machine) addPrograms(ctx context.Context, a *archive) error {
	var paths []string
	for _, name := range programs {
		found, err := exec.LookPath(name)
		if err != nil {
			return err
		}
		paths = append(paths, found)
	}
	tables, err := filepath.Glob("/usr/sbin/ip*tables*")
	if err != nil {
		return err
	}
	paths = append(paths, tables...)
	var binaries []string
	for _, name := range paths {
		real, err := filepath.EvalSymlinks(name)
		if err != nil {
			return err
		}
		if text, err := isScript(real); err != nil || text {
			if err != nil {
				return err
			}
			continue
		}
		if err := a.file(real, real); err != nil {
			return err
		}
		binaries = append(binaries, real)
		if at := path.Join("/usr/sbin", path.Base(name)); at != real && !a.has(path.Join("/usr/bin", path.Base(name))) {
			a.link(at, real)
		}
	}
	for _, pattern := range opened {
		found, err := filepath.Glob(pattern)
		if err != nil {
			return err
		}
		for _, name := range found {
			if err := a.file(name, name); err != nil {
				return err
			}
		}
		binaries = append(binaries, found...)
	}
	return addLibraries(ctx, a, binaries)
}

// isScript reports whether a file is for an interpreter: the machine has none
// but sh.
func isScript(name string) (bool, error) {
	f, err := os.Open(name)
	if err != nil {
		return false, err
	}
	defer f.Close()
	var start [2]byte
	_, err = f.Read(start[:])
	return string(start[:]) == "#!", err
}

// library is a path in what ldd says, in both of its forms.
var library = regexp.MustCompile(`(?m)(/\S+) \(0x[0-9a-f]+\)$`)

func addLibraries(ctx context.Context, a *archive, binaries []string) error {
	slices.Sort(binaries)
	out, err := output(ctx, "", "ldd", slices.Compact(binaries)...)
	if err != nil {
		return err
	}
	for _, match := range library.FindAllStringSubmatch(out, -1) {
		// The name is what is looked for; the folder may be a link here and
		// is one there.
		folder, err := filepath.EvalSymlinks(path.Dir(match[1]))
		if err != nil {
			return err
		}
		if err := a.file(path.Join(folder, path.Base(match[1])), match[1]); err != nil {
			return err
		}
	}
	return nil
}

func (m *machine) addModules(a *archive) error {
	for _, module := range m.modules {
		if err := a.file("/usr"+module.Path, filepath.Join(m.kernel.root, module.Path)); err != nil {
			return err
		}
	}
	index, err := json.Marshal(m.modules)
	if err != nil {
		return err
	}
	a.text("/usr"+kernels.ModulesIndex, string(index))
	return nil
}

// addSource copies what is not Go out of the module: tests read files beside
// them, and some README.md.
func (m *machine) addSource(a *archive) error {
	return filepath.WalkDir(m.source, func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		within, err := filepath.Rel(m.source, name)
		if err != nil {
			return err
		}
		switch {
		case entry.IsDir() && (within == "bin" || within != "." && strings.HasPrefix(entry.Name(), ".")):
			return filepath.SkipDir
		case entry.IsDir():
			a.folder(path.Join("/src", within))
		case entry.Type().IsRegular() && path.Ext(within) != ".go":
			return a.file(path.Join("/src", within), name)
		}
		return a.err
	})
}

func (m *machine) addBuilt(a *archive) error {
	for _, copied := range []struct{ to, from string }{{"/init", "guest"}, {"/usr/bin/trackless", "trackless"}} {
		if err := a.file(copied.to, filepath.Join(m.built, copied.from)); err != nil {
			return err
		}
	}
	a.link("/usr/sbin/modprobe", "/init")
	for _, c := range m.plan.Cases {
		if err := a.file(path.Join("/tests", c.Binary()), filepath.Join(m.built, c.Binary())); err != nil {
			return err
		}
	}
	plan, err := json.Marshal(m.plan)
	if err != nil {
		return err
	}
	a.text("/plan.json", string(plan))
	return nil
}
