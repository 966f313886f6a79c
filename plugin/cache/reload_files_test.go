package cache

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/coredns/caddy"
	_ "github.com/coredns/coredns/plugin/auto" // for the Corefiles
	_ "github.com/coredns/coredns/plugin/file"
	_ "github.com/coredns/coredns/plugin/grpc"
	_ "github.com/coredns/coredns/plugin/rewrite"
	_ "github.com/coredns/coredns/plugin/root"
	_ "github.com/coredns/coredns/plugin/template"
	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/plugin/cache/store"
	"github.com/trackless-dns/trackless/plugin/cache/wire"
)

// write makes a file below the folder, and the folders above it.
func write(t *testing.T, dir, name, text string) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

const zoneText = "@ 3600 IN SOA ns.example.org. root.example.org. 1 2 3 4 5\n@ 3600 IN NS ns.example.org.\nwww 3600 IN A 192.0.2.%d\n"

// plant stores an answer in the newest engine.
func plant(t *testing.T) {
	t.Helper()
	key, err := wire.AppendKey(nil, www, dns.TypeA, dns.ClassINET, 0)
	if err != nil {
		t.Fatal(err)
	}
	s := engineOf(t).Store()
	s.Put(key, store.Positive, &store.Entry{Stored: s.Time(time.Now()), TTL: 300})
}

// awaitServer waits until the server answers over both transports: a server that is stopped
// before it has started does not stop.
func awaitServer(t *testing.T) {
	t.Helper()
	// The server answers NOTIMP itself, without plugins.
	query := question(www, func(m *dns.Msg) { m.Opcode = dns.OpcodeStatus })
	for _, network := range []string{"udp", "tcp"} {
		client := &dns.Client{Net: network, Timeout: time.Second}
		deadline := time.Now().Add(time.Minute)
		for {
			_, _, err := client.Exchange(query, "127.0.0.1:"+reloadPort)
			if err == nil {
				break
			}
			if time.Now().After(deadline) {
				t.Fatal(err)
			}
		}
	}
}

// reload restarts the instance and returns the number of answers afterwards.
func reload(t *testing.T, inst **caddy.Instance, corefile string) int {
	t.Helper()
	awaitServer(t)
	next, err := (*inst).Restart(input(corefile))
	if err != nil {
		t.Fatal(err)
	}
	*inst = next
	awaitServer(t)
	return engineOf(t).Store().Len(store.Positive)
}

