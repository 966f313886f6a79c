//go:build privileged

// Package resolvers looks names up with the resolvers that pods have, through the real binary: with
// the directive searchpath a lookup is two queries, and finds the same addresses as without.
package resolvers

import (
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/lab"
)

func TestMain(m *testing.M) { testns.Main(m) }

// cutOnly and onePass are the directives of the cluster's server block.
const (
	cutOnly = `    cache {
        denial 9984 5
        nxdomain learn cluster.local
    }`
	onePass = "    searchpath cluster.local corp.test\n" + cutOnly
)

// resolver is a resolver library.
type resolver struct {
	name  string
	needs []string // programs and files
	// build returns the command that looks up the names that follow.
	build   func(t *testing.T, dir string) []string
	options string // of resolv.conf
}

var resolvers = []resolver{
	{name: "glibc", needs: []string{"cc"}, build: compiled("cc", "testdata/libc.c")},
	{name: "glibc, one query at a time", needs: []string{"cc"}, build: compiled("cc", "testdata/libc.c"), options: "single-request"},
	{name: "musl", needs: []string{"musl-gcc"}, build: compiled("musl-gcc", "-static", "testdata/libc.c")},
	{name: "c-ares", needs: []string{"cc", "/usr/include/ares.h"}, build: compiled("cc", "testdata/cares.c", "-lcares")},
	{name: "Go", build: func(t *testing.T, dir string) []string {
		program := filepath.Join(dir, "lookup")
		output(t, exec.Command("go", "build", "-o", program, "testdata/golang/main.go"))
		return []string{program}
	}},
	{name: "Netty", needs: []string{"javac", "/usr/share/java/netty-resolver-dns.jar"}, build: func(t *testing.T, dir string) []string {
		output(t, exec.Command("javac", "-cp", netty, "-d", dir, "testdata/Netty.java"))
		return []string{"java", "-Xshare:auto", "-XX:TieredStopAtLevel=1", "-cp", netty + ":" + dir, "Netty"}
	}},
}

// netty is the class path of Netty, as Debian's package has it.
var netty = func() string {
	var jars []string
	for _, part := range []string{"resolver-dns", "resolver", "buffer", "codec", "codec-dns", "common", "handler", "transport"} {
		jars = append(jars, "/usr/share/java/netty-"+part+".jar")
	}
	return strings.Join(jars, ":")
}()

func compiled(compiler string, arguments ...string) func(*testing.T, string) []string {
	return func(t *testing.T, dir string) []string {
		program := filepath.Join(dir, "lookup")
		output(t, exec.Command(compiler, append([]string{"-Wall", "-Werror", "-o", program}, arguments...)...))
		return []string{program}
	}
}

func output(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v\n%s", cmd.Args, err, out)
	}
	return string(out)
}

func (r resolver) require(t *testing.T) {
	t.Helper()
	for _, need := range append(r.needs, "unshare") {
		if !strings.HasPrefix(need, "/") {
			testns.Program(t, need)
		} else if _, err := os.Stat(need); err != nil {
			testns.Skip(t, "the file %s", need)
		}
	}
}

// lookUp runs the resolver in a pod of the namespace default, and returns its results by name.
func (r resolver) lookUp(t *testing.T, ns *lab.Namespace, nameserver, dir string, command, names []string) map[string][]string {
	t.Helper()
	for file, text := range map[string]string{
		"resolv.conf":   "search default.svc.cluster.local svc.cluster.local cluster.local corp.test\nnameserver " + nameserver + "\noptions ndots:5 " + r.options + "\n",
		"nsswitch.conf": "hosts: dns\n",
		"hosts":         "",
	} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const script = `for f in resolv.conf nsswitch.conf hosts; do mount --bind "$0/$f" "$(readlink -f /etc/$f)"; done; exec "$@"`
	cmd := exec.Command("unshare", append(append([]string{"--mount", "sh", "-ec", script, dir}, command...), names...)...)
	var text string
	if err := ns.Do(func() error {
		out, err := cmd.Output()
		text = string(out)
		return err
	}); err != nil {
		t.Fatalf("%v: %v\n%s", cmd.Args, err, text)
	}
	found := make(map[string][]string)
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		for i, text := range fields {
			if a, err := netip.ParseAddr(text); err == nil {
				fields[i] = a.String() // Java writes no "::"
			}
		}
		slices.Sort(fields[1:])
		found[fields[0]] = slices.Compact(fields[1:])
	}
	return found
}

