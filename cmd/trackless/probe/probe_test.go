package probe

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/trackless-dns/trackless/cmd/trackless/early"
	"github.com/trackless-dns/trackless/iptables/control"
)

// The probes of the manifests are those that are answered without the whole program.
func TestProbesOfManifestsAreEarly(t *testing.T) {
	if got := early.Directory + early.File; got != control.DefaultPath {
		t.Errorf("probes ask %s, and instances listen on %s", got, control.DefaultPath)
	}
	for _, manifest := range []string{"kustomize/base/daemonset.yaml", "helm/trackless/templates/daemonset.yaml"} {
		text, err := os.ReadFile("../../../deploy/" + manifest)
		if err != nil {
			t.Fatal(err)
		}
		probes := 0
		for line := range strings.Lines(string(text)) {
			_, list, ok := strings.Cut(line, "command: ")
			if !ok || !strings.Contains(list, `"probe"`) {
				continue
			}
			probes++
			var command []string
			if err := json.Unmarshal([]byte(list), &command); err != nil {
				t.Fatal(err)
			}
			if early.Request(command[1:]...) == "" {
				t.Errorf("%s: %q starts the whole program", manifest, command)
			}
		}
		if probes != 2 {
			t.Errorf("%s has %d exec probes, want 2", manifest, probes)
		}
	}
}
