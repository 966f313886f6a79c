package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/owner"
)

// fake is an instance that does what it is asked, or fails with err.
type fake struct {
	mu     sync.Mutex
	state  string
	byHand bool
	err    error
	block  chan struct{} // if set, Detach sends, waits for its context and closes it
}

var since = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func (f *fake) Status() Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	return Status{
		Version: "v1", Backend: iptables.BackendNFTables, Table: "trackless-0123", State: f.state, ByHand: f.byHand, Since: since,
		Addresses: []AddressStatus{{netip.MustParseAddr("10.96.0.10"), f.state == "attached"}},
	}
}

func (f *fake) change(state string, byHand bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err == nil {
		f.state, f.byHand = state, byHand
	}
	return f.err
}

func (f *fake) Attach(context.Context) error { return f.change("attached", false) }

func (f *fake) Detach(ctx context.Context) error {
	if f.block != nil {
		f.block <- struct{}{}
		<-ctx.Done()
		close(f.block)
		return ctx.Err()
	}
	return f.change("detached", true)
}

func (f *fake) Figures() (Figures, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return figures, f.err
}

func (f *fake) Corefile() (Corefile, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return Corefile{Path: "/etc/Corefile", Contents: ". {\n    notrack\n}\n"}, f.err
}

func (*fake) Log() []byte { return []byte("2026-01-02T03:04:05.000Z [INFO] attached\n") }

var figures = Figures{
	Classes:             []ClassFigures{{"udp", "ipv4", 12, 3400}, {"tcp", "ipv6", 5, 6}},
	EntriesAvoidedError: 1.5,
	Packets:             []PacketFigures{{"query", "ipv4", "udp", 3400}},
}

// serve listens at path until the test ends.
func serve(t *testing.T, path string, c Instance) *Server {
	t.Helper()
	s, err := Listen(path, c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestAnInstanceIsAskedAndSwitched(t *testing.T) {
	instance := &fake{state: "attached"}
	s := serve(t, filepath.Join(t.TempDir(), "control.sock"), instance)
	if s.Fallback() != nil {
		t.Errorf("it is not at its path: %v", s.Fallback())
	}
	c := NewClient(s.Addr())
	want := instance.Status()
	want.Process = Self()
	for _, tc := range []struct {
		name   string
		ask    func(context.Context) (Status, error)
		state  string
		byHand bool
	}{
		{"status", c.Status, "attached", false},
		{"detach", c.Detach, "detached", true},
		{"detach again", c.Detach, "detached", true},
		{"attach", c.Attach, "attached", false},
	} {
		got, err := tc.ask(t.Context())
		if err != nil {
			t.Fatalf("%s: %v", tc.name, err)
		}
		want.State, want.ByHand = tc.state, tc.byHand
		want.Addresses[0].Attached = tc.state == "attached"
		if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tc.name, diff)
		}
	}
	if c.PID() != os.Getpid() {
		t.Errorf("the server's pid is %d, want %d", c.PID(), os.Getpid())
	}
	if want.Process.Start == 0 || want.Process.PIDNamespace == 0 || want.Process.NetNamespace == 0 {
		t.Errorf("the process has fields of value 0: %+v", want.Process)
	}

	instance.err = errors.New("udp 10.96.0.10:53 does not answer")
	_, err := c.Attach(t.Context())
	var refused *RefusedError
	if !errors.As(err, &refused) || refused.Reason != instance.err.Error() || refused.Unknown || !strings.Contains(err.Error(), s.Addr()) {
		t.Errorf("a refusal gives %v", err)
	}
}

func TestAnInstanceShowsWhatItMeasures(t *testing.T) {
	instance := &fake{state: "attached"}
	s := serve(t, filepath.Join(t.TempDir(), "control.sock"), instance)
	c := NewClient(s.Addr())
	got, err := c.Figures(t.Context())
	if diff := cmp.Diff(figures, got); err != nil || diff != "" {
		t.Errorf("error %v, figures (-want +got):\n%s", err, diff)
	}
	corefile, err := c.Corefile(t.Context())
	if want, _ := instance.Corefile(); err != nil || corefile != want {
		t.Errorf("Corefile %+v, error %v, want %+v", corefile, err, want)
	}
	log, err := c.Log(t.Context())
	if err != nil || string(log) != string(instance.Log()) {
		t.Errorf("log %q, error %v", log, err)
	}
	instance.err = errors.New("the Corefile in use has no notrack block")
	var refused *RefusedError
	if _, err := c.Figures(t.Context()); !errors.As(err, &refused) || refused.Reason != instance.err.Error() {
		t.Errorf("an instance without figures gives %v", err)
	}
}

