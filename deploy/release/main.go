// Command release puts a release into one folder: images, programs, chart,
// manifests that name the image by digest, licenses, SBOM, provenance and
// checksums. It compiles nothing and asks no network: what it writes depends
// on its input alone, so that the same commit gives the same bytes.
//
// It is a module of its own, so that what it needs stays out of the product's
// dependencies.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

const help = `Put a release of Trackless into one folder.

Usage:
  release -version VERSION -registry REGISTRY -commit HASH -created TIME
          -source DIR -images DIR -o DIR [-plugin OS/ARCH=BINARY]... ARCH=BINARY...

-images is where the program in deploy/image wrote its archives. They are moved.
docs/release.md lists what is written.

Flags:
`

// Release is what everything in the folder is made from.
type Release struct {
	Version  string
	Registry string // and a folder in it, ghcr.io/trackless-dns
	Commit   string
	Created  time.Time // of the commit
	Source   string    // the top of the sources
	Out      string
	Programs []Program // sorted by architecture
	Plugins  []binary  // of kubectl, in the order in which they were given
}

// Program is a static binary of the product.
type Program struct {
	Arch string // GOARCH
	Path string
}

func (r Release) image() string { return r.Registry + "/trackless" }

// name is that of a file in the folder: trackless-0.1.0SUFFIX.
func (r Release) name(suffix string) string { return "trackless-" + r.Version + suffix }

func main() {
	err := run(os.Args[1:], os.Stdout)
	if err == nil || errors.Is(err, flag.ErrHelp) {
		return
	}
	fmt.Fprintf(os.Stderr, "release: %v\n", err)
	os.Exit(1)
}

func run(args []string, out io.Writer) error {
	var (
		r               Release
		created, images string
	)
	fs := flag.NewFlagSet("release", flag.ContinueOnError)
	fs.StringVar(&r.Version, "version", "", "`version` of the release and of its binaries")
	fs.StringVar(&r.Registry, "registry", "", "`registry` and folder that the image is pushed to")
	fs.StringVar(&r.Commit, "commit", "", "`commit` of the sources")
	fs.StringVar(&created, "created", "", "`time` of that commit (RFC 3339)")
	fs.StringVar(&r.Source, "source", "", "`directory` of the sources")
	fs.StringVar(&images, "images", "", "`directory` with trackless.tar and trackless-ARCH.tar")
	fs.Func("plugin", "kubectl plugin as `OS/ARCH=BINARY`, for each platform once; without one the release has none", func(arg string) error {
		p, err := parsePlugin(arg)
		r.Plugins = append(r.Plugins, p)
		return err
	})
	fs.StringVar(&r.Out, "o", "", "`directory` to write to")
	fs.Usage = func() {
		fmt.Fprint(fs.Output(), help)
		fs.PrintDefaults()
	}
	if err := fs.Parse(args); err != nil {
		return err
	}
	var missing []string
	fs.VisitAll(func(f *flag.Flag) {
		if f.Value.String() == "" && f.Name != "plugin" {
			missing = append(missing, "-"+f.Name)
		}
	})
	if len(missing) > 0 {
		return fmt.Errorf("missing: %s", strings.Join(missing, " "))
	}
	var err error
	if r.Created, err = time.Parse(time.RFC3339, created); err != nil {
		return fmt.Errorf("-created: %w", err)
	}
	r.Created = r.Created.UTC()
	for _, arg := range fs.Args() {
		arch, path, ok := strings.Cut(arg, "=")
		if !ok {
			return fmt.Errorf("%q is not ARCH=FILE", arg)
		}
		r.Programs = append(r.Programs, Program{arch, path})
	}
	if len(r.Programs) == 0 {
		return errors.New("no program; name one as ARCH=FILE, for example amd64=bin/trackless")
	}
	slices.SortFunc(r.Programs, func(a, b Program) int { return strings.Compare(a.Arch, b.Arch) })
	if err := r.write(images); err != nil {
		return err
	}
	fmt.Fprintf(out, "release: %s is in %s\n", r.Version, r.Out)
	return nil
}

// write fills the folder, in the order in which one needs the other.
func (r Release) write(images string) error {
	if err := os.MkdirAll(r.Out, 0o755); err != nil {
		return err
	}
	digest, err := r.moveImages(images)
	if err != nil {
		return err
	}
	deps, err := r.dependencies()
	if err != nil {
		return err
	}
	report := licenseReport("trackless "+r.Version, deps)
	if err := r.file("THIRD-PARTY-LICENSES.txt", report); err != nil {
		return err
	}
	for _, p := range r.Programs {
		if err := r.programArchive(p, report); err != nil {
			return err
		}
	}
	if err := r.plugins(); err != nil {
		return err
	}
	if err := r.chart(); err != nil {
		return err
	}
	if err := r.manifests(digest); err != nil {
		return err
	}
	if err := r.changes(); err != nil {
		return err
	}
	if err := r.sbom(deps); err != nil {
		return err
	}
	if err := r.provenance(digest, deps); err != nil {
		return err
	}
	return r.checksums()
}

func (r Release) file(name string, contents []byte) error {
	return os.WriteFile(filepath.Join(r.Out, name), contents, 0o644)
}
