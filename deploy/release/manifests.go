package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"

	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
)

// overlays are the modes that manifests are written for.
var overlays = []string{"cilium", "cluster-ip", "link-local"}

var imageLine = regexp.MustCompile(`(?m)^(\s+(?:- )?image: )(.*)$`)

// manifests writes what `kubectl apply -f` takes, one file for each overlay.
func (r Release) manifests(digest string) error {
	for _, overlay := range overlays {
		k := krusty.MakeKustomizer(krusty.MakeDefaultOptions())
		resources, err := k.Run(filesys.MakeFsOnDisk(), filepath.Join(r.Source, "deploy/kustomize/overlays", overlay))
		if err != nil {
			return fmt.Errorf("overlay %s: %w", overlay, err)
		}
		yaml, err := resources.AsYaml()
		if err != nil {
			return fmt.Errorf("overlay %s: %w", overlay, err)
		}
		pinned, err := r.pin(yaml, digest)
		if err != nil {
			return fmt.Errorf("overlay %s: %w", overlay, err)
		}
		name := "trackless-" + overlay + ".yaml"
		head := fmt.Sprintf("# Trackless %s, mode %s: kubectl apply -f %s\n", r.Version, overlay, name)
		if err := r.file(name, append([]byte(head), pinned...)); err != nil {
			return err
		}
	}
	return nil
}

// pin names the image by its digest. The tag beside it is for people; a node
// that has both goes by the digest.
func (r Release) pin(yaml []byte, digest string) ([]byte, error) {
	want := r.image() + ":" + r.Version
	pinned := 0
	var wrong error
	out := imageLine.ReplaceAllFunc(yaml, func(line []byte) []byte {
		m := imageLine.FindSubmatch(line)
		if string(m[2]) != want {
			wrong = fmt.Errorf("image %s, and this release is %s; `make set-version` sets it", m[2], want)
			return line
		}
		pinned++
		return append(bytes.Clone(line), "@"+digest...)
	})
	if wrong == nil && pinned == 0 {
		wrong = fmt.Errorf("no image %s", want)
	}
	return out, wrong
}

// changes writes the part of CHANGELOG.md that is about this release.
func (r Release) changes() error {
	b, err := os.ReadFile(filepath.Join(r.Source, "CHANGELOG.md"))
	if err != nil {
		return err
	}
	start := regexp.MustCompile(`(?m)^## ` + regexp.QuoteMeta(r.Version) + `( .*)?$`).FindIndex(b)
	if start == nil {
		return fmt.Errorf("read the changes of %s: CHANGELOG.md has no heading `## %s`; add it", r.Version, r.Version)
	}
	section := b[start[0]:]
	if end := regexp.MustCompile(`(?m)^## `).FindIndex(section[3:]); end != nil {
		section = section[:3+end[0]]
	}
	return r.file("CHANGES.md", append(bytes.TrimSpace(section), '\n'))
}

// digestOf is the SHA-256 of a file in the folder.
func (r Release) digestOf(name string) (string, error) {
	return fileDigest(filepath.Join(r.Out, name))
}

func fileDigest(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// names are the files that are in the folder now, sorted.
func (r Release) names() ([]string, error) {
	entries, err := os.ReadDir(r.Out)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, nil
}

// checksums is what `sha256sum -c` reads.
func (r Release) checksums() error {
	names, err := r.names()
	if err != nil {
		return err
	}
	var out bytes.Buffer
	for _, name := range names {
		digest, err := r.digestOf(name)
		if err != nil {
			return err
		}
		fmt.Fprintf(&out, "%s  %s\n", digest, name)
	}
	return r.file("SHA256SUMS", out.Bytes())
}