// TestReloadWithFiles: a reload that reads other contents under the same names
// keeps no answer, and any other reload keeps them.
func TestReloadWithFiles(t *testing.T) {
	resolv := "nameserver 192.0.2.%d\n"
	for _, tc := range []struct {
		name   string
		blocks string // DIR is a folder
		files  map[string]string
		change func(t *testing.T, dir string)
		kept   bool
	}{
		{
			name: "resolv.conf, as it was", kept: true,
			blocks: ". {\nBIND\ncache\nforward . DIR/resolv.conf\n}",
			files:  map[string]string{"resolv.conf": fmt.Sprintf(resolv, 1)},
			change: func(t *testing.T, dir string) {
				// Another file with the same contents, as a mounted ConfigMap has it.
				write(t, dir, "new", fmt.Sprintf(resolv, 1))
				if err := os.Rename(filepath.Join(dir, "new"), filepath.Join(dir, "resolv.conf")); err != nil {
					t.Fatal(err)
				}
			},
		},
		{
			name:   "resolv.conf",
			blocks: ". {\nBIND\ncache\nforward . DIR/resolv.conf\n}",
			files:  map[string]string{"resolv.conf": fmt.Sprintf(resolv, 1)},
			change: func(t *testing.T, dir string) { write(t, dir, "resolv.conf", fmt.Sprintf(resolv, 2)) },
		},
		{
			name:   "second forward",
			blocks: ". {\nBIND\ncache\nforward example.org 192.0.2.1\nforward . DIR/resolv.conf\n}",
			files:  map[string]string{"resolv.conf": fmt.Sprintf(resolv, 1)},
			change: func(t *testing.T, dir string) { write(t, dir, "resolv.conf", fmt.Sprintf(resolv, 2)) },
		},
		{
			name:   "nameservers of another transport",
			blocks: ". {\nBIND\ncache\ngrpc . grpc://DIR/resolv.conf\n}",
			files:  map[string]string{"resolv.conf": fmt.Sprintf(resolv, 1)},
			change: func(t *testing.T, dir string) { write(t, dir, "resolv.conf", fmt.Sprintf(resolv, 2)) },
		},
		{
			name:   "name of the file from the environment",
			blocks: ". {\nBIND\ncache\nforward . {$FINGERPRINT_TEST}/resolv.conf\n}",
			files:  map[string]string{"resolv.conf": fmt.Sprintf(resolv, 1)},
			change: func(t *testing.T, dir string) { write(t, dir, "resolv.conf", fmt.Sprintf(resolv, 2)) },
		},
		{
			name:   "zone",
			blocks: "example.org {\nBIND\ncache\nfile DIR/db.example.org\n}",
			files:  map[string]string{"db.example.org": fmt.Sprintf(zoneText, 1)},
			change: func(t *testing.T, dir string) { write(t, dir, "db.example.org", fmt.Sprintf(zoneText, 2)) },
		},
		{
			name:   "zone relative to root",
			blocks: "example.org {\nBIND\nroot DIR\ncache\nfile db.example.org\n}",
			files:  map[string]string{"db.example.org": fmt.Sprintf(zoneText, 1)},
			change: func(t *testing.T, dir string) { write(t, dir, "db.example.org", fmt.Sprintf(zoneText, 2)) },
		},
		{
			name:   "hosts that appear",
			blocks: "example.org {\nBIND\ncache\nhosts DIR/hosts {\nreload 0\n}\n}",
			change: func(t *testing.T, dir string) { write(t, dir, "hosts", "192.0.2.1 www.example.org\n") },
		},
		{
			name:   "hosts that go",
			blocks: "example.org {\nBIND\ncache\nhosts DIR/hosts {\nreload 0\n}\n}",
			files:  map[string]string{"hosts": "192.0.2.1 www.example.org\n"},
			change: func(t *testing.T, dir string) {
				if err := os.Remove(filepath.Join(dir, "hosts")); err != nil {
					t.Fatal(err)
				}
			},
		},
		{
			name:   "hosts",
			blocks: "example.org {\nBIND\ncache\nhosts DIR/hosts {\nreload 0\n}\n}",
			files:  map[string]string{"hosts": "192.0.2.1 www.example.org\n"},
			change: func(t *testing.T, dir string) { write(t, dir, "hosts", "192.0.2.2 www.example.org\n") },
		},
		{
			name:   "zone in a folder",
			blocks: "example.org {\nBIND\ncache\nauto {\ndirectory DIR/zones\n}\n}",
			files:  map[string]string{"zones/sub/db.example.org": fmt.Sprintf(zoneText, 1)},
			change: func(t *testing.T, dir string) { write(t, dir, "zones/sub/db.example.org", fmt.Sprintf(zoneText, 2)) },
		},
		{
			name:   "zone that comes into a folder",
			blocks: "example.org {\nBIND\ncache\nauto {\ndirectory DIR/zones\n}\n}",
			files:  map[string]string{"zones/db.example.net": fmt.Sprintf(zoneText, 1)},
			change: func(t *testing.T, dir string) { write(t, dir, "zones/db.example.org", fmt.Sprintf(zoneText, 2)) },
		},
		{
			name:   "imported file",
			blocks: "example.org {\nBIND\ncache\nimport DIR/below\n}",
			files:  map[string]string{"below": "hosts {\n192.0.2.1 www.example.org\n}\n"},
			change: func(t *testing.T, dir string) { write(t, dir, "below", "hosts {\n192.0.2.2 www.example.org\n}\n") },
		},
		{
			name:   "zone of another block, to which an alias may lead",
			blocks: "example.org {\nBIND\ncache\nfile DIR/db.example.org\n}\nexample.net {\nBIND\nfile DIR/db.example.net\n}",
			files:  map[string]string{"db.example.org": fmt.Sprintf(zoneText, 1), "db.example.net": fmt.Sprintf(zoneText, 1)},
			change: func(t *testing.T, dir string) { write(t, dir, "db.example.net", fmt.Sprintf(zoneText, 2)) },
		},
		{
			name: "zone of another block, of which this one knows nothing", kept: true,
			blocks: "example.org {\nBIND\ncache\nforward . 192.0.2.1\n}\nexample.net {\nBIND\nfile DIR/db.example.net\n}",
			files:  map[string]string{"db.example.net": fmt.Sprintf(zoneText, 1)},
			change: func(t *testing.T, dir string) { write(t, dir, "db.example.net", fmt.Sprintf(zoneText, 2)) },
		},
		{
			name: "a file that no directive reads", kept: true,
			blocks: "example.org {\nBIND\ncache\nhosts DIR/hosts\n}",
			files:  map[string]string{"hosts": "192.0.2.1 www.example.org\n"},
			change: func(t *testing.T, dir string) { write(t, dir, "other", "") },
		},
		{
			name:   "a pipe in a folder of zones",
			blocks: "example.org {\nBIND\ncache\nauto {\ndirectory DIR/zones\n}\n}",
			files:  map[string]string{"zones/sub/other": ""},
			change: func(t *testing.T, dir string) {
				if err := syscall.Mkfifo(filepath.Join(dir, "zones/pipe"), 0o600); err != nil {
					t.Fatal(err)
				}
			},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			t.Setenv("FINGERPRINT_TEST", dir)
			for name, text := range tc.files {
				write(t, dir, name, text)
			}
			corefile := strings.NewReplacer("DIR", dir, "BIND", "bind 127.0.0.1", " {\nBIND", ":"+reloadPort+" {\nbind 127.0.0.1").Replace(tc.blocks)
			inst := start(t, corefile)
			defer func() { stop(t, inst) }()
			plant(t)
			if reload(t, &inst, corefile) != 1 {
				t.Fatal("a reload that changes nothing lost the answer")
			}
			tc.change(t, dir)
			if kept := reload(t, &inst, corefile) == 1; kept != tc.kept {
				t.Errorf("after the change the answer is kept: %t", kept)
			}
		})
	}
}

