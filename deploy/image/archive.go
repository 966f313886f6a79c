package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/distribution/reference"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Archive is a tar with an OCI image layout (image-layout.md). With a single
// image it has also the manifest.json of `docker save`, for a Docker whose
// image store knows no OCI layouts.
type Archive struct {
	Ref    reference.NamedTagged
	Images []v1.Image
	// ByDigest: containerd takes the image under NAME@DIGEST as well, which is what
	// a node looks for that was asked for a digest.
	ByDigest bool
}

// dockerImage is an entry of manifest.json (moby image-spec v1.2, "Combined
// Image JSON + Filesystem Changeset Format").
type dockerImage struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// WriteTo writes the tar and returns its size in bytes.
func (a Archive) WriteTo(out io.Writer) (int64, error) {
	counted := &counter{w: out}
	w := &blobWriter{tar: tar.NewWriter(counted), written: map[v1.Hash]bool{}}

	if err := w.file("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)); err != nil {
		return counted.n, err
	}
	for _, image := range a.Images {
		if err := w.image(image); err != nil {
			return counted.n, err
		}
	}
	top, err := a.index(w)
	if err != nil {
		return counted.n, err
	}
	if err := w.file("index.json", top); err != nil {
		return counted.n, err
	}
	if len(a.Images) == 1 {
		list, err := a.dockerManifest()
		if err != nil {
			return counted.n, err
		}
		if err := w.file("manifest.json", list); err != nil {
			return counted.n, err
		}
	}
	return counted.n, w.tar.Close()
}

// index returns index.json. It describes the image, or an index of the images of all
// architectures, which is written as a blob; with ByDigest under both names.
func (a Archive) index(w *blobWriter) ([]byte, error) {
	names := map[string]string{
		"io.containerd.image.name":          a.Ref.String(),
		"org.opencontainers.image.ref.name": a.Ref.Tag(),
	}
	var add mutate.IndexAddendum
	if len(a.Images) == 1 {
		add.Add = a.Images[0]
	} else {
		all, err := a.platforms()
		if err != nil {
			return nil, err
		}
		raw, err := all.RawManifest()
		if err != nil {
			return nil, err
		}
		digest, err := all.Digest()
		if err != nil {
			return nil, err
		}
		if err := w.blob(digest, raw); err != nil {
			return nil, err
		}
		add.Add = all
	}
	add.Annotations = names
	adds := []mutate.IndexAddendum{add}
	if a.ByDigest {
		digest, err := add.Add.Digest()
		if err != nil {
			return nil, err
		}
		add.Annotations = map[string]string{"io.containerd.image.name": a.Ref.Name() + "@" + digest.String()}
		adds = append(adds, add)
	}
	top := mutate.AppendManifests(mutate.IndexMediaType(empty.Index, types.OCIImageIndex), adds...)
	return top.RawManifest()
}

// platforms is the index of the images of all architectures.
func (a Archive) platforms() (v1.ImageIndex, error) {
	all := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, image := range a.Images {
		config, err := image.ConfigFile()
		if err != nil {
			return nil, err
		}
		manifest, err := image.Manifest()
		if err != nil {
			return nil, err
		}
		all = mutate.AppendManifests(all, mutate.IndexAddendum{
			Add:        image,
			Descriptor: v1.Descriptor{Platform: config.Platform()},
		})
		all = mutate.Annotations(all, manifest.Annotations).(v1.ImageIndex)
	}
	return all, nil
}

func (a Archive) dockerManifest() ([]byte, error) {
	manifest, err := a.Images[0].Manifest()
	if err != nil {
		return nil, err
	}
	image := dockerImage{
		Config:   blobPath(manifest.Config.Digest),
		RepoTags: []string{reference.FamiliarString(a.Ref)},
	}
	for _, layer := range manifest.Layers {
		image.Layers = append(image.Layers, blobPath(layer.Digest))
	}
	return json.Marshal([]dockerImage{image})
}

// blobWriter writes files of an image layout, each blob once.
type blobWriter struct {
	tar     *tar.Writer
	written map[v1.Hash]bool
}

func (w *blobWriter) image(image v1.Image) error {
	layers, err := image.Layers()
	if err != nil {
		return err
	}
	for _, layer := range layers {
		digest, err := layer.Digest()
		if err != nil {
			return err
		}
		r, err := layer.Compressed()
		if err != nil {
			return err
		}
		var contents bytes.Buffer
		_, err = contents.ReadFrom(r)
		r.Close()
		if err != nil {
			return err
		}
		if err := w.blob(digest, contents.Bytes()); err != nil {
			return err
		}
	}
	config, err := image.RawConfigFile()
	if err != nil {
		return err
	}
	name, err := image.ConfigName()
	if err != nil {
		return err
	}
	if err := w.blob(name, config); err != nil {
		return err
	}
	manifest, err := image.RawManifest()
	if err != nil {
		return err
	}
	digest, err := image.Digest()
	if err != nil {
		return err
	}
	return w.blob(digest, manifest)
}

func (w *blobWriter) blob(digest v1.Hash, contents []byte) error {
	if w.written[digest] {
		return nil
	}
	w.written[digest] = true
	return w.file(blobPath(digest), contents)
}

func (w *blobWriter) file(name string, contents []byte) error {
	h := &tar.Header{Name: name, Mode: 0o644, Size: int64(len(contents)), ModTime: time.Unix(0, 0)}
	if err := w.tar.WriteHeader(h); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	_, err := w.tar.Write(contents)
	return err
}

func blobPath(digest v1.Hash) string { return "blobs/" + digest.Algorithm + "/" + digest.Hex }

type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}
