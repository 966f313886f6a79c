//go:build privileged

package probe

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/internal/testns"
)

const podUID = "11111111-2222-3333-4444-555555555555"

// aPod makes a pod with a network namespace, and returns the root below which it is found.
func aPod(t *testing.T, resolvConf string) (pod *testns.Namespace, root string) {
	t.Helper()
	pod, root = testns.New(t), t.TempDir()
	pod.Do(func() {
		testns.Run(t, "ip", "link", "set", "lo", "up")
		testns.Run(t, "ip", "addr", "add", "10.96.0.10/32", "dev", "lo")
	})
	dir := filepath.Join(root, "proc/300")
	if err := errors.Join(
		os.MkdirAll(filepath.Join(dir, "ns"), 0o755), os.MkdirAll(filepath.Join(dir, "root/etc"), 0o755),
		os.Symlink(fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), pod.FD()), filepath.Join(dir, "ns/net")),
		os.WriteFile(filepath.Join(dir, "cgroup"), []byte("0::/kubepods/pod"+podUID+"/aa\n"), 0o600),
		os.WriteFile(filepath.Join(dir, "root/etc/resolv.conf"), []byte(resolvConf), 0o600),
	); err != nil {
		t.Fatal(err)
	}
	return pod, root
}

// serve answers DNS in the pod's namespace: no query over UDP or TCP if deaf to it, no query
// of a type of that name, REFUSED for names outside of the cluster.
func serve(t *testing.T, pod *testns.Namespace, deafTo string) {
	t.Helper()
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) {
		if deafTo == w.LocalAddr().Network() || deafTo == dns.TypeToString[r.Question[0].Qtype] {
			return
		}
		m := new(dns.Msg).SetReply(r)
		switch name := r.Question[0].Name; {
		case strings.HasPrefix(name, "example.org.shop."):
			m.Rcode = dns.RcodeNameError
		case !strings.HasSuffix(name, ".cluster.local."):
			m.Rcode, m.Truncated = dns.RcodeRefused, true
		}
		_ = w.WriteMsg(m)
	})
	var servers []*dns.Server
	pod.Do(func() {
		packets, err := net.ListenPacket("udp", "10.96.0.10:53")
		if err != nil {
			t.Error(err)
			return
		}
		servers = append(servers, &dns.Server{PacketConn: packets, Handler: handler})
		if deafTo == "tcp" {
			return
		}
		listener, err := net.Listen("tcp", "10.96.0.10:53")
		if err != nil {
			t.Error(err)
			return
		}
		servers = append(servers, &dns.Server{Listener: listener, Handler: handler})
	})
	for _, s := range servers {
		started, ended := make(chan struct{}), make(chan error, 1)
		s.NotifyStartedFunc = func() { close(started) }
		go func() { ended <- s.ActivateAndServe() }()
		<-started
		t.Cleanup(func() {
			if err := errors.Join(s.Shutdown(), <-ended); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestAskFromAPod(t *testing.T) {
	t.Parallel()
	const config = "nameserver 10.96.0.10\nsearch shop.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n"
	for _, tc := range []struct {
		name, deafTo string
		// The rcodes, "" for no answer, "-" for no query.
		inside, tcp, outside, expanded string
		pairs, halves                  int
	}{
		{"a healthy server", "", "NOERROR", "NOERROR", "REFUSED", "NXDOMAIN", 10, 0},
		{"no TCP", "tcp", "NOERROR", "", "REFUSED", "NXDOMAIN", 10, 0},
		{"no UDP", "udp", "", "NOERROR", "-", "-", 0, 0},
		{"AAAA is lost", "AAAA", "NOERROR", "NOERROR", "REFUSED", "NXDOMAIN", 3, 3},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			podNS, root := aPod(t, config)
			serve(t, podNS, tc.deafTo)
			pod, err := FindPod(root)
			if err != nil || pod == nil || pod.UID != podUID {
				t.Fatalf("found %+v, %v", pod, err)
			}
			list, err := pod.Ask(t.Context(), "shop/cart", "example.org")
			if err != nil || len(list) != 1 {
				t.Fatalf("%+v, %v", list, err)
			}
			a := list[0]
			for _, answer := range []struct{ name, got, want string }{
				{"kubernetes.default.svc.cluster.local.", a.Inside.Rcode, tc.inside},
				{"the same over TCP", a.InsideTCP.Rcode, tc.tcp},
				{a.Outside.Name, a.Outside.Rcode, strings.TrimPrefix(tc.outside, "-")},
				{a.Expanded.Name, a.Expanded.Rcode, strings.TrimPrefix(tc.expanded, "-")},
			} {
				if answer.got != answer.want {
					t.Errorf("%s: %q, want %q", answer.name, answer.got, answer.want)
				}
			}
			if (a.Outside.Name == "") != (tc.outside == "-") || (a.Inside.Error == "") != (tc.inside != "") || a.Outside.Truncated != (tc.outside == "REFUSED") {
				t.Errorf("%+v", a)
			}
			if a.Pod != "shop/cart" || a.Server.String() != "10.96.0.10" || len(a.Search) != 3 || a.NDots != 5 || len(a.From) == 0 {
				t.Errorf("%+v", a)
			}
			if a.Pairs != tc.pairs || a.HalfPairs != tc.halves {
				t.Errorf("%d of %d lookups lost a half, want %d of %d", a.HalfPairs, a.Pairs, tc.halves, tc.pairs)
			}
		})
	}
}

// Pods that do not ask the DNS of the cluster are not asked from.
func TestFindPod(t *testing.T) {
	t.Parallel()
	for name, config := range map[string]string{
		"the host's servers": "nameserver 192.0.2.1\nsearch example.org\n",
		"no file":            "",
	} {
		_, root := aPod(t, config)
		if pod, err := FindPod(root); pod != nil || err != nil {
			t.Errorf("%s: %+v, %v", name, pod, err)
		}
	}
}
