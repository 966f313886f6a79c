package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
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
// has for this machine's release, or the one that lies in the cache folder.
func fetchKernel(ctx context.Context, cache, series string) (*kernel, error) {
	root := filepath.Join(cache, "debian-"+series)
	if k, err := openKernel(root); err == nil {
		return k, nil
	}
	name, err := newestPackage(ctx, series)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return nil, err
	}
	work, err := os.MkdirTemp(cache, "fetch-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(work)
	// In a folder that is root's alone, the user that apt uses to download
	// cannot write.
	if _, err := output(ctx, work, "apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", name); err != nil {
		return nil, fmt.Errorf("%w (does `apt-get update` help?)", err)
	}
	packages, err := filepath.Glob(filepath.Join(work, name+"_*.deb"))
	if err != nil || len(packages) != 1 {
		return nil, errors.Join(err, fmt.Errorf("apt-get downloaded %d packages %s, want one", len(packages), name))
	}
	laidOut := filepath.Join(work, "root")
	if _, err := output(ctx, work, "dpkg", "-x", packages[0], laidOut); err != nil {
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

// newestPackage is the package with the highest ABI number of the series.
func newestPackage(ctx context.Context, series string) (string, error) {
	pattern := `linux-image-` + regexp.QuoteMeta(series) + `\.[0-9]+-([0-9]+)-amd64`
	list, err := output(ctx, "", "apt-cache", "search", "--names-only", "^"+pattern+"$")
	if err != nil {
		return "", err
	}
	var newest string
	highest := -1
	for _, m := range regexp.MustCompile(`(?m)^(`+pattern+`) `).FindAllStringSubmatch(list, -1) {
		if abi, err := strconv.Atoi(m[2]); err == nil && abi > highest {
			newest, highest = m[1], abi
		}
	}
	if newest == "" {
		return "", fmt.Errorf("apt knows no package linux-image-%s.*-amd64 (a Debian with that kernel is needed, such as 12 for 6.1; does `apt-get update` help?)", series)
	}
	return newest, nil
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
