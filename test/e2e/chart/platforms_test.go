//go:build e2e

package chart

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

var (
	shellBlock = regexp.MustCompile("(?ms)^ *~~~ sh\n(.*?)^ *~~~$")
	hereDoc    = regexp.MustCompile(`(?ms)^cat > (\S+) <<EOF\n(.*?)^EOF$`)
	install    = regexp.MustCompile(`(?m)^helm install trackless oci://ghcr\.io/trackless-dns/charts/trackless --version (\S+) -n kube-system(.*)$`)
	dnsService = regexp.MustCompile(`kubeDNS\.service=([a-z0-9-]+)`)
)

// TestPlatforms renders what the pages of platforms say to install, and looks
// whether it asks for the DNS Service that the command names.
func TestPlatforms(t *testing.T) {
	b, err := os.ReadFile(filepath.Join(chartDir, "Chart.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var chart struct{ Version string }
	if err := yaml.Unmarshal(b, &chart); err != nil {
		t.Fatal(err)
	}
	pages, err := filepath.Glob("../../../docs/platforms/*.md")
	if err != nil {
		t.Fatal(err)
	}
	commands := 0
	for _, page := range pages {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for i, block := range shellBlock.FindAllSubmatch(text, -1) {
			for _, m := range install.FindAllSubmatch(block[1], -1) {
				commands++
				t.Run(fmt.Sprintf("%s %d", filepath.Base(page), i), func(t *testing.T) {
					if version := string(m[1]); version != chart.Version {
						t.Errorf("installs version %s, and the chart is %s", version, chart.Version)
					}
					out, complaints, err := template(t, arguments(t, string(block[1]), string(m[2]))...)
					if err != nil {
						t.Fatalf("%v\n%s", err, complaints)
					}
					service := "kube-dns"
					if named := dnsService.FindSubmatch(m[2]); named != nil {
						service = string(named[1])
					}
					want := "bind {$" + strings.ToUpper(strings.ReplaceAll(service, "-", "_")) + "_SERVICE_HOST}"
					if strings.Contains(string(m[2]), "mode=cilium") {
						want = "serviceName: " + service
					}
					if !strings.Contains(out, want) {
						t.Errorf("the manifests have no %q:\n%s", want, out)
					}
				})
			}
			if got := strings.Count(string(block[1]), "helm install"); got != len(install.FindAll(block[1], -1)) {
				t.Errorf("%s: a command of another form than this test knows:\n%s", page, block[1])
			}
		}
	}
	if commands < 9 {
		t.Errorf("only %d commands in %d pages", commands, len(pages))
	}
}

// arguments are those of a command, with the files that the same block writes.
func arguments(t *testing.T, block, args string) []string {
	t.Helper()
	dir := t.TempDir()
	fields := strings.Fields(args)
	for _, m := range hereDoc.FindAllStringSubmatch(block, -1) {
		path := filepath.Join(dir, m[1])
		if err := os.WriteFile(path, []byte(m[2]), 0o600); err != nil {
			t.Fatal(err)
		}
		if i := slices.Index(fields, m[1]); i >= 0 {
			fields[i] = path
		}
	}
	return fields
}
