//go:build privileged

package format_test

import (
	"bufio"
	"bytes"
	"net"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/trackless-dns/trackless/conntrack"
	"github.com/trackless-dns/trackless/conntrack/format"
	"github.com/trackless-dns/trackless/internal/testns"
)

// withConntrack returns a namespace and a connection to its table, where there is a
// conntrack(8) to compare with.
func withConntrack(t *testing.T) (*testns.Namespace, *conntrack.Conn) {
	t.Helper()
	if _, err := exec.LookPath("conntrack"); err != nil {
		testns.Skip(t, "no conntrack(8) to compare with: %v", err)
	}
	ns := testns.New(t)
	c, err := conntrack.Dial(&conntrack.Config{NetNS: ns.FD()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return ns, c
}

// The reference is conntrack(8) itself, on the same entries of the same
// namespace. Only what passes while one looks after the other may differ:
// timeouts and ages by a second.
func TestConntrackFormatEqualsConntrackL(t *testing.T) {
	t.Parallel()
	ns, c := withConntrack(t)

	// Labels are kept only while a rule uses some.
	ns.Do(func() {
		if out, err := exec.Command("nft", "add table inet l { chain c { ct label 1 accept; }; }").CombinedOutput(); err != nil {
			t.Fatalf("nft: %v\n%s", err, out)
		}
	})
	want := zoo()
	for _, e := range want {
		if err := c.Create(e); err != nil {
			t.Fatal(err)
		}
	}
	made := realTraffic(t, ns)

	theirs := make([]string, 0, len(want))
	for _, family := range []string{"ipv4", "ipv6"} {
		var out []byte
		var err error
		ns.Do(func() {
			cmd := exec.Command("conntrack", "-L", "-f", family)
			out, err = cmd.Output()
		})
		if err != nil {
			t.Fatal(err)
		}
		theirs = append(theirs, splitLines(string(out))...)
	}

	var b bytes.Buffer
	w, err := format.New("conntrack", &b)
	if err != nil {
		t.Fatal(err)
	}
	labelled := 0
	if err := c.Dump(conntrack.Filter{}, func(e *conntrack.Entry) error {
		if e.Labels == [16]byte{1, 2, 3} {
			labelled++
		}
		return w.Entry(e)
	}); err != nil {
		t.Fatal(err)
	}
	if labelled != 1 {
		t.Errorf("%d entries have the labels that one was made with", labelled)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	ours := splitLines(b.String())

	if len(theirs) < len(want)+made {
		t.Errorf("conntrack -L shows %d entries, %d were created and %d made by traffic", len(theirs), len(want), made)
	}
	compareLines(t, ours, theirs)

	all := strings.Join(ours, "\n")
	for _, must := range []string{
		"[UNREPLIED]", "[ASSURED]", "zone=9", "zone-orig=4", "zone-reply=5", "mark=99", "helper=ftp",
		"packets=", "delta-time=", "srckey=0x", "icmpv6 ", "sctp ", "udplite ", "unknown ", "type=8", "src=::1.2.3.4",
	} {
		if !strings.Contains(all, must) {
			t.Errorf("no entry with %q was compared:\n%s", must, all)
		}
	}
}

// Events are compared with conntrack -E, which receives the same messages.
func TestConntrackFormatEqualsConntrackE(t *testing.T) {
	t.Parallel()
	ns, c := withConntrack(t)
	l, err := conntrack.Listen(&conntrack.Config{NetNS: ns.FD()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })

	// Nobody tells it to end where this process is killed.
	reference := exec.Command("timeout", "600", "stdbuf", "-oL", "conntrack", "-E")
	pipe, err := reference.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	ns.Do(func() { err = reference.Start() })
	if err != nil {
		testns.Skip(t, "conntrack -E: %v", err)
	}
	t.Cleanup(func() {
		_ = reference.Process.Kill()
		_ = reference.Wait()
	})
	theirs := make(chan string, 1000)
	go func() {
		defer close(theirs)
		for lines := bufio.NewScanner(pipe); lines.Scan(); {
			theirs <- lines.Text()
		}
	}()

	// conntrack says nowhere that it listens; it does when it shows a mark.
	mark := func(port uint16) {
		e := zoo()[0]
		e.Original.SrcPort = port
		e.Reply = e.Original.Mirror()
		if err := c.Create(e); err != nil {
			t.Fatal(err)
		}
	}
	deadline := time.After(time.Minute)
	port, listening := uint16(1), false
	for !listening {
		mark(port)
		port++
		select {
		case <-theirs:
			listening = true
		case <-time.After(50 * time.Millisecond):
		case <-deadline:
			t.Fatal("conntrack -E shows nothing")
		}
	}
	const last = 59999
	mark(60000)
	for _, e := range zoo() {
		if err := c.Create(e); err != nil {
			t.Fatal(err)
		}
	}
	realTraffic(t, ns)
	if err := c.Dump(conntrack.Filter{}, c.Delete); err != nil {
		t.Fatal(err)
	}
	mark(last)

	// What lies between the two last marks must be the same.
	between := func(next func() (string, bool)) []string {
		var lines []string
		started := false
		for {
			line, ok := next()
			switch {
			case !ok:
				t.Fatalf("the events end after %d", len(lines))
			case strings.Contains(line, "sport=60000 ") && strings.Contains(line, "[NEW]"):
				started = true
			case strings.Contains(line, "sport=59999 "):
				return lines
			case started:
				lines = append(lines, program.ReplaceAllString(line, ""))
			}
		}
	}
	var b bytes.Buffer
	w, err := format.New("conntrack", &b)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	ours := between(func() (string, bool) {
		for {
			if line, err := b.ReadString('\n'); err == nil {
				return strings.TrimSuffix(line, "\n"), true
			}
			if err := l.Receive(w.Event); err != nil {
				t.Error(err)
				return "", false
			}
			if err := w.Flush(); err != nil {
				t.Fatal(err)
			}
		}
	})
	reported := between(func() (string, bool) {
		select {
		case line, ok := <-theirs:
			return line, ok
		case <-deadline:
			return "", false
		}
	})
	compareLines(t, ours, reported)
	all := strings.Join(ours, "\n")
	for _, must := range []string{"[NEW]", "[UPDATE]", "[DESTROY]", "[USERSPACE] portid=", "ESTABLISHED", "packets="} {
		if !strings.Contains(all, must) {
			t.Errorf("no event with %q was compared", must)
		}
	}
}

// conntrack finds programs by their sockets too, we by their process ID only.
var program = regexp.MustCompile(` progname=\S+`)

var moving = regexp.MustCompile(`^((?: *\[[A-Z]+\] )?\S+ +\d+ )(\d+)( )|delta-time=(\d+)`)

// compareLines compares two sets of lines whose moving numbers may be a second apart.
func compareLines(t *testing.T, ours, theirs []string) {
	t.Helper()
	type line struct {
		text    string
		numbers []int
	}
	parse := func(lines []string) []line {
		parsed := make([]line, 0, len(lines))
		for _, l := range lines {
			var numbers []int
			text := moving.ReplaceAllStringFunc(l, func(m string) string {
				parts := moving.FindStringSubmatch(m)
				n, _ := strconv.Atoi(parts[2] + parts[4])
				numbers = append(numbers, n)
				return parts[1] + "N" + parts[3]
			})
			parsed = append(parsed, line{text, numbers})
		}
		slices.SortFunc(parsed, func(a, b line) int {
			if c := strings.Compare(a.text, b.text); c != 0 {
				return c
			}
			return slices.Compare(a.numbers, b.numbers)
		})
		return parsed
	}
	a, b := parse(ours), parse(theirs)
	if len(a) != len(b) {
		t.Errorf("we show %d entries, conntrack -L %d", len(a), len(b))
	}
	for i := range min(len(a), len(b)) {
		if a[i].text != b[i].text {
			t.Errorf("ours   %s\ntheirs %s", a[i].text, b[i].text)
			continue
		}
		for j := range a[i].numbers {
			if d := a[i].numbers[j] - b[i].numbers[j]; d < -1 || d > 1 {
				t.Errorf("%s: %d, theirs %d", a[i].text, a[i].numbers[j], b[i].numbers[j])
			}
		}
	}
}

func splitLines(s string) []string {
	return strings.Split(strings.TrimSuffix(s, "\n"), "\n")
}

// realTraffic makes entries that only packets make, with counters and
// timestamps, and returns how many at least.
func realTraffic(t *testing.T, ns *testns.Namespace) int {
	t.Helper()
	ns.Do(func() {
		for name, value := range map[string]string{"nf_conntrack_acct": "1", "nf_conntrack_timestamp": "1"} {
			if err := os.WriteFile("/proc/sys/net/netfilter/"+name, []byte(value), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		rules := exec.Command("nft", "add table inet t { chain c { type filter hook prerouting priority 0; ct state new accept; }; }")
		if out, err := rules.CombinedOutput(); err != nil {
			t.Fatalf("nft: %v\n%s", err, out)
		}
		for _, network := range []string{"127.0.0.1", "::1"} {
			conn, err := net.Dial("udp", net.JoinHostPort(network, "9"))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := conn.Write([]byte("discard")); err != nil {
				t.Fatal(err)
			}
			_ = conn.Close()
			l, err := net.Listen("tcp", net.JoinHostPort(network, "0"))
			if err != nil {
				t.Fatal(err)
			}
			client, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = client.Close(); _ = l.Close() })
		}
	})
	return 4
}
