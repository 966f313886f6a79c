// Package support collects a support bundle: one file with what somebody needs who
// looks for a fault on a node, without secrets.
package support

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/trackless-dns/trackless/node/redact"
	"github.com/trackless-dns/trackless/node/snapshot"
)

// Schema names the version of the manifest. Within it fields are added,
// never renamed.
const Schema = "trackless.support-bundle/v1"

// directory is the directory that a bundle unpacks to.
const directory = "trackless-support"

// Bundle is a support bundle that is being put together.
type Bundle struct {
	redact   redact.Redactor
	without  []string
	manifest Manifest
	contents map[string][]byte
}

// Manifest is the JSON of manifest.json; its names do not change.
type Manifest struct {
	Schema  string        `json:"schema"`
	Created time.Time     `json:"created"`
	Node    snapshot.Node `json:"node"`
	Version string        `json:"version"`
	Parts   []Part        `json:"parts"`
	Missing []MissingPart `json:"missing"`
	// SecretsLeftOut counts what was replaced by redact.LeftOut.
	SecretsLeftOut int `json:"secrets_left_out"`
}

// Part is a file of the bundle.
type Part struct {
	Name   string `json:"name"`
	About  string `json:"about"`
	Bytes  int    `json:"bytes"`
	SHA256 string `json:"sha256"`
}

// MissingPart is what is not in the bundle, and why.
type MissingPart struct {
	Name   string `json:"name"`
	About  string `json:"about"`
	Reason string `json:"reason"`
}

// New begins a bundle of a node, for the version of Trackless that makes it. Parts
// of the kinds in without are left out.
func New(node snapshot.Node, version string, now time.Time, without ...string) *Bundle {
	return &Bundle{
		manifest: Manifest{
			Schema: Schema, Created: now.Truncate(time.Second), Node: node, Version: version,
			Parts: []Part{}, Missing: []MissingPart{},
		},
		without:  without,
		contents: map[string][]byte{},
	}
}

var errLeftOut = errors.New("left out by --without")

// Add makes a part. --without names its kind to leave it out.
func (b *Bundle) Add(kind, name, about string, read func() ([]byte, error)) {
	if kind != "" && slices.Contains(b.without, kind) {
		b.Miss(name, about, errLeftOut)
		return
	}
	text, err := read()
	if err != nil {
		b.Miss(name, about, err)
	}
	if len(text) == 0 {
		if err == nil {
			b.Miss(name, about, errors.New("it is empty"))
		}
		return
	}
	b.manifest.Parts = append(b.manifest.Parts, Part{Name: name, About: about})
	b.contents[name] = text
}

// Miss says that a part is not in the bundle, and why.
func (b *Bundle) Miss(name, about string, err error) {
	b.manifest.Missing = append(b.manifest.Missing, MissingPart{name, about, err.Error()})
}

// Manifest lists what is in the bundle, and what is not. Sums and secrets are there
// once it is written.
func (b *Bundle) Manifest() Manifest { return b.manifest }

// RememberEnvironment has the values of secret names left out wherever they stand.
func (b *Bundle) RememberEnvironment(environment []string) { b.redact.RememberEnvironment(environment) }

// Corefile takes the secrets out of a Corefile, and has them left out wherever they
// stand.
func (b *Bundle) Corefile(text string) string { return b.redact.Corefile(text) }

// unfit are the characters that a file name had better not have.
var unfit = regexp.MustCompile(`[^A-Za-z0-9.-]+`)

// FileName says whose bundle it is, and when it was made.
func (b *Bundle) FileName() string {
	node := strings.Trim(unfit.ReplaceAllString(b.manifest.Node.Name, "-"), "-.")
	if node == "" {
		node = "node"
	}
	return fmt.Sprintf("trackless-support-%s-%s.tar.gz", node, b.manifest.Created.UTC().Format("20060102T150405Z"))
}

// Write takes secrets out of all parts and writes them, the manifest first.
// Names, order, times and owners depend on what is in it alone.
func (b *Bundle) Write(w io.Writer, compressed bool) error {
	// One part may show that a word is a secret, and another may hold the word
	// alone: all are found before any is taken out.
	for _, part := range b.manifest.Parts {
		b.redact.Learn(string(b.contents[part.Name]))
	}
	for i := range b.manifest.Parts {
		part := &b.manifest.Parts[i]
		text := b.contents[part.Name]
		if strings.HasSuffix(part.Name, ".json") {
			text = b.redact.JSON(text)
		} else {
			text = []byte(b.redact.Text(string(text)))
		}
		sum := sha256.Sum256(text)
		b.contents[part.Name], part.Bytes, part.SHA256 = text, len(text), hex.EncodeToString(sum[:])
	}
	for i := range b.manifest.Missing {
		b.manifest.Missing[i].Reason = b.redact.Text(b.manifest.Missing[i].Reason)
	}
	b.manifest.SecretsLeftOut = b.redact.Count()
	head, err := Indented(b.manifest)
	if err != nil {
		return err
	}

	var text bytes.Buffer
	archive := tar.NewWriter(&text)
	add := func(name string, content []byte) {
		err = errors.Join(err, archive.WriteHeader(&tar.Header{
			Name: path.Join(directory, name), Mode: 0o600, Size: int64(len(content)), ModTime: b.manifest.Created, Format: tar.FormatPAX,
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

// Indented is a value as JSON that people can read.
func Indented(v any) ([]byte, error) {
	text, err := json.MarshalIndent(v, "", "  ")
	return append(text, '\n'), err
}
