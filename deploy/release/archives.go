package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// moveImages puts the archives of deploy/image into the folder, and returns the
// digest of the image of all architectures.
func (r Release) moveImages(dir string) (string, error) {
	for _, p := range r.Programs {
		if err := os.Rename(filepath.Join(dir, "trackless-"+p.Arch+".tar"), filepath.Join(r.Out, r.name("-image-"+p.Arch+".tar"))); err != nil {
			return "", err
		}
	}
	all := filepath.Join(r.Out, r.name("-image.tar"))
	if err := os.Rename(filepath.Join(dir, "trackless.tar"), all); err != nil {
		return "", err
	}
	return imageDigest(all)
}

// imageDigest is that of the one image in an OCI layout: what a registry calls
// it once it is pushed, and what a node asks for.
func imageDigest(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	for tr := tar.NewReader(f); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return "", fmt.Errorf("%s: no index.json; it is no OCI image layout", path)
		}
		if err != nil {
			return "", fmt.Errorf("%s: %w", path, err)
		}
		if h.Name != "index.json" {
			continue
		}
		var index struct {
			Manifests []struct {
				Digest string `json:"digest"`
			} `json:"manifests"`
		}
		if err := json.NewDecoder(tr).Decode(&index); err != nil {
			return "", fmt.Errorf("%s: index.json: %w", path, err)
		}
		digests := map[string]bool{}
		for _, m := range index.Manifests {
			digests[m.Digest] = true
		}
		if len(digests) != 1 {
			return "", fmt.Errorf("%s: index.json has %d images, not 1", path, len(digests))
		}
		return index.Manifests[0].Digest, nil
	}
}

// member is a file of a tar.
type member struct {
	name     string
	contents []byte
	mode     int64
}

// tarball packs files in their order. Nothing in it tells who packed them, or
// when: all are root's, and of the time of the commit.
func tarball(files []member, at time.Time) ([]byte, error) {
	var buf bytes.Buffer
	zip, err := gzip.NewWriterLevel(&buf, gzip.BestCompression)
	if err != nil {
		return nil, err
	}
	w := tar.NewWriter(zip)
	for _, f := range files {
		h := &tar.Header{Name: f.name, Mode: f.mode, Size: int64(len(f.contents)), ModTime: at, Format: tar.FormatUSTAR}
		if err := w.WriteHeader(h); err != nil {
			return nil, fmt.Errorf("%s: %w", f.name, err)
		}
		if _, err := w.Write(f.contents); err != nil {
			return nil, fmt.Errorf("%s: %w", f.name, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	if err := zip.Close(); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

// programArchive is for hosts without Kubernetes: the program, the unit, and
// the licenses that ask to come with it.
func (r Release) programArchive(p Program, licenses []byte) error {
	dir := r.name("-linux-" + p.Arch)
	files := []member{{dir + "/THIRD-PARTY-LICENSES.txt", licenses, 0o644}}
	for _, f := range []struct {
		from, to string
		mode     int64
	}{
		{filepath.Join(r.Source, "LICENSE"), "LICENSE", 0o644},
		{filepath.Join(r.Source, "deploy/systemd/Corefile"), "Corefile", 0o644},
		{filepath.Join(r.Source, "deploy/systemd/trackless.service"), "trackless.service", 0o644},
		{p.Path, "trackless", 0o755},
	} {
		b, err := os.ReadFile(f.from)
		if err != nil {
			return err
		}
		files = append(files, member{dir + "/" + f.to, b, f.mode})
	}
	b, err := tarball(files, r.Created)
	if err != nil {
		return err
	}
	return r.file(dir+".tar.gz", b)
}

// chart packs the chart as `helm package` does, which would write the time of
// the day into it.
func (r Release) chart() error {
	dir := filepath.Join(r.Source, "deploy/helm/trackless")
	var files []member
	// Chart.yaml first, where Helm has it; the rest in the order of their names.
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		f := member{"trackless/" + filepath.ToSlash(name), b, 0o644}
		if name == "Chart.yaml" {
			files = append([]member{f}, files...)
		} else {
			files = append(files, f)
		}
		return nil
	})
	if err != nil {
		return err
	}
	b, err := tarball(files, r.Created)
	if err != nil {
		return err
	}
	return r.file(r.name(".tgz"), b)
}
