package support

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/trackless-dns/trackless/iptables/control"
	"github.com/trackless-dns/trackless/node/instance"
	"github.com/trackless-dns/trackless/node/nodetest"
	"github.com/trackless-dns/trackless/node/rules"
	"github.com/trackless-dns/trackless/node/snapshot"
)

// names are those of the parts, and of what is missing.
func names(b *Bundle) (parts, missing []string) {
	for _, p := range b.Manifest().Parts {
		parts = append(parts, p.Name)
	}
	for _, m := range b.Manifest().Missing {
		missing = append(missing, m.Name)
	}
	return parts, missing
}

func TestAddInstances(t *testing.T) {
	socket := nodetest.NewSocket("/run/trackless/control.sock", 7, "trackless-a")
	socket.Config = control.Corefile{Path: "/etc/coredns/Corefile", Contents: "import /etc/coredns/*.conf\nimport snippet\n. {\n secret planted-value\n}\n"}
	socket.Lines = []byte("[INFO] it said planted-value\n")
	b := New(snapshot.Node{Name: "worker"}, "development", time.Now())
	b.AddInstances(t.Context(), &rules.Report{
		Reached: []instance.Reached{{ControlSocket: socket}},
		Silent:  []instance.Silent{{Socket: "/run/trackless/hung.sock", Err: errors.New("no answer")}},
	}, "")
	parts, missing := names(b)
	if want := []string{"instance-1/Corefile", "instance-1/status.json", "instance-1/figures.json", "instance-1/log.txt"}; !slices.Equal(parts, want) {
		t.Errorf("parts %q, want %q", parts, want)
	}
	if want := []string{"instance at /run/trackless/hung.sock", "instance-1/Corefile"}; !slices.Equal(missing, want) { // the second: what it imports
		t.Errorf("missing %q, want %q", missing, want)
	}
	var out bytes.Buffer
	if err := b.Write(&out, false); err != nil || strings.Contains(out.String(), "planted") {
		t.Errorf("error %v; a secret of the Corefile is in it:\n%s", err, &out)
	}
}

func TestAddInstancesWithoutAny(t *testing.T) {
	conf := filepath.Join(t.TempDir(), "Corefile")
	if err := os.WriteFile(conf, []byte(". {\n whoami\n}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		conf           string
		parts, missing []string
	}{
		{"", nil, []string{"instance-1/log.txt", "instance-1/Corefile"}},
		{conf, []string{"Corefile"}, []string{"instance-1/log.txt"}},
	} {
		b := New(snapshot.Node{}, "development", time.Now())
		b.AddInstances(t.Context(), &rules.Report{}, tc.conf)
		if parts, missing := names(b); !slices.Equal(parts, tc.parts) || !slices.Equal(missing, tc.missing) {
			t.Errorf("--conf %q: parts %q, missing %q", tc.conf, parts, missing)
		}
	}
}
