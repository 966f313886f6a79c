package cache

import (
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/plugin/cache/budget"
	"github.com/trackless-dns/trackless/plugin/cache/engine"
	"github.com/trackless-dns/trackless/plugin/cache/store"
)

// queryServer asks the running server for www.example.org over UDP.
func queryServer(t *testing.T) *dns.Msg {
	t.Helper()
	// The query may be lost with the socket of the test before, which is being closed.
	for deadline := time.Now().Add(time.Minute); ; {
		m, _, err := new(dns.Client).Exchange(question(www, nil), "127.0.0.1:"+reloadPort)
		if err == nil {
			return m
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// engineOf returns the newest engine.
func engineOf(t *testing.T) *engine.Engine {
	t.Helper()
	var newest *engine.Engine
	registry.Each(func(e *engine.Engine, _ []*Cache) { newest = e })
	if newest == nil {
		t.Fatal("no engine is open")
	}
	return newest
}

// owners returns the caches of each open engine.
func owners() (all [][]*Cache) {
	registry.Each(func(_ *engine.Engine, owners []*Cache) { all = append(all, owners) })
	return all
}

// reloadPort returns a free port of loopback: a server must get the same port again after a
// reload.
var reloadPort = func() string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	defer func() { _ = l.Close() }()
	return strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
}()

// TestReload has a row for each change of a Corefile: whether the answers
// survive it.
func TestReload(t *testing.T) {
	before := `
example.org:PORT {
	bind 127.0.0.1
	cache {
		success 5000 3600
	}
	hosts {
		192.0.2.1 www.example.org
		ttl 300
	}
}
`
	replace := func(old, replacement string) string {
		if !strings.Contains(before, old) {
			t.Fatalf("no %q in the Corefile", old)
		}
		return strings.Replace(before, old, replacement, 1)
	}
	other := "\nexample.net:PORT {\n\tbind 127.0.0.1\n\twhoami\n}\n"
	for _, tc := range []struct {
		name  string
		after string
		kept  bool
		same  bool // the engine itself is kept
	}{
		{"no change", before, true, true},
		{"comment", "# changed\n" + before, true, true},
		{"plugin below", replace("ttl 300", "ttl 301"), false, false},
		{"another plugin below", replace("}\n}\n", "}\n\twhoami\n}\n"), false, false},
		{"option of the cache", replace("3600", "60"), true, false},
		{"size of the cache", replace("success 5000 3600", "size 1Mi"), true, false},
		{"another zone on the listener", before + other, false, false},
		{"another zone elsewhere", before + strings.Replace(other, "PORT", "0", 1), true, true},
		{"another zone at another address", before + strings.Replace(other, "127.0.0.1", "127.0.0.2", 1), true, true},
		{"zone of the block", replace("example.org:PORT", "example.org:PORT www.example.org:PORT"), false, false},
		{"name no longer cached", replace("cache {", "cache a.example.org {"), false, false},
		{"positive answers disabled", replace("success 5000 3600", "disable success"), false, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inst := start(t, strings.ReplaceAll(before, "PORT", reloadPort))
			if m := queryServer(t); len(m.Answer) != 1 {
				t.Fatalf("answer %v", m)
			}
			old := engineOf(t)
			if old.Store().Len(store.Positive) != 1 {
				t.Fatalf("%d answers stored", old.Store().Len(store.Positive))
			}
			inst, err := inst.Restart(input(strings.ReplaceAll(tc.after, "PORT", reloadPort)))
			if err != nil {
				stop(t, inst)
				t.Fatal(err)
			}
			now := engineOf(t)
			n := now.Store().Len(store.Positive)
			if (now == old) != tc.same || (n == 1) != tc.kept {
				t.Errorf("same engine: %t, %d answers; want %t, kept %t", now == old, n, tc.same, tc.kept)
			}
			if !tc.same && old.Store().Len(store.Positive) != 0 {
				t.Error("the engine before the reload still holds its answers")
			}
			queryServer(t)
			stop(t, inst)
			if n := len(owners()); n != 0 {
				t.Errorf("%d engines are open after the server stopped", n)
			}
		})
	}
}

// TestReloadCapsTTL: the new options bound the lifetime of answers that survive a reload.
func TestReloadCapsTTL(t *testing.T) {
	corefile := "example.org:" + reloadPort + " {\n\tbind 127.0.0.1\n\tcache 300\n\thosts {\n\t\t192.0.2.1 www.example.org\n\t\tttl 300\n\t}\n}\n"
	inst := start(t, corefile)
	queryServer(t)
	inst, err := inst.Restart(input(strings.Replace(corefile, "cache 300", "cache 20", 1)))
	defer stop(t, inst)
	if err != nil {
		t.Fatal(err)
	}
	if m := queryServer(t); len(m.Answer) != 1 || m.Answer[0].Header().Ttl > 20 {
		t.Errorf("answer after the reload: %v", m)
	}
}

// TestFailedReload: a configuration that does not start leaves the running one unchanged and
// nothing open.
func TestFailedReload(t *testing.T) {
	corefile := "example.org:" + reloadPort + " {\n\tbind 127.0.0.1\n\tcache\n\thosts {\n\t\t192.0.2.1 www.example.org\n\t}\n}\n"
	inst := start(t, corefile)
	defer func() { stop(t, inst) }()
	queryServer(t)
	old := engineOf(t)
	// No interface has the address: the cache opens, the listener does not.
	if _, err := inst.Restart(input(strings.Replace(corefile, "127.0.0.1", "192.0.2.53", 1))); err == nil {
		t.Fatal("the restart did not fail")
	}
	if open := owners(); len(open) != 1 || engineOf(t) != old || len(open[0]) != 1 {
		t.Errorf("%d engines are open after a failed reload", len(open))
	}
	if m := queryServer(t); len(m.Answer) != 1 || old.Store().Len(store.Positive) != 1 {
		t.Error("the running server lost its answers")
	}
}

// TestTwoBlocksShareTheDefaultSize: memory does not grow with the number of
// server blocks.
func TestTwoBlocksShareTheDefaultSize(t *testing.T) {
	inst := start(t, "a.example.org {\n\tcache\n\twhoami\n}\nb.example.org {\n\tcache\n\twhoami\n}\n")
	defer stop(t, inst)
	open := owners()
	if len(open) != 2 {
		t.Fatalf("%d engines, want 2", len(open))
	}
	for _, of := range open {
		if got, want := of[0].options().Store.Bytes, budget.Default("/", 2); got != want {
			t.Errorf("budget of %d bytes, want %d", got, want)
		}
	}
}
