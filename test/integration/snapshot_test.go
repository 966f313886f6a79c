//go:build privileged

package integration

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/trackless-dns/trackless/lab"
	"github.com/trackless-dns/trackless/lab/load"
	"github.com/trackless-dns/trackless/node/compare"
	"github.com/trackless-dns/trackless/node/snapshot"
)

// takeSnapshot runs `trackless snapshot` on the node while a load runs.
func takeSnapshot(t *testing.T, node *lab.Node, path string) *snapshot.Snapshot {
	t.Helper()
	// The load lasts longer than any machine takes, and ends with the snapshot.
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := load.Run(ctx, node, load.Load{Queries: 60000, Rate: 600, Seed: 7})
		done <- err
	}()
	out, status := trackless(t, node, "snapshot", "--window", "5500ms", "-o", path)
	if status != 0 {
		t.Errorf("snapshot: status %d:\n%s", status, out)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Fatalf("the load ended with %v", err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	s, err := snapshot.Read(f)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSnapshotsBeforeAndAfter(t *testing.T) {
	node := newNode(t)
	dir := t.TempDir()
	beforePath, afterPath := filepath.Join(dir, "before.json"), filepath.Join(dir, "after.json")
	before := takeSnapshot(t, node, beforePath)
	if n := before.Table.Summary.DNS.Entries; n < 1000 || before.Ledger != nil || before.NewFlows.DNSPerSecond < 100 {
		t.Errorf("before: %d entries of DNS, ledger %+v, new flows %+v", n, before.Ledger, before.NewFlows)
	}
	if err := node.Flush(); err != nil {
		t.Fatal(err)
	}

	learning := strings.Replace(corefile(steady, "", listenAddresses(node)...), "cache 30", "cache 30 {\n        nxdomain learn cluster.local\n    }", 1)
	serve(t, node, learning)
	after := takeSnapshot(t, node, afterPath)
	// The absent names of the load are Services with a search domain after them.
	if s := after.Search; s == nil || s.QueriesTotal < 1000 || s.SearchTotal == 0 || s.CutTotal == 0 || s.SearchPercent == nil || *s.SearchPercent <= 0 || *s.SearchPercent >= 50 || s.SavedPerSecond == nil {
		t.Errorf("search paths: %+v", s)
	}
	if len(after.Missing) > 0 || len(after.Attached()) != 1 || after.Attached()[0].Since.IsZero() || len(after.Listeners) == 0 {
		t.Fatalf("missing %v, rules %+v, listeners %+v", after.Missing, after.Rules, after.Listeners)
	}
	l := after.Ledger
	if l == nil || l.EntriesAvoided < 1000 || l.FlowsPerSecond == nil || *l.FlowsPerSecond < 100 || len(l.Classes) != 4 {
		t.Fatalf("ledger %+v", l)
	}
	var sum uint64
	for _, class := range l.Classes {
		sum += class.EntriesAvoided
	}
	first, last := after.Samples[0], after.Samples[len(after.Samples)-1]
	if sum != l.EntriesAvoided || first.EntriesAvoided == nil || *last.EntriesAvoided < *first.EntriesAvoided+1000 || *last.EntriesAvoided != l.EntriesAvoided {
		t.Errorf("classes sum up to %d, samples from %+v to %+v, ledger %+v", sum, first, last, l)
	}

	out, status := trackless(t, node, "compare", beforePath, afterPath, "-o", "json")
	var c compare.Comparison
	if err := json.Unmarshal([]byte(out), &c); err != nil || status != 0 {
		t.Fatalf("status %d, %v:\n%s", status, err, out)
	}
	if c.Verdict.Outcome != compare.Improved || !strings.HasPrefix(c.Verdict.Sentence, "With Trackless, DNS holds ") {
		t.Errorf("verdict %+v, warnings %+v", c.Verdict, c.Warnings)
	}
}

// plantedPEM has the form of a key and is none.
const plantedPEM = "-----BEGIN PRIVATE KEY-----\nMIIplantedplantedplantedplantedplantedplanted00\n-----END PRIVATE KEY-----\n"

func TestSupportBundle(t *testing.T) {
	node := newNode(t)
	dir := t.TempDir()
	key := filepath.Join(dir, "tls.key")
	if err := os.WriteFile(key, []byte(plantedPEM), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PLANTED_API_TOKEN", "plantedenvironment") // for both programs
	config := corefile(steady, `log . "password=plantedlog {name} {rcode} plantedenvironment"
    template IN TXT txt.example.org {
        answer "{{ .Name }} 60 IN TXT \"secret=plantedtemplate\""
    }
    # the key in `+key+` has the password plantedcomment
    # https://planteduser:plantedpass@example.org/`, listenAddresses(node)...)
	server := serve(t, node, config)
	if who, err := ask(t, node.Pods[0].Namespace, lab.ClusterDNS4, lab.UDP); who != lab.Trackless || err != nil {
		t.Fatalf("answered by %q, %v", who, err)
	}
	eventually(t, "the query is logged", func() error { // after its answer has left
		if !strings.Contains(server.Output(), "NOERROR") {
			return errNotYet{server.Output()}
		}
		return nil
	})

	files := makeBundle(t, node, filepath.Join(dir, "bundle.tar.gz"))
	for name, want := range map[string]string{
		"manifest.json":           `"trackless.support-bundle/v1"`,
		"versions.txt":            "CoreDNS v1.",
		"rules.json":              `"attached"`,
		"rules.txt":               "attached",
		"snapshot.json":           `"entries_avoided"`,
		"doctor.json":             `"findings"`,
		"limits.json":             "nf_conntrack_max",
		"instance-1/Corefile":     "bind " + lab.LinkLocalDNS4.String(),
		"instance-1/status.json":  `"attached"`,
		"instance-1/figures.json": `"flows_avoided_total"`,
		"instance-1/log.txt":      "NOERROR",
	} {
		if !strings.Contains(files[name], want) {
			t.Errorf("%s lacks %q:\n%s", name, want, files[name])
		}
	}
	for name, text := range files {
		if strings.Contains(strings.ToLower(text), "planted") && name != "" {
			i := strings.Index(strings.ToLower(text), "planted")
			t.Errorf("%s has a planted secret: ...%s...", name, text[max(0, i-60):min(len(text), i+40)])
		}
	}
	if !strings.Contains(files["instance-1/log.txt"], "password=[left-out]") || !strings.Contains(files["instance-1/Corefile"], "txt.example.org") {
		t.Errorf("too much was left out of\n%s\n%s", files["instance-1/Corefile"], files["instance-1/log.txt"])
	}

	// Without an instance it says what is not in it.
	if err := server.Close(); err != nil {
		t.Fatal(err)
	}
	conf := filepath.Join(dir, "Corefile")
	if err := os.WriteFile(conf, []byte(config+"import more/*.conf\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	files = makeBundle(t, node, filepath.Join(dir, "without.tar"), "--conf", conf, "--without", "doctor,limits")
	for _, want := range []string{"no instance was reached", "left out by --without", "import more/*.conf"} {
		if !strings.Contains(files["manifest.json"], want) {
			t.Errorf("the manifest lacks %q:\n%s", want, files["manifest.json"])
		}
	}
	if files["doctor.json"] != "" || files["limits.json"] != "" || strings.Contains(files["Corefile"], "planted") || !strings.Contains(files["Corefile"], "notrack") {
		t.Errorf("files %v, Corefile\n%s", len(files), files["Corefile"])
	}
}

// makeBundle runs `trackless support-bundle`, checks the manifest and returns
// the files by name.
func makeBundle(t *testing.T, node *lab.Node, path string, args ...string) map[string]string {
	t.Helper()
	out, status := trackless(t, node, append([]string{"support-bundle", "--window", "300ms", "-o", path}, args...)...)
	info, err := os.Stat(path)
	if err != nil || status != 0 || info.Mode().Perm() != 0o600 {
		t.Fatalf("status %d, %v, %v:\n%s", status, err, info, out)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var from io.Reader = bytes.NewReader(raw)
	if strings.HasSuffix(path, ".gz") {
		if from, err = gzip.NewReader(from); err != nil {
			t.Fatal(err)
		}
	}
	files, order := map[string]string{}, []string{}
	for archive := tar.NewReader(from); ; {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(archive)
		if err != nil {
			t.Fatal(err)
		}
		name, ok := strings.CutPrefix(header.Name, "trackless-support/")
		if !ok || header.Uid != 0 || header.Mode != 0o600 || time.Since(header.ModTime) > time.Hour {
			t.Errorf("%+v", header)
		}
		files[name] = string(text)
		order = append(order, name)
	}
	var manifest struct {
		Parts []struct {
			Name, SHA256 string
			Bytes        int
		}
	}
	if err := json.Unmarshal([]byte(files["manifest.json"]), &manifest); err != nil || len(order) != len(manifest.Parts)+1 || order[0] != "manifest.json" {
		t.Fatalf("%v; %d parts for %v", err, len(manifest.Parts), order)
	}
	for i, p := range manifest.Parts {
		sum := sha256.Sum256([]byte(files[p.Name]))
		if p.Name != order[i+1] || p.Bytes != len(files[p.Name]) || p.SHA256 != hex.EncodeToString(sum[:]) {
			t.Errorf("%+v is not what is in the bundle", p)
		}
	}
	return files
}
