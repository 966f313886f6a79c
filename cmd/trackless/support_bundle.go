package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/trackless-dns/trackless/conntrack/snapshot"
)

// bundleSchema names the version of the manifest. Within it fields are added,
// never renamed.
const bundleSchema = "trackless.support-bundle/v1"

// bundleDir is the directory that a bundle unpacks to.
const bundleDir = "trackless-support"

// bundle is a support bundle that is being put together.
type bundle struct {
	redact   redactor
	without  []string
	manifest manifest
	contents map[string][]byte
}

// manifest is the JSON of manifest.json; its names do not change.
type manifest struct {
	Schema  string        `json:"schema"`
	Created time.Time     `json:"created"`
	Node    snapshot.Node `json:"node"`
	Version string        `json:"version"`
	Parts   []bundlePart  `json:"parts"`
	Missing []missingPart `json:"missing"`
	// SecretsLeftOut counts what was replaced by leftOut.
	SecretsLeftOut int `json:"secrets_left_out"`
}

type bundlePart struct {
	Name   string `json:"name"`
	About  string `json:"about"`
	Bytes  int    `json:"bytes"`
	SHA256 string `json:"sha256"`
}

type missingPart struct {
	Name   string `json:"name"`
	About  string `json:"about"`
	Reason string `json:"reason"`
}

func newBundle(node snapshot.Node, now time.Time) *bundle {
	return &bundle{
		manifest: manifest{
			Schema: bundleSchema, Created: now.Truncate(time.Second), Node: node, Version: version,
			Parts: []bundlePart{}, Missing: []missingPart{},
		},
		contents: map[string][]byte{},
	}
}

var errLeftOut = errors.New("left out by --without")

// add makes a part. kind is the name by which --without leaves it out.
func (b *bundle) add(kind, name, about string, read func() ([]byte, error)) {
	if kind != "" && slices.Contains(b.without, kind) {
		b.miss(name, about, errLeftOut)
		return
	}
	text, err := read()
	if err != nil {
		b.miss(name, about, err)
	}
	if len(text) == 0 {
		if err == nil {
			b.miss(name, about, errors.New("it is empty"))
		}
		return
	}
	b.manifest.Parts = append(b.manifest.Parts, bundlePart{Name: name, About: about})
	b.contents[name] = text
}

func (b *bundle) miss(name, about string, err error) {
	b.manifest.Missing = append(b.manifest.Missing, missingPart{name, about, err.Error()})
}

// unfit are the characters that a file name had better not have.
var unfit = regexp.MustCompile(`[^A-Za-z0-9.-]+`)

// fileName says whose bundle it is, and when it was made.
func (b *bundle) fileName() string {
	node := strings.Trim(unfit.ReplaceAllString(b.manifest.Node.Name, "-"), "-.")
	if node == "" {
		node = "node"
	}
	return fmt.Sprintf("trackless-support-%s-%s.tar.gz", node, b.manifest.Created.UTC().Format("20060102T150405Z"))
}

// write takes secrets out of all parts and writes them, the manifest first.
// Names, order, times and owners depend on what is in it alone.
func (b *bundle) write(w io.Writer, compressed bool) error {
	// A secret that shows itself in one part may stand bare in another: what
	// there is to find is found before anything is taken out.
	found := b.redact.count
	for _, part := range b.manifest.Parts {
		b.redact.text(string(b.contents[part.Name]))
	}
	b.redact.count = found
	for i := range b.manifest.Parts {
		part := &b.manifest.Parts[i]
		text := b.contents[part.Name]
		if strings.HasSuffix(part.Name, ".json") {
			text = b.redact.json(text)
		} else {
			text = []byte(b.redact.text(string(text)))
		}
		sum := sha256.Sum256(text)
		b.contents[part.Name], part.Bytes, part.SHA256 = text, len(text), hex.EncodeToString(sum[:])
	}
	for i := range b.manifest.Missing {
		b.manifest.Missing[i].Reason = b.redact.text(b.manifest.Missing[i].Reason)
	}
	b.manifest.SecretsLeftOut = b.redact.count
	head, err := indented(b.manifest)
	if err != nil {
		return err
	}

	var text bytes.Buffer
	archive := tar.NewWriter(&text)
	add := func(name string, content []byte) {
		err = errors.Join(err, archive.WriteHeader(&tar.Header{
			Name: path.Join(bundleDir, name), Mode: 0o600, Size: int64(len(content)), ModTime: b.manifest.Created, Format: tar.FormatPAX,
		}))
		_, writeErr := archive.Write(content)
		err = errors.Join(err, writeErr)
	}
	add("manifest.json", head)
	for _, part := range b.manifest.Parts {
		add(part.Name, b.contents[part.Name])
	}
	if err := errors.Join(err, archive.Close()); err != nil {
		return err
	}
	if !compressed {
		_, err := w.Write(text.Bytes())
		return err
	}
	zip := gzip.NewWriter(w)
	_, err = zip.Write(text.Bytes())
	return errors.Join(err, zip.Close())
}
