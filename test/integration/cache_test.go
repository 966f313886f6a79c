//go:build privileged

package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/internal/testns"
)

// cacheListener is where the server under test listens.
const cacheListener = "127.0.0.10"

// addressUpstream answers questions for A with 192.0.2.LAST, and says that names
// below nx do not exist. It returns the count of its answers.
func addressUpstream(t *testing.T, listen string, last int) *atomic.Int32 {
	t.Helper()
	conn, err := net.ListenPacket("udp", listen)
	if err != nil {
		t.Fatal(err)
	}
	var asked atomic.Int32
	server := &dns.Server{PacketConn: conn, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) {
		asked.Add(1)
		m := new(dns.Msg).SetReply(r)
		name, section, text := r.Question[0].Name, &m.Answer, "%s 300 IN A 192.0.2.%d"
		if strings.HasPrefix(name, "nx.") {
			m.Rcode, section, text = dns.RcodeNameError, &m.Ns, "%s 300 IN SOA ns. root. %d 2 3 4 300"
		}
		rr, err := dns.NewRR(fmt.Sprintf(text, name, last))
		if err != nil {
			t.Error(err)
			return
		}
		*section = append(*section, rr)
		_ = w.WriteMsg(m) // whoever asked may have stopped
	})}
	go func() { _ = server.ActivateAndServe() }()
	t.Cleanup(func() { _ = server.Shutdown() })
	return &asked
}

// cacheServer is a server in the network namespace of its test.
type cacheServer struct {
	t       *testing.T
	dir     string
	cmd     *exec.Cmd
	log     string
	reloads int
}

func (s *cacheServer) write(name, text string) {
	s.t.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, name), []byte(text), 0o644); err != nil {
		s.t.Fatal(err)
	}
}

func startCacheServer(t *testing.T, dir, corefile string) *cacheServer {
	t.Helper()
	s := &cacheServer{t: t, dir: dir, log: filepath.Join(dir, "log")}
	s.write("Corefile", corefile)
	log, err := os.Create(s.log)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	s.cmd = exec.Command(program, "serve", "-conf", filepath.Join(dir, "Corefile"), "-control", "@trackless/control.sock")
	s.cmd.Stdout, s.cmd.Stderr = log, log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.kill)
	return s
}

func (s *cacheServer) kill() {
	if s.cmd.ProcessState == nil {
		_ = s.cmd.Process.Kill()
		_ = s.cmd.Wait()
	}
	if s.t.Failed() {
		s.t.Log(s.output())
	}
}

func (s *cacheServer) output() string {
	b, err := os.ReadFile(s.log)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// reload sends SIGUSR1 and waits until the server has done it.
func (s *cacheServer) reload() {
	s.t.Helper()
	s.reloads++
	if err := s.cmd.Process.Signal(syscall.SIGUSR1); err != nil {
		s.t.Fatal(err)
	}
	eventually(s.t, "the Corefile is loaded again", func() error {
		if n := strings.Count(s.output(), "Reloading complete"); n < s.reloads {
			return fmt.Errorf("%d of %d reloads are complete", n, s.reloads)
		}
		return nil
	})
}

// ask returns the address of a name, or the response code.
func (s *cacheServer) ask(name string) string {
	s.t.Helper()
	var got string
	eventually(s.t, name+" is answered", func() error {
		client := &dns.Client{Timeout: time.Second}
		m, _, err := client.Exchange(new(dns.Msg).SetQuestion(name, dns.TypeA), cacheListener+":53")
		if err != nil {
			return err
		}
		if got = dns.RcodeToString[m.Rcode]; len(m.Answer) == 1 {
			got = m.Answer[0].(*dns.A).A.String()
		}
		return nil
	})
	return got
}

// cacheCommand runs `trackless cache` beside the server.
func cacheCommand(t *testing.T, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	var out, complaint strings.Builder
	cmd := verb(t, append([]string{"cache"}, args...)...)
	cmd.Stdout, cmd.Stderr = &out, &complaint
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), complaint.String()
}

// cached are the addresses and response codes that the cache holds for a name,
// and where they came from.
func cached(t *testing.T, name string) (held []string) {
	t.Helper()
	status, out, complaint := cacheCommand(t, "show", name, "A", "--output", "json")
	var report struct {
		Instances []struct {
			PID     int
			Answers []struct {
				Name, Type, Kind, Source string
				ServerBlock              string `json:"server_block"`
				Answer                   []string
				TTL                      int `json:"ttl_seconds"`
			}
		}
	}
	if err := json.Unmarshal([]byte(out), &report); err != nil || status != 0 || len(report.Instances) != 1 {
		t.Fatalf("status %d, %v\n%s%s", status, err, out, complaint)
	}
	for _, a := range report.Instances[0].Answers {
		if a.Name != name || a.Type != "A" || a.TTL <= 0 || a.ServerBlock == "" {
			t.Errorf("shown: %+v", a)
		}
		what := a.Kind
		if len(a.Answer) == 1 {
			fields := strings.Fields(a.Answer[0])
			what = fields[len(fields)-1]
		}
		held = append(held, what+" from "+a.Source)
	}
	return held
}

func same(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s: %q, want %q", what, got, want)
	}
}

