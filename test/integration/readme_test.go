//go:build privileged

package integration

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/trackless-dns/trackless/lab"
)

var corefileBlock = regexp.MustCompile("(?ms)^~~~ corefile\n(.*?)^~~~$")

// TestReadmeCorefiles starts every Corefile that a README of a plugin, or docs/serve.md,
// shows, and stops it.
func TestReadmeCorefiles(t *testing.T) {
	files, err := filepath.Glob("../../plugin/*/README.md")
	if err != nil {
		t.Fatal(err)
	}
	files = append(files, "../../docs/serve.md")
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		blocks := corefileBlock.FindAllSubmatch(text, -1)
		if len(blocks) == 0 {
			t.Errorf("%s shows no Corefile", file)
		}
		for _, block := range blocks {
			t.Run(filepath.Base(filepath.Dir(file)), func(t *testing.T) {
				node := newNode(t)
				server, err := node.Serve(string(block[1]))
				if err != nil {
					t.Fatal(err)
				}
				sign := startedLine
				if bytes.Contains(block[1], []byte("notrack")) {
					sign = attachedLine
				}
				eventually(t, "the Corefile starts", func() error { return logged(server, sign) })
				if err := server.Close(); err != nil {
					t.Errorf("%v\n%s", err, block[1])
				}
			})
		}
	}
}

// TestSystemdCorefile starts the one that comes with the systemd unit.
func TestSystemdCorefile(t *testing.T) {
	text, err := os.ReadFile("../../deploy/systemd/Corefile")
	if err != nil {
		t.Fatal(err)
	}
	// The name servers of the network are those of the lab here.
	const servers = "192.0.2.53 192.0.2.54"
	if !bytes.Contains(text, []byte(servers)) {
		t.Fatalf("it does not forward to %s:\n%s", servers, text)
	}
	server, err := newNode(t).Serve(strings.ReplaceAll(string(text), servers, lab.UpstreamDNS4.String()))
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "DNS is untracked", func() error { return logged(server, attachedLine) })
	if err := server.Close(); err != nil {
		t.Error(err)
	}
}

var (
	startedLine  = regexp.MustCompile(`(?m)^trackless .*CoreDNS`)
	attachedLine = regexp.MustCompile(`plugin/notrack: attached: `)
)

// logged waits for a line in the server's log.
func logged(server *lab.Server, line *regexp.Regexp) error {
	select {
	case <-server.Done():
		return nil // Close says how it ended
	default:
	}
	if !line.MatchString(server.Output()) {
		return errNotYet{server.Output()}
	}
	return nil
}

type errNotYet struct{ output string }

func (e errNotYet) Error() string { return "not yet:\n" + e.output }