// TestReloadWithHostName: forward looks a name up when it is set up.
func TestReloadWithHostName(t *testing.T) {
	var last atomic.Int32
	last.Store(1)
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &dns.Server{PacketConn: conn, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) {
		m := new(dns.Msg).SetReply(r)
		if r.Question[0].Qtype == dns.TypeA {
			rr, err := dns.NewRR(fmt.Sprintf("%s 60 IN A 192.0.2.%d", r.Question[0].Name, last.Load()))
			if err != nil {
				t.Error(err)
			}
			m.Answer = append(m.Answer, rr)
		}
		if err := w.WriteMsg(m); err != nil {
			t.Error(err)
		}
	})}
	go func() { _ = server.ActivateAndServe() }()
	defer func() { _ = server.Shutdown() }()
	corefile := fmt.Sprintf(".:%s {\nbind 127.0.0.1\ncache\nforward . dns.example.net {\nresolver %s\n}\n}", reloadPort, conn.LocalAddr())
	inst := start(t, corefile)
	defer func() { stop(t, inst) }()
	plant(t)
	for _, want := range []int{1, 0} {
		if n := reload(t, &inst, corefile); n != want {
			t.Errorf("%d answers after the reload, want %d", n, want)
		}
		last.Store(2)
	}
}

// TestFingerprintKnowsOptionsOfQueries: rewrite is above the cache, and the options that it
// adds to a query are not part of the key.
func TestFingerprintKnowsOptionsOfQueries(t *testing.T) {
	corefile := ".:" + reloadPort + " {\nbind 127.0.0.1\nRULE\ncache\nforward . 192.0.2.1\n}"
	for _, tc := range []struct {
		before, after string
		kept          bool
	}{
		{"rewrite edns0 local set 0xffee 0x61", "rewrite edns0 local set 0xffee 0x62", false},
		{"rewrite name a.example.org b.example.org", "rewrite name a.example.org c.example.org", true},
	} {
		inst := start(t, strings.Replace(corefile, "RULE", tc.before, 1))
		plant(t)
		if kept := reload(t, &inst, strings.Replace(corefile, "RULE", tc.after, 1)) == 1; kept != tc.kept {
			t.Errorf("%q: kept %t", tc.after, kept)
		}
		stop(t, inst)
	}
}
