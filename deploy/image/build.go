package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"debug/elf"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Build is what all architectures of one image have in common.
type Build struct {
	Program  string // the binary's name in the image
	Link     string // a second name for it, and the entry point; may be empty
	Version  string
	Revision string
	Created  time.Time
}

// machines are the architectures that images are made for, as OCI (GOARCH)
// names them, with the ELF machine and byte order of their binaries. arm is
// arm/v7, the oldest with 64-bit atomic instructions.
var machines = map[string]struct {
	machine elf.Machine
	order   elf.Data
	variant string
}{
	"amd64":   {elf.EM_X86_64, elf.ELFDATA2LSB, ""},
	"arm64":   {elf.EM_AARCH64, elf.ELFDATA2LSB, ""},
	"arm":     {elf.EM_ARM, elf.ELFDATA2LSB, "v7"},
	"ppc64le": {elf.EM_PPC64, elf.ELFDATA2LSB, ""},
	"riscv64": {elf.EM_RISCV, elf.ELFDATA2LSB, ""},
	"s390x":   {elf.EM_S390, elf.ELFDATA2MSB, ""},
}

// Image returns an image that holds the binary and nothing else: no shell, no
// libraries, no package database. It is an error if the binary is not a static
// one for the architecture, since it would start nowhere.
func (b Build) Image(arch, binary string) (v1.Image, error) {
	if err := checkBinary(arch, binary); err != nil {
		return nil, err
	}
	program, err := os.ReadFile(binary)
	if err != nil {
		return nil, err
	}
	files, err := b.rootFS(program)
	if err != nil {
		return nil, fmt.Errorf("layer of %s: %w", arch, err)
	}
	layer, err := tarball.LayerFromOpener(
		func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(files)), nil },
		tarball.WithCompressionLevel(gzip.BestCompression),
		tarball.WithMediaType(types.OCILayer),
		tarball.WithCompressedCaching,
	)
	if err != nil {
		return nil, fmt.Errorf("layer of %s: %w", arch, err)
	}

	image := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	image, err = mutate.ConfigFile(image, &v1.ConfigFile{
		Architecture: arch,
		Variant:      machines[arch].variant,
		OS:           "linux",
		Created:      v1.Time{Time: b.Created},
		RootFS:       v1.RootFS{Type: "layers"},
		Config:       b.config(),
	})
	if err != nil {
		return nil, err
	}
	image, err = mutate.Append(image, mutate.Addendum{
		Layer:   layer,
		History: v1.History{Created: v1.Time{Time: b.Created}, CreatedBy: "deploy/image", Comment: b.Program + " " + b.Version},
	})
	if err != nil {
		return nil, err
	}
	return mutate.Annotations(image, b.labels()).(v1.Image), nil
}

// config is how a container of the image starts. The entry point is
// node-cache, because Kubernetes' nodelocaldns.yaml gives arguments only; our
// own manifests name their command. Capabilities are not an image's to give:
// uid 0 has those that the pod grants, NET_ADMIN and NET_BIND_SERVICE.
func (b Build) config() v1.Config {
	entry := b.Program
	if b.Link != "" {
		entry = b.Link
	}
	return v1.Config{
		User:       "0:0",
		Entrypoint: []string{"/" + entry},
		Env:        []string{"PATH=/"}, // `kubectl exec POD -- trackless rules show`
		WorkingDir: "/",
		StopSignal: "SIGTERM",
		Labels:     b.labels(),
	}
}

// labels are those of the OCI image specification (annotations.md,
// "Pre-Defined Annotation Keys").
func (b Build) labels() map[string]string {
	labels := map[string]string{
		"title":         b.Program,
		"description":   "A node-local DNS cache that leaves no conntrack entry",
		"licenses":      "Apache-2.0",
		"source":        "https://github.com/trackless-dns/trackless",
		"documentation": "https://github.com/trackless-dns/trackless/tree/main/docs",
		"version":       b.Version,
		"created":       b.Created.Format(time.RFC3339),
	}
	if b.Revision != "" {
		labels["revision"] = b.Revision
	}
	full := make(map[string]string, len(labels))
	for k, v := range labels {
		full["org.opencontainers.image."+k] = v
	}
	return full
}

// rootFS is the tar of the one layer. The directories are mount points and
// what node-cache writes to; a runtime with a read-only root needs them there.
func (b Build) rootFS(program []byte) ([]byte, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	headers := []tar.Header{
		{Typeflag: tar.TypeDir, Name: "etc/", Mode: 0o755},
		{Typeflag: tar.TypeDir, Name: "etc/coredns/", Mode: 0o755},
		{Typeflag: tar.TypeDir, Name: "run/", Mode: 0o755},
		{Typeflag: tar.TypeDir, Name: "run/trackless/", Mode: 0o700},
		{Typeflag: tar.TypeDir, Name: "tmp/", Mode: 0o1777},
	}
	if b.Link != "" {
		headers = append(headers, tar.Header{Typeflag: tar.TypeSymlink, Name: b.Link, Linkname: b.Program, Mode: 0o777})
	}
	// Last, since its contents follow.
	headers = append(headers, tar.Header{Typeflag: tar.TypeReg, Name: b.Program, Mode: 0o755, Size: int64(len(program))})
	for _, h := range headers {
		h.ModTime = b.Created
		h.Format = tar.FormatPAX
		if err := w.WriteHeader(&h); err != nil {
			return nil, err
		}
	}
	if _, err := w.Write(program); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

func checkBinary(arch, binary string) error {
	want, ok := machines[arch]
	if !ok {
		return fmt.Errorf("architecture %q: images are made for %s", arch, strings.Join(slices.Sorted(maps.Keys(machines)), ", "))
	}
	file, err := os.Open(binary)
	if err != nil {
		return fmt.Errorf("binary for %s: %w", arch, err)
	}
	defer file.Close()
	f, err := elf.NewFile(file)
	if err != nil {
		return fmt.Errorf("binary for %s: %s is no ELF binary: %w", arch, binary, err)
	}
	if f.Machine != want.machine || f.Data != want.order {
		return fmt.Errorf("binary for %s: %s is built for %s", arch, binary, f.Machine)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return fmt.Errorf("binary for %s: %s is dynamically linked, and the image has no libraries; build it with CGO_ENABLED=0", arch, binary)
		}
	}
	return nil
}