func TestTheRequestEndsWithTheClient(t *testing.T) {
	instance := &fake{state: "attached", block: make(chan struct{})}
	s := serve(t, filepath.Join(t.TempDir(), "control.sock"), instance)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error)
	go func() {
		_, err := NewClient(s.Addr()).Detach(ctx)
		ended <- err
	}()
	<-instance.block // Detach has begun
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want that it was cancelled", err)
	}
	select {
	case <-instance.block:
	case <-time.After(time.Minute):
		t.Error("the instance's context outlives the client by a minute")
	}
}

func TestOnlyKnownRequests(t *testing.T) {
	s := serve(t, filepath.Join(t.TempDir(), "control.sock"), &fake{state: "attached"})
	c := NewClient(s.Addr())
	for _, tc := range []struct{ method, verb string }{
		{http.MethodGet, "detach"}, {http.MethodPost, "log"}, {http.MethodPost, "corefile"}, {http.MethodGet, "attach"}, {http.MethodPost, "status"}, {http.MethodGet, "remove"},
	} {
		if _, err := c.fetch(t.Context(), tc.method, tc.verb); err == nil {
			t.Errorf("%s %s succeeds", tc.method, tc.verb)
		}
		req, err := http.NewRequestWithContext(t.Context(), tc.method, "http://trackless/v1/"+tc.verb, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := c.http.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusNotFound && resp.StatusCode != http.StatusMethodNotAllowed {
			t.Errorf("%s %s: %s", tc.method, tc.verb, resp.Status)
		}
	}
}

func TestWhereTheSocketIs(t *testing.T) {
	stale := func(t *testing.T, path string) {
		l, err := bind(path)
		if err != nil {
			t.Fatal(err)
		}
		l.Close() // which leaves the file
		if _, err := os.Lstat(path); err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct {
		name   string
		before func(t *testing.T, path string)
		want   func(path string) string
	}{
		{"free", func(*testing.T, string) {}, func(path string) string { return path }},
		{"a dead process left its socket", stale, func(path string) string { return path }},
		{"taken by a live one", func(t *testing.T, path string) { serve(t, path, &fake{}) },
			func(path string) string { return beside(path, 0) }},
		{"the name beside it is taken too", func(t *testing.T, path string) {
			serve(t, path, &fake{})
			serve(t, path, &fake{})
		}, func(path string) string { return beside(path, 1) }},
		{"the name beside it is stale", func(t *testing.T, path string) {
			serve(t, path, &fake{})
			stale(t, beside(path, 0))
		}, func(path string) string { return beside(path, 0) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "run", "control.sock")
			if err := os.Mkdir(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			tc.before(t, path)
			s := serve(t, path, &fake{state: "attached"})
			if want := tc.want(path); s.Addr() != want {
				t.Errorf("it listens on %s, want %s", s.Addr(), want)
			}
			info, err := os.Lstat(s.Addr())
			if err != nil || info.Mode() != os.ModeSocket|0o600 {
				t.Errorf("mode %v, error %v; want a socket of mode 0600", info.Mode(), err)
			}
			if _, err := NewClient(s.Addr()).Status(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestInstancesThatStartTogetherShareTheDirectory(t *testing.T) {
	path := filepath.Join(t.TempDir(), "control.sock")
	l, err := bind(path) // stale, so that all of them want to replace it
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	var wg sync.WaitGroup
	servers := make([]*Server, 8)
	for i := range servers {
		wg.Go(func() {
			s, err := Listen(path, &fake{state: "attached"})
			if err != nil {
				t.Error(err)
			}
			servers[i] = s
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	names := map[string]bool{}
	for _, s := range servers {
		names[s.Addr()] = true
		if _, err := NewClient(s.Addr()).Status(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if len(names) != len(servers) {
		t.Errorf("%d instances have %d names", len(servers), len(names))
	}
	for _, s := range servers {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), "*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestAFileThatIsNoSocketStays(t *testing.T) {
	path := filepath.Join(t.TempDir(), "control.sock")
	if err := os.WriteFile(path, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if s, err := Listen(path, &fake{}); !errors.Is(err, errNoSocket) {
		t.Errorf("%v, error %v", s, err)
	}
	if got, _ := os.ReadFile(path); string(got) != "mine" {
		t.Errorf("the file is now %q", got)
	}
}

func TestCloseLeavesTheSocketOfAnother(t *testing.T) {
	path := filepath.Join(t.TempDir(), "control.sock")
	first, err := Listen(path, &fake{state: "attached"})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	second := serve(t, path, &fake{state: "detached"})
	if err := first.Close(); err != nil {
		t.Error(err)
	}
	if got, err := NewClient(second.Addr()).Status(t.Context()); err != nil || got.State != "detached" {
		t.Errorf("the second instance: %+v, error %v", got, err)
	}
}

func TestAbstractNameWhereNoFileCanBe(t *testing.T) {
	// /proc takes no directories, not even of root: as a read-only root.
	s := serve(t, "/proc/trackless/control.sock", &fake{state: "attached"})
	if s.Fallback() == nil || !strings.Contains(s.Fallback().Error(), "/proc/trackless") {
		t.Errorf("the reason is %v", s.Fallback())
	}
	if !strings.HasPrefix(s.Addr(), "@trackless/control") {
		t.Errorf("it listens on %s", s.Addr())
	}
	second := serve(t, "/proc/trackless/control.sock", &fake{state: "attached"})
	found := sockets(t.TempDir(), nil)
	for _, want := range []*Server{s, second} {
		if !slices.Contains(found, want.Addr()) {
			t.Errorf("%s is not among those found: %v", want.Addr(), found)
		}
		if _, err := NewClient(want.Addr()).Status(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

func TestPathTooLong(t *testing.T) {
	path := "/" + strings.Repeat("a", 105) + "/control.sock"
	if _, err := Listen(path, &fake{}); !errors.Is(err, errPathTooLong) {
		t.Errorf("error %v", err)
	}
}

func TestSocketsOfAProcessAreFoundWhereverTheyAre(t *testing.T) {
	s := serve(t, filepath.Join(t.TempDir(), "elsewhere.ctl"), &fake{state: "attached"})
	if got := sockets(t.TempDir(), nil); slices.Contains(got, s.Addr()) {
		t.Fatalf("found without the pid: %v", got)
	}
	if got := sockets(t.TempDir(), []int{os.Getpid()}); !slices.Contains(got, s.Addr()) {
		t.Errorf("%s is not among %v", s.Addr(), got)
	}
	mark, err := net.Listen("unix", owner.ProgramMark+strconv.Itoa(os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	defer mark.Close()
	if got := sockets(t.TempDir(), []int{os.Getpid()}); slices.Contains(got, mark.Addr().String()) {
		t.Errorf("sockets %q: %s marks a program, and nobody answers there", got, mark.Addr())
	}
	if got := sockets(filepath.Dir(s.Addr()), []int{1 << 30}); slices.Contains(got, s.Addr()) {
		t.Errorf("a name without .sock is found in the directory: %v", got)
	}
}

// askVar makes the test binary a client that asks the instance at the socket to
// detach.
const askVar = "TRACKLESS_CONTROL_ASK"

// TestPeerThatHasEnded: a process that has ended is not trusted, since another may have
// its id.
func TestPeerThatHasEnded(t *testing.T) {
	l, err := bind("@trackless-test/" + t.Name() + time.Now().String())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), askVar+"="+l.Addr().String())
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if p := peerOf(conn); p.trusted() != nil || p.pid != cmd.Process.Pid {
		t.Errorf("while it lives: %+v", p)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // killed
	if p := peerOf(conn); p.trusted() == nil {
		t.Error("it is trusted although it has ended")
	}
}

// helperVar makes the test binary an instance that listens at the path.
const helperVar = "TRACKLESS_CONTROL_HELPER"

func TestMain(m *testing.M) {
	if socket := os.Getenv(askVar); socket != "" {
		// Our own client would check the instance first.
		client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		}}}
		resp, err := client.Post("http://trackless/v1/detach", "", nil)
		if err != nil {
			panic(err)
		}
		_, _ = io.Copy(os.Stdout, resp.Body)
		_ = resp.Body.Close()
		os.Exit(0)
	}
	path := os.Getenv(helperVar)
	if path == "" {
		os.Exit(m.Run())
	}
	s, err := Listen(path, &fake{state: "attached"})
	if err != nil {
		panic(err)
	}
	fmt.Println(s.Addr())
	// The parent holds the other end until it is done.
	_, _ = io.Copy(io.Discard, os.Stdin)
	os.Exit(0)
}