// queries is how many queries a client sends for a lookup.
type queries struct{ today, onePass int }

// lookups are names with their addresses. Netty sends more queries than others, with any server: one
// for CNAME after each denial, and two for the target of an alias, whose addresses it has.
var lookups = []struct {
	name   string
	want   []string
	others queries
	netty  queries
}{
	{"both.example.com", []string{"192.0.2.1", "2001:db8::1"}, queries{10, 2}, queries{14, 4}},
	{"four.example.com", []string{"192.0.2.4"}, queries{10, 2}, queries{14, 4}},
	{"six.example.com", []string{"2001:db8::6"}, queries{10, 2}, queries{14, 4}},
	{"alias.example.com", []string{"192.0.2.11", "2001:db8::11"}, queries{10, 2}, queries{14, 2}},
	{"alias4.example.com", []string{"192.0.2.14"}, queries{10, 2}, queries{14, 2}},
	{"none.example.com", []string{"none"}, queries{10, 10}, queries{15, 15}},
	{"host.floor", []string{"192.0.2.31"}, queries{8, 8}, queries{11, 11}},
	{"web", []string{"10.96.0.7"}, queries{2, 2}, queries{2, 2}},
	{"shop.team", []string{"10.96.0.8", "fd00:96::8"}, queries{4, 4}, queries{5, 5}},
	{"cart.default.svc", []string{"10.96.0.10"}, queries{6, 6}, queries{8, 8}},
	{"outside", []string{"192.0.2.21", "2001:db8::21"}, queries{2, 2}, queries{2, 2}},
	{"zero.db", []string{"10.244.0.30"}, queries{2, 2}, queries{2, 2}},
	{"absolute.example.com.", []string{"192.0.2.3"}, queries{2, 2}, queries{2, 2}},
}

func TestResolvers(t *testing.T) {
	for _, r := range resolvers {
		t.Run(r.name, func(t *testing.T) {
			t.Parallel()
			r.require(t)
			dir := t.TempDir()
			command := r.build(t, dir)
			var names []string
			for _, l := range lookups {
				names = append(names, l.name)
			}
			for mode, directives := range map[string]string{"today": cutOnly, "one pass": onePass} {
				c := newCluster(t, directives)
				found := r.lookUp(t, c.Namespace, "127.0.0.1", dir, command, names)
				for _, l := range lookups {
					counts := l.others
					if r.name == "Netty" {
						counts = l.netty
					}
					queries := counts.today
					if mode == "one pass" {
						queries = counts.onePass
					}
					if asked := c.asked(l.name); !slices.Equal(found[l.name], l.want) || len(asked) != queries {
						t.Errorf("%s: %s is %q, want %q; %d queries, want %d:\n%s", mode, l.name, found[l.name], l.want, len(asked), queries, strings.Join(asked, "\n"))
					}
				}
			}
		})
	}
}

// TestRewrite: a name of the walk that rewrite makes another one of is that one, also where
// searchpath asks for it.
func TestRewrite(t *testing.T) {
	t.Parallel()
	const rule = "    rewrite name exact db.floor.svc.cluster.local web.default.svc.cluster.local\n"
	c := newCluster(t, rule+onePass)
	for _, tc := range []struct {
		name, base string
		want       int // RCODE
	}{
		{"a name of the walk is rewritten", "db.floor", dns.RcodeNameError},
		{"none is", "both.example.com", dns.RcodeSuccess},
	} {
		m, err := c.Query(t.Context(), lab.UDP, netip.MustParseAddr(listener), new(dns.Msg).SetQuestion(tc.base+".default.svc.cluster.local.", dns.TypeA))
		if err != nil || m.Rcode != tc.want {
			t.Errorf("%s: %v, %v", tc.name, m, err)
		}
	}
}