// Operators see what is cached and take it away; and a reload keeps what is still
// true and nothing else.
func TestCacheIsShownFlushedAndReloaded(t *testing.T) {
	t.Parallel()
	testns.Enter(t)
	first := addressUpstream(t, "127.0.0.8:53", 8)
	addressUpstream(t, "127.0.0.9:53", 9)
	dir := t.TempDir()
	files := map[string][2]string{
		"resolv.conf": {"nameserver 127.0.0.8\n", "nameserver 127.0.0.9\n"},
		"hosts":       {"192.0.2.8 www.hosts.test\n", "192.0.2.9 www.hosts.test\n"},
		// The serial number stands still, as it does where somebody forgot it.
		"zone": {"@ 300 IN SOA ns root 1 2 3 4 300\nwww 300 IN A 192.0.2.8\n", "@ 300 IN SOA ns root 1 2 3 4 300\nwww 300 IN A 192.0.2.9\n"},
	}
	corefile := strings.NewReplacer("DIR", dir, "BIND", "bind "+cacheListener).Replace(`
forward.test {
    BIND
    cache
    forward . DIR/resolv.conf
}
hosts.test {
    BIND
    cache
    hosts DIR/hosts {
        ttl 300
    }
}
zone.test {
    BIND
    cache
    file DIR/zone
}
other.test {
    BIND
    cache
    forward . 127.0.0.8
}
`)
	for name, versions := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(versions[0]), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	s := startCacheServer(t, dir, corefile)
	changing := map[string]string{"www.forward.test.": " from 127.0.0.8:53", "www.hosts.test.": " from ", "www.zone.test.": " from "}
	for name, source := range changing {
		same(t, name, s.ask(name), "192.0.2.8")
		same(t, name+" in the cache", strings.Join(cached(t, name), ", "), "192.0.2.8"+source)
	}
	same(t, "a name that does not exist", s.ask("nx.other.test."), "NXDOMAIN")
	same(t, "denial", strings.Join(cached(t, "nx.other.test."), ", "), "nxdomain from 127.0.0.8:53")
	for _, name := range []string{"www.other.test.", "a.other.test.", "a.b.other.test."} {
		s.ask(name)
	}
	asked := first.Load()

	s.reload()
	for name := range changing {
		if len(cached(t, name)) != 1 {
			t.Errorf("%s: a reload that changes nothing lost the answer", name)
		}
	}
	for name, versions := range files {
		s.write(name, versions[1])
	}
	s.reload()
	for name := range changing {
		if held := cached(t, name); len(held) != 0 {
			t.Errorf("%s: after the reload the cache holds %v", name, held)
		}
		same(t, name+" after the reload", s.ask(name), "192.0.2.9")
	}
	same(t, "source after the reload", strings.Join(cached(t, "www.forward.test."), ", "), "192.0.2.9 from 127.0.0.9:53")
	s.ask("www.other.test.")
	if n := first.Load(); n != asked {
		t.Errorf("%d queries went upstream for what the cache held", n-asked)
	}

	// What can be flushed, from the smallest on.
	for _, tc := range []struct {
		args []string
		said string
		gone []string
		left []string
	}{
		{[]string{"flush", "a.other.test"}, "removed 1 answer\n", []string{"a.other.test."}, []string{"a.b.other.test.", "www.other.test."}},
		{[]string{"flush", "--zone", "b.OTHER.test."}, "removed 1 answer\n", []string{"a.b.other.test."}, []string{"www.other.test.", "nx.other.test."}},
		{[]string{"flush"}, "removed 5 answers\n", []string{"www.other.test.", "nx.other.test.", "www.zone.test."}, nil},
		{[]string{"flush"}, "removed 0 answers\n", nil, nil},
	} {
		status, out, complaint := cacheCommand(t, tc.args...)
		if status != 0 || !strings.HasPrefix(out, tc.said) {
			t.Errorf("%v: status %d, %q %q, want %q", tc.args, status, out, complaint, tc.said)
		}
		for _, name := range tc.gone {
			if held := cached(t, name); len(held) != 0 {
				t.Errorf("%v: %s is still there: %v", tc.args, name, held)
			}
		}
		for _, name := range tc.left {
			if held := cached(t, name); len(held) != 1 {
				t.Errorf("%v: %s is not there any more", tc.args, name)
			}
		}
	}
	same(t, "after the flush", s.ask("www.other.test."), "192.0.2.8")
	if n := first.Load(); n != asked+1 {
		t.Errorf("%d queries went upstream after the flush, want 1", n-asked)
	}
	if status, out, _ := cacheCommand(t, "show", "www.other.test"); status != 0 || !strings.Contains(out, "\n  in dns://other.test.:53 on "+cacheListener+"\n") {
		t.Errorf("status %d, shown:\n%s", status, out)
	}

	// Refusals.
	refused := func(want int, words string, args ...string) {
		t.Helper()
		if status, _, complaint := cacheCommand(t, args...); status != want || !strings.Contains(complaint, words) {
			t.Errorf("%v: status %d, %q", args, status, complaint)
		}
	}
	refused(2, `"a..b" is no domain name`, "show", "a..b")
	s.write("Corefile", ". {\n    bind "+cacheListener+"\n    forward . 127.0.0.8\n}\n")
	s.reload()
	refused(1, "refused: the Corefile in force has no cache directive", "flush")
	refused(1, "refused: the Corefile in force has no cache directive", "show", "www.other.test")
	s.kill()
	refused(1, "no instance answers on this node", "flush")
	refused(1, "connection refused", "flush", "--socket", "@trackless/control.sock")
}
