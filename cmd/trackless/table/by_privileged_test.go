//go:build privileged

package table

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/trackless-dns/trackless/cmd/trackless/cli"
	"github.com/trackless-dns/trackless/conntrack"
	"github.com/trackless-dns/trackless/internal/testns"
)

// aNode is a node whose table has entries of two pods: cart has six, two of them DNS, web
// four. One passes through. It returns the flags that name it.
func aNode(t *testing.T) (flags []string, create func(src, dst string)) {
	t.Helper()
	node := testns.New(t)
	c, err := conntrack.Dial(&conntrack.Config{NetNS: node.FD()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	create = func(src, dst string) {
		t.Helper()
		s, d := netip.MustParseAddrPort(src), netip.MustParseAddrPort(dst)
		e := &conntrack.Entry{Timeout: 10 * time.Minute}
		e.Original = conntrack.Tuple{Src: s.Addr(), Dst: d.Addr(), SrcPort: s.Port(), DstPort: d.Port(), Proto: conntrack.UDP}
		e.Reply = e.Original.Mirror()
		if err := c.Create(e); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 6 {
		port := 443
		if i < 2 {
			port = 53
		}
		create(fmt.Sprintf("10.244.0.10:%d", 4000+i), fmt.Sprintf("192.0.2.80:%d", port))
	}
	for i := range 3 {
		create(fmt.Sprintf("10.244.0.11:%d", 4000+i), "192.0.2.81:443")
	}
	create("198.51.100.7:4000", "10.244.0.11:80")
	create("198.51.100.7:4000", "198.51.100.8:80")

	root := t.TempDir()
	for pid, uid := range map[int]string{300: "11111111-2222-3333-4444-555555555555", 301: "11111111-2222-3333-4444-666666666666"} {
		pod := testns.New(t)
		pod.Do(func() { testns.Run(t, "ip", "addr", "add", fmt.Sprintf("10.244.0.%d/32", pid-290), "dev", "lo") })
		dir := filepath.Join(root, "proc", fmt.Sprint(pid))
		name := map[int]string{300: "cart", 301: "web"}[pid]
		if err := errors.Join(
			os.MkdirAll(filepath.Join(dir, "ns"), 0o755),
			os.Symlink(fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), pod.FD()), filepath.Join(dir, "ns/net")),
			os.WriteFile(filepath.Join(dir, "cgroup"), []byte("0::/kubepods/pod"+uid+"/aa\n"), 0o644),
			os.MkdirAll(filepath.Join(root, "var/log/pods/shop_"+name+"_"+uid), 0o755),
		); err != nil {
			t.Fatal(err)
		}
	}
	return []string{"--netns", fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), node.FD()), "--root", root, "--node", "node-1"}, create
}

// run runs the verb in this process.
func run(args ...string) (stdout, stderr string, err error) {
	var out, errs bytes.Buffer
	root := &cobra.Command{Use: "trackless", SilenceErrors: true, SilenceUsage: true}
	root.AddCommand(Command())
	root.SetArgs(append([]string{"conntrack"}, args...))
	root.SetOut(io.Writer(&out))
	root.SetErr(&errs)
	err = root.Execute()
	return out.String(), errs.String(), err
}

func TestStatsBy(t *testing.T) {
	t.Parallel()
	node, _ := aNode(t)
	for _, tc := range []struct {
		args string
		want string // name=entries/dns of each group
	}{
		{"--by pod", "shop/cart=6/2 shop/web=4/0 198.51.100.7=1/0"},
		{"--by pod --top 1", "shop/cart=6/2 (rest)=5/0"},
		{"--by namespace", "shop=10/2 (no pod)=1/0"},
		{"--by service", "(no Service)=11/2"},
		{"--by destination --dport 53", "192.0.2.80:53 udp=2/2"},
		{"--by state", "udp UNREPLIED=11/2"},
	} {
		out, errs, err := run(append(append([]string{"stats", "-o", "json"}, strings.Fields(tc.args)...), node...)...)
		if err != nil {
			t.Fatalf("%s: %v\n%s", tc.args, err, errs)
		}
		var r groupReport
		if err := json.Unmarshal([]byte(out), &r); err != nil {
			t.Fatal(err)
		}
		var got []string
		var sum uint64
		for _, g := range r.Groups {
			got = append(got, fmt.Sprintf("%s=%d/%d", g.Name, g.Entries, g.DNS))
			sum += g.Entries
		}
		if strings.Join(got, " ") != tc.want || sum != r.Total.Entries || r.Entries != 11 || r.PodsFrom != "network namespaces" {
			t.Errorf("%s: %s, want %s; %+v", tc.args, got, tc.want, r)
		}
	}
	out, errs, err := run(append([]string{"stats", "--by", "pod"}, node...)...)
	if err != nil || !strings.Contains(out, "names of pods from the network namespaces") || !strings.Contains(out, "shop/cart") || strings.Contains(out, "NEW/s") {
		t.Errorf("%v\n%s%s", err, out, errs)
	}
}

