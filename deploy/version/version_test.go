package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const root = "../.."

func TestFilesAgree(t *testing.T) {
	t.Parallel()
	bad, err := disagreements(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range bad {
		t.Error(b)
	}
	r, err := read(root)
	if err != nil {
		t.Fatal(err)
	}
	changes, err := os.ReadFile(filepath.Join(root, "CHANGELOG.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`(?m)^## Unreleased$`, `(?m)^## ` + regexp.QuoteMeta(r.Version) + ` - \d{4}-\d\d-\d\d$`} {
		if !regexp.MustCompile(want).Match(changes) {
			t.Errorf("CHANGELOG.md: no line matches %s", want)
		}
	}
}

// The image has one name wherever somebody could copy it from.
func TestOneRegistry(t *testing.T) {
	t.Parallel()
	r, err := read(root)
	if err != nil {
		t.Fatal(err)
	}
	image := regexp.MustCompile(`[a-z0-9.-]+(/[a-z0-9.-]+)*/trackless-dns/trackless\b|\btrackless-dns/trackless\b`)
	found := 0
	for _, top := range []string{"deploy/helm", "deploy/kustomize", "deploy/systemd", "deploy/image/Dockerfile", "docs", "README.md"} {
		err := filepath.WalkDir(filepath.Join(root, top), func(path string, d os.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			for _, name := range image.FindAllString(string(b), -1) {
				if strings.HasPrefix(name, "github.com/") || strings.HasSuffix(name, "githubusercontent.com/trackless-dns/trackless") {
					continue // the sources
				}
				found++
				if name != r.image() {
					t.Errorf("%s: %s, and images are at %s", path, name, r.image())
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if found == 0 {
		t.Error("no file names the image")
	}
}

// A new version, and a new registry, reach every file that repeats them.
func TestSet(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	all, err := allPlaces(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range append([]string{source}, files(all)...) {
		b, err := os.ReadFile(filepath.Join(root, file))
		if err != nil {
			t.Fatal(err)
		}
		if file == source {
			b = regexp.MustCompile(`(?m)^REGISTRY=.*`).ReplaceAll(b, []byte("REGISTRY=example.invalid/dns"))
		}
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, file)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, file), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if bad, err := disagreements(dir); err != nil || len(bad) == 0 {
		t.Fatalf("another registry is not noticed: %v", err)
	}
	for _, wrong := range []string{"v1.2.3", "1.2", "1.2.3+x", ""} {
		if err := set(dir, wrong); err == nil {
			t.Errorf("version %q is taken", wrong)
		}
	}
	if err := set(dir, "12.3.4-rc.1"); err != nil {
		t.Fatal(err)
	}
	bad, err := disagreements(dir)
	if err != nil || len(bad) != 0 {
		t.Errorf("after set: %v %v", bad, err)
	}
	chart, err := os.ReadFile(filepath.Join(dir, "deploy/helm/trackless/Chart.yaml"))
	if err != nil || !strings.Contains(string(chart), "\nversion: 12.3.4-rc.1\n") {
		t.Errorf("the chart's version is not set: %v\n%s", err, chart)
	}
}

func files(all []place) []string {
	var names []string
	for _, p := range all {
		names = append(names, p.file)
	}
	return names
}

// One Go release builds every module; a module that names none would be built
// with whatever the machine has.
func TestOneToolchain(t *testing.T) {
	t.Parallel()
	line := regexp.MustCompile(`(?m)^toolchain (.*)$`)
	want := ""
	for _, module := range []string{".", "deploy/image", "deploy/release"} {
		b, err := os.ReadFile(filepath.Join(root, module, "go.mod"))
		if err != nil {
			t.Fatal(err)
		}
		m := line.FindSubmatch(b)
		if m == nil {
			t.Errorf("%s/go.mod: no line toolchain", module)
			continue
		}
		if want == "" {
			want = string(m[1])
		}
		if got := string(m[1]); got != want {
			t.Errorf("%s/go.mod: toolchain %s, and that of the product is %s", module, got, want)
		}
	}
}

// The version of a build says between which releases it is.
func TestDescribe(t *testing.T) {
	t.Parallel()
	script, err := filepath.Abs("describe.sh")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	run := func(name string, args ...string) string {
		t.Helper()
		cmd := exec.Command(name, args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GIT_CEILING_DIRECTORIES="+filepath.Dir(dir), "GIT_CONFIG_GLOBAL=/dev/null",
			"GIT_AUTHOR_NAME=t", "GIT_AUTHOR_EMAIL=t@example.invalid", "GIT_COMMITTER_NAME=t", "GIT_COMMITTER_EMAIL=t@example.invalid")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s %v: %v\n%s", name, args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	for _, step := range []struct {
		name string
		do   [][]string
		want string
	}{
		{"without git", nil, `^0\.1\.0$`},
		{"before the tag", [][]string{{"git", "init", "-q"}, {"touch", "file"}, {"git", "add", "file"}, {"git", "commit", "-qm", "one"}}, `^0\.1\.0-dev\+g[0-9a-f]{7}$`},
		{"at the tag", [][]string{{"git", "tag", "v0.1.0"}}, `^0\.1\.0$`},
		{"changed", [][]string{{"sh", "-c", "echo >file"}}, `^0\.1\.0\+dirty$`},
		{"after the tag", [][]string{{"git", "commit", "-qam", "two"}}, `^0\.1\.0\+1\.g[0-9a-f]{7}$`},
		{"after it and changed", [][]string{{"rm", "file"}}, `^0\.1\.0\+1\.g[0-9a-f]{7}\.dirty$`},
	} {
		for _, args := range step.do {
			run(args[0], args[1:]...)
		}
		if got := run(script, "0.1.0"); !regexp.MustCompile(step.want).MatchString(got) {
			t.Errorf("%s: %q does not match %s", step.name, got, step.want)
		}
	}
}
