//go:build privileged

package nftables

import (
	"bytes"
	"encoding/hex"
	"os"
	"strings"
	"testing"

	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/iptables"
)

// TestKey: another instance reads the key of a table, and nft does not show it.
func TestKey(t *testing.T) {
	b := newBackend(t)
	if err := b.Install(iptables.Rules{Plan: dnsPlan("10.96.0.10")}); err != nil {
		t.Fatal(err)
	}
	holders, err := Holders(b.cfg)
	if err != nil || len(holders) != 1 {
		t.Fatalf("%d holders, %v", len(holders), err)
	}
	h := holders[0]
	if h.Table != b.Table() || !bytes.Equal(h.Key, b.Key()) || len(h.Key) != keyLen || h.Mark.PID != os.Getpid() {
		t.Errorf("holder %+v of table %s", h, b.Table())
	}
	if bytes.Equal(h.Key, make([]byte, keyLen)) {
		t.Error("the key is no secret")
	}
	shown := testns.Run(t, "nft", "list", "ruleset")
	if !strings.Contains(shown, b.Table()) || strings.Contains(shown, hex.EncodeToString(h.Key)) || strings.Contains(shown, string(h.Key)) {
		t.Errorf("nft shows:\n%s", shown)
	}
}