func TestListPod(t *testing.T) {
	t.Parallel()
	node, _ := aNode(t)
	for _, tc := range []struct {
		args  string
		lines int
		fails string
	}{
		{"--pod shop/cart", 6, ""},
		{"--pod web", 4, ""},
		{"--pod shop/* --dport 443", 7, ""},
		{"--pod cart,web --src 10.244.0.11", 3, ""},
		{"--pod shop/nobody", 0, "no pod of this node has that name"},
		{"--pod [", 0, "syntax error in pattern"},
	} {
		out, errs, err := run(append(append([]string{"list", "-o", "jsonl"}, strings.Fields(tc.args)...), node...)...)
		if (err != nil) != (tc.fails != "") || err != nil && !strings.Contains(err.Error(), tc.fails) {
			t.Errorf("%s: error %v, want %q\n%s", tc.args, err, tc.fails, errs)
		}
		if n := strings.Count(out, "\n"); n != tc.lines {
			t.Errorf("%s: %d entries, want %d\n%s", tc.args, n, tc.lines, out)
		}
	}
	_, _, err := run("list", "--pod", "x", "--netns", node[1], "--root", emptyRoot(t))
	if cli.ExitStatus(err) != cli.ExitCannotMeasure || !strings.Contains(err.Error(), "no names of pods are known") {
		t.Errorf("without names: %v", err)
	}
}

func emptyRoot(t *testing.T) string {
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "proc"), 0o755); err != nil {
		t.Fatal(err)
	}
	return root
}

func TestWatchPod(t *testing.T) {
	t.Parallel()
	node, create := aNode(t)
	done := make(chan string, 1)
	go func() {
		out, _, err := run(append([]string{"watch", "--pod", "cart", "--events", "new", "-c", "1", "-o", "jsonl", "--duration", "1m"}, node...)...)
		done <- fmt.Sprint(out, err)
	}()
	// The watch begins at some time: entries are made until it ends.
	for port := 5000; port < 15000; port++ {
		create(fmt.Sprintf("10.244.0.11:%d", port), "192.0.2.81:9") // web's, not shown
		create(fmt.Sprintf("10.244.0.10:%d", port), "192.0.2.80:9")
		select {
		case got := <-done:
			if !strings.Contains(got, `"src":"10.244.0.10"`) || !strings.HasSuffix(got, "<nil>") {
				t.Error(got)
			}
			return
		case <-time.After(10 * time.Millisecond):
		}
	}
	t.Error("nothing is seen")
}

func TestTopOnce(t *testing.T) {
	t.Parallel()
	node, create := aNode(t)
	type line struct {
		By, Name     string
		Entries, New uint64
		Seconds      float64
	}
	// Entries are made until some are new between the two readings.
	done := make(chan string, 1)
	go func() {
		out, _, err := run(append([]string{"top", "--once", "-o", "jsonl", "--interval", "300ms", "--top", "1"}, node...)...)
		done <- fmt.Sprint(out, err)
	}()
	var got string
	for port := 5000; got == ""; port++ {
		create(fmt.Sprintf("10.244.0.11:%d", port), "192.0.2.81:9")
		select {
		case got = <-done:
		case <-time.After(10 * time.Millisecond):
		}
	}
	var first line
	if err := json.NewDecoder(strings.NewReader(got)).Decode(&first); err != nil {
		t.Fatalf("%v\n%s", err, got)
	}
	if first.By != "pod" || first.Name != "shop/web" || first.Entries <= 6 || first.New == 0 || first.New >= first.Entries || first.Seconds < 0.3 {
		t.Errorf("%+v", first)
	}
	out, errs, err := run(append([]string{"top", "--once", "--interval", "100ms"}, node...)...)
	if err != nil || !strings.Contains(out, "NEW/s") || !strings.Contains(out, "shop/cart") {
		t.Errorf("%v\n%s%s", err, out, errs)
	}
}
