// Command image puts the static trackless binary into container images, with
// no Docker and no registry: an OCI image layout in a tar, which containerd,
// Docker, Podman and registry tools read.
//
// It is a module of its own, so that what it needs to write images stays out
// of the product's dependencies.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/distribution/reference"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

const help = `Put static trackless binaries into container images.

Usage:
  image -version VERSION [flags] ARCH=BINARY...

For every architecture it writes DIR/PROGRAM-ARCH.tar, which containerd,
Docker and Podman import, and for all of them DIR/PROGRAM.tar, an OCI image
layout with an index, for registries, and for containerd under the name with
the tag and under that with the digest. The same input gives the same bytes.

Flags:
`

func main() {
	err := run(os.Args[1:], os.Stdout)
	if err == nil || errors.Is(err, flag.ErrHelp) {
		return
	}
	fmt.Fprintf(os.Stderr, "image: %v\n", err)
	os.Exit(1)
}

func run(args []string, out io.Writer) error {
	var (
		build   Build
		name    string
		dir     string
		created string
	)
	fs := flag.NewFlagSet("image", flag.ContinueOnError)
	fs.StringVar(&build.Version, "version", "", "`version` of the binaries; the tag, unless -ref has one")
	fs.StringVar(&build.Revision, "revision", "", "`commit` they were built from")
	fs.StringVar(&created, "created", "1970-01-01T00:00:00Z", "`time` of that commit (RFC 3339), the creation time in the image")
	fs.StringVar(&build.Program, "program", "trackless", "`name` of the binary in the image; the end-to-end tests put other programs into theirs")
	fs.StringVar(&build.Link, "link", "node-cache", "`name` of a link to it, which is the entry point; with none it is the binary")
	fs.StringVar(&name, "ref", "", "`name` under which the image is imported, such as ghcr.io/trackless-dns/trackless")
	fs.StringVar(&dir, "o", ".", "`directory` to write to")
	fs.Usage = func() {
		fmt.Fprint(fs.Output(), help)
		fs.PrintDefaults()
	}
	if err := fs.Parse(args); err != nil {
		return err
	}
	if build.Version == "" {
		return errors.New("-version is missing")
	}
	if name == "" {
		return errors.New("-ref is missing")
	}
	if fs.NArg() == 0 {
		return errors.New("no binary; name one as ARCH=FILE, for example amd64=bin/trackless")
	}
	at, err := time.Parse(time.RFC3339, created)
	if err != nil {
		return fmt.Errorf("-created: %w", err)
	}
	build.Created = at.UTC()
	ref, err := imageRef(name, build.Version)
	if err != nil {
		return err
	}

	var images []v1.Image
	for _, arg := range fs.Args() {
		arch, binary, ok := strings.Cut(arg, "=")
		if !ok {
			return fmt.Errorf("%q is not ARCH=FILE", arg)
		}
		image, err := build.Image(arch, binary)
		if err != nil {
			return err
		}
		images = append(images, image)
		if err := writeFile(filepath.Join(dir, build.Program+"-"+arch+".tar"), Archive{Ref: ref, Images: []v1.Image{image}}, out); err != nil {
			return err
		}
	}
	return writeFile(filepath.Join(dir, build.Program+".tar"), Archive{Ref: ref, Images: images, ByDigest: true}, out)
}

// imageRef completes a name as Docker and containerd complete it, with the
// version as its tag. Characters that a tag may not have, such as the + of a
// build version, become underscores, as Helm does it.
func imageRef(name, version string) (reference.NamedTagged, error) {
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return nil, fmt.Errorf("-ref %s: %w", name, err)
	}
	if tagged, ok := named.(reference.NamedTagged); ok {
		return tagged, nil
	}
	tagged, err := reference.WithTag(named, strings.ReplaceAll(version, "+", "_"))
	if err != nil {
		return nil, fmt.Errorf("-version %s cannot be a tag: %w", version, err)
	}
	return tagged, nil
}

func writeFile(path string, a Archive, out io.Writer) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	size, err := a.WriteTo(f)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := f.Close(); err != nil {
		return err
	}
	fmt.Fprintf(out, "%s: %s, %.1f MB\n", path, a.Ref, float64(size)/1e6)
	return nil
}
