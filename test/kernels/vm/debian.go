package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// A kernel is a package of Debian's, laid out in a folder: nothing of it is
// installed.
type kernel struct {
	root  string
	image string // the path of the kernel itself
}

// fetchKernel returns the newest kernel of a series, such as "6.1", that Debian
// has, or the one that lies in the cache folder.
func fetchKernel(ctx context.Context, cache, series string) (*kernel, error) {
	root := filepath.Join(cache, "debian-"+series)
	if k, err := openKernel(root); err == nil {
		return k, nil
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return nil, err
	}
	work, err := os.MkdirTemp(cache, "fetch-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(work)
	a := apt{folder: work}
	if release, ok := releases[series]; ok {
		if err := a.use(ctx, release); err != nil {
			return nil, err
		}
	}
	file, err := a.download(ctx, series)
	if err != nil {
		return nil, err
	}
	laidOut := filepath.Join(work, "root")
	if _, err := output(ctx, work, "dpkg", "-x", file, laidOut); err != nil {
		return nil, err
	}
	if err := decompressModules(ctx, laidOut); err != nil {
		return nil, err
	}
	if err := os.RemoveAll(root); err != nil {
		return nil, err
	}
	if err := os.Rename(laidOut, root); err != nil {
		return nil, err
	}
	return openKernel(root)
}

func openKernel(root string) (*kernel, error) {
	images, err := filepath.Glob(filepath.Join(root, "boot/vmlinuz-*"))
	if err != nil {
		return nil, err
	}
	if len(images) != 1 {
		return nil, fmt.Errorf("%d kernels in %s/boot, want one", len(images), root)
	}
	return &kernel{root: root, image: images[0]}, nil
}

// decompressModules decompresses those that the machine may need, which Debian
// compresses since Linux 6.12.
func decompressModules(ctx context.Context, root string) error {
	for _, folder := range []string{"net", "drivers/net", "crypto", "lib"} {
		var compressed []string
		trees, err := filepath.Glob(filepath.Join(root, "lib/modules/*/kernel", folder))
		if err != nil {
			return err
		}
		for _, tree := range trees {
			if err := filepath.WalkDir(tree, func(name string, entry fs.DirEntry, err error) error {
				if err == nil && entry.Type().IsRegular() && strings.HasSuffix(name, ".ko.xz") {
					compressed = append(compressed, name)
				}
				return err
			}); err != nil {
				return err
			}
		}
		if len(compressed) == 0 {
			continue
		}
		if _, err := output(ctx, "", "xz", append([]string{"--decompress"}, compressed...)...); err != nil {
			return err
		}
	}
	return nil
}

// releases are Debian's releases by the series of kernels that none of this
// machine's has.
var releases = map[string]string{"5.10": "bullseye"}

// apt is how packages are found and downloaded. The machine's own lists of packages
// stay as they are.
type apt struct {
	folder  string
	options []string
}

// use looks at another release of Debian.
func (a *apt) use(ctx context.Context, release string) error {
	const keys = "[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]"
	sources := filepath.Join(a.folder, "sources.list")
	text := fmt.Sprintf("deb %[1]s http://deb.debian.org/debian %[2]s main\ndeb %[1]s http://deb.debian.org/debian-security %[2]s-security main\n", keys, release)
	if err := os.WriteFile(sources, []byte(text), 0o644); err != nil {
		return err
	}
	lists := filepath.Join(a.folder, "lists")
	if err := os.MkdirAll(filepath.Join(lists, "partial"), 0o755); err != nil {
		return err
	}
	a.options = []string{
		"-o", "Dir::Etc::SourceList=" + sources, "-o", "Dir::Etc::SourceParts=/dev/null", "-o", "Dir::State::Lists=" + lists,
		"-o", "Dir::Cache::PkgCache=", "-o", "Dir::Cache::SrcPkgCache=",
		"-o", "Acquire::Check-Valid-Until=false", // nobody signs an old release anew
	}
	_, err := a.run(ctx, "apt-get", "-q", "update")
	return err
}

func (a *apt) run(ctx context.Context, name string, args ...string) (string, error) {
	// In a folder that is root's alone, the user that apt uses to download
	// cannot write.
	options := append(slices.Clone(a.options), "-o", "APT::Sandbox::User=root")
	return output(ctx, a.folder, name, append(options, args...)...)
}

// download returns the file of the newest kernel of the series.
func (a *apt) download(ctx context.Context, series string) (file string, err error) {
	list, err := a.run(ctx, "apt-cache", "search", "--names-only", "^linux-image-"+regexp.QuoteMeta(series)+`\.`)
	if err != nil {
		return "", err
	}
	name := newestPackage(list, series)
	if name == "" {
		return "", fmt.Errorf("apt knows no package linux-image-%s.*-amd64 (a Debian with that kernel is needed, such as 12 for 6.1; does `apt-get update` help?)", series)
	}
	if _, err := a.run(ctx, "apt-get", "-q", "download", name); err != nil {
		return "", fmt.Errorf("%w (does `apt-get update` help?)", err)
	}
	packages, err := filepath.Glob(filepath.Join(a.folder, "linux-image-*.deb"))
	if err != nil || len(packages) != 1 {
		return "", errors.Join(err, fmt.Errorf("apt-get downloaded %d packages %s, want one", len(packages), name))
	}
	return packages[0], nil
}

// newestPackage is the package of the series with the highest version in a list of
// apt-cache: 6.1.0-56 by its ABI number, 6.12.117+deb12 by its patch level.
func newestPackage(list, series string) (newest string) {
	pattern := regexp.MustCompile(`(?m)^(linux-image-` + regexp.QuoteMeta(series) + `\.([0-9]+)(?:-([0-9]+)|\+deb[0-9]+)-amd64) `)
	var highest []int
	for _, m := range pattern.FindAllStringSubmatch(list, -1) {
		patch, _ := strconv.Atoi(m[2])
		abi, _ := strconv.Atoi(m[3]) // without one: 0
		if version := []int{patch, abi}; slices.Compare(version, highest) > 0 {
			newest, highest = m[1], version
		}
	}
	return newest
}

// output runs a program and returns its standard output; an error holds what it
// said.
func output(ctx context.Context, dir, name string, args ...string) (string, error) {
	var stderr strings.Builder
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Stderr = dir, &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s%s", name, strings.Join(args, " "), err, out, stderr.String())
	}
	return string(out), nil
}
