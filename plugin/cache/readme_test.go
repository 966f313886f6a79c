package cache

import (
	"os"
	"strings"
	"testing"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	_ "github.com/coredns/coredns/plugin/bind" // for the Corefiles
	_ "github.com/coredns/coredns/plugin/forward"
	_ "github.com/coredns/coredns/plugin/hosts"
	_ "github.com/coredns/coredns/plugin/whoami"
	"github.com/prometheus/client_golang/prometheus"
)

func TestMain(m *testing.M) {
	if err := dnsserver.SetDirectives([]string{"root", "bind", "rewrite", "cache", "template", "hosts", "file", "auto", "forward", "grpc", "whoami"}); err != nil {
		panic(err)
	}
	dnsserver.Port = "0"
	dnsserver.Quiet = true
	caddy.Quiet = true
	os.Exit(m.Run())
}

// start starts a server with the Corefile, on loopback and any port.
func start(t *testing.T, corefile string) *caddy.Instance {
	t.Helper()
	inst, err := caddy.Start(input(corefile))
	if err != nil {
		t.Fatalf("%v\n%s", err, corefile)
	}
	return inst
}

func stop(t *testing.T, inst *caddy.Instance) {
	t.Helper()
	for _, err := range inst.ShutdownCallbacks() {
		t.Error(err)
	}
	if err := inst.Stop(); err != nil {
		t.Error(err)
	}
}

func input(corefile string) caddy.Input {
	return caddy.CaddyfileInput{Filepath: "Corefile", Contents: []byte(corefile), ServerTypeName: "dns"}
}

func TestReadmeSections(t *testing.T) {
	rest := readme(t)
	for _, section := range []string{"# cache\n", "## Name\n\n*cache* - ", "## Description\n", "## Syntax\n", "## Metrics\n", "## Examples\n"} {
		i := strings.Index(rest, section)
		if i < 0 {
			t.Fatalf("no section %q in its place", section)
		}
		rest = rest[i:]
	}
}

func TestReadmeCorefiles(t *testing.T) {
	blocks := strings.Split(readme(t), "~~~ corefile\n")[1:]
	if len(blocks) < 4 {
		t.Fatalf("only %d Corefiles", len(blocks))
	}
	for _, b := range blocks {
		corefile, _, _ := strings.Cut(b, "~~~")
		stop(t, start(t, corefile))
	}
}

// TestReadmeNamesEverything: each option and metric is in the README.
func TestReadmeNamesEverything(t *testing.T) {
	text := readme(t)
	for option := range options {
		if !strings.Contains(text, "\n    "+option) {
			t.Errorf("option %s is not in the syntax", option)
		}
	}
	New().Counters("dns://:53") // of which there is nothing before
	families, err := prometheus.DefaultGatherer.Gather()
	if err != nil {
		t.Fatal(err)
	}
	metrics := 0
	for _, f := range families {
		name := f.GetName()
		if !strings.HasPrefix(name, "coredns_cache_") {
			continue
		}
		metrics++
		if !strings.Contains(text, "* `"+name+"{") {
			t.Errorf("metric %s is not described", name)
		}
	}
	if metrics == 0 {
		t.Error("there are no metrics")
	}
}

func readme(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
