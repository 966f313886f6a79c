package host

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/trackless-dns/trackless/conntrack"
	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/node/advice"
)

// plant writes files below a new root.
func plant(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, content := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestKernelLog(t *testing.T) {
	const full = "4,1234,100000000,-;nf_conntrack: nf_conntrack: table full, dropping packet\n"
	for _, test := range []struct {
		name string
		log  string
		want advice.KernelLog
	}{
		{"empty", "", advice.KernelLog{}},
		{"nothing about it", "6,1,1,-;Linux version 6.18\n SUBSYSTEM=x\n", advice.KernelLog{}},
		{"somebody talks about it", "6,1,1,-;curl: table full, dropping packet\n", advice.KernelLog{}},
		{"twice", full + "6,2,150000000,-;eth0: up\n" + strings.Replace(full, ",100000000,", ",170000000,", 1), advice.KernelLog{TableFull: 2, LastAgo: 30 * time.Second}},
		{"broken lines", "nonsense\n4,x;y\n4,1,z,-;nf_conntrack: table full, dropping packet\n" + full, advice.KernelLog{TableFull: 1, LastAgo: 100 * time.Second}},
	} {
		t.Run(test.name, func(t *testing.T) {
			log, err := KernelLog(plant(t, map[string]string{"dev/kmsg": test.log, "proc/uptime": "200.00 300.00\n"}))
			if err != nil || *log != test.want {
				t.Errorf("%+v, %v; want %+v", log, err, test.want)
			}
		})
	}
	if _, err := KernelLog(plant(t, map[string]string{"proc/uptime": "1 1\n"})); err == nil || !strings.Contains(err.Error(), "dmesg_restrict") {
		t.Errorf("unreadable log: %v", err)
	}
}

func TestListeners(t *testing.T) {
	t.Parallel()
	ns := testns.New(t)
	ns.Do(func() {
		for _, args := range []string{"addr add 169.254.20.10/32 dev lo", "addr add fd00::a/128 dev lo nodad"} {
			if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
				t.Fatalf("ip %s: %v\n%s", args, err, out)
			}
		}
		for _, addr := range []string{"169.254.20.10:53", "[fd00::a]:53", "127.0.0.1:53", "169.254.20.10:5353", "[::1]:53"} {
			c, err := net.ListenPacket("udp", addr)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = c.Close() })
		}
		got, err := Listeners("/proc/thread-self")
		want := []netip.Addr{netip.MustParseAddr("169.254.20.10"), netip.MustParseAddr("fd00::a")}
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("Listeners() = %v, %v; want %v", got, err, want)
		}
	})
}

// A socket of our own is none of others'.
func TestOtherListeners(t *testing.T) {
	t.Parallel()
	ns := testns.New(t)
	ns.Do(func() {
		if out, err := exec.Command("ip", "addr", "add", "169.254.20.10/32", "dev", "lo").CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		c, err := net.ListenPacket("udp4", "169.254.20.10:53")
		if err != nil {
			t.Fatal(err)
		}
		if got, err := OtherListeners("/proc/thread-self"); len(got) > 0 || err != nil {
			t.Errorf("our own: %v, %v", got, err)
		}
		f, err := c.(*net.UDPConn).File()
		if err != nil {
			t.Fatal(err)
		}
		other := exec.Command("sleep", "60") // has what it inherits
		other.ExtraFiles = []*os.File{f}
		if err := errors.Join(other.Start(), f.Close(), c.Close()); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = other.Process.Kill(); _ = other.Wait() }()
		want := []netip.Addr{netip.MustParseAddr("169.254.20.10")}
		if got, err := OtherListeners("/proc/thread-self"); err != nil || !slices.Equal(got, want) {
			t.Errorf("another process's: %v, %v; want %v", got, err, want)
		}
	})
}

// One socket for all addresses is one at each of those that the node has for a cache.
func TestListenersEverywhere(t *testing.T) {
	t.Parallel()
	held := []netip.Addr{netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("fd00::b")}
	for _, test := range []struct{ network, listen, want string }{
		{"udp4", "0.0.0.0:53", "[10.96.0.10]"},
		{"udp", "[::]:53", "[10.96.0.10 fd00::b]"},
		{"udp", "[::]:5353", "[]"},
	} {
		var got []netip.Addr
		var err error
		testns.New(t).Do(func() {
			var c net.PacketConn
			if c, err = net.ListenPacket(test.network, test.listen); err == nil {
				got, err = Listeners("/proc/thread-self", held...)
				_ = c.Close()
			}
		})
		if err != nil || fmt.Sprint(got) != test.want {
			t.Errorf("%s: %v, %v; want %s", test.listen, got, err, test.want)
		}
	}
}

func TestTracked(t *testing.T) {
	t.Parallel()
	ns := testns.New(t)
	ns.Do(func() {
		c, err := conntrack.Dial(nil)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		for _, step := range []struct {
			rules string
			want  bool
		}{
			{"", false}, // no rule needs connection tracking
			{"add table inet z { chain c { type filter hook output priority -310; ct zone set 9; }; }", true},
			{"delete table inet z", false},
			{"add table inet t { chain c { type filter hook input priority 0; ct state new accept; }; }", true},
			{"add table inet u { chain c { type filter hook output priority -300; oif lo notrack; }; }", false},
		} {
			if step.rules != "" {
				if out, err := exec.Command("nft", step.rules).CombinedOutput(); err != nil {
					t.Fatalf("nft: %v\n%s", err, out)
				}
			}
			got, err := Tracked(c)
			if err != nil || got != step.want {
				t.Errorf("Tracked() = %t, %v after %q, want %t", got, err, step.rules, step.want)
			}
		}
		if n, _, err := c.Count(); err != nil || n != 0 {
			t.Errorf("%d entries left behind, %v", n, err)
		}
	})
}

func TestAvoided(t *testing.T) {
	for _, test := range []struct {
		name, page string
		status     int
		want       uint64
		says       string
	}{
		{"two labels", "# TYPE coredns_notrack_entries_avoided gauge\ncoredns_notrack_entries_avoided{proto=\"udp\",family=\"ipv4\"} 1200\ncoredns_notrack_entries_avoided{proto=\"tcp\"} 3 1700000000\ncoredns_notrack_entries_avoided_other 7\n", 200, 1203, ""},
		{"no labels", "coredns_notrack_entries_avoided 1.5e+03\n", 200, 1500, ""},
		{"another program", "up 1\n", 200, 0, "not a Trackless"},
		{"broken", "coredns_notrack_entries_avoided x\n", 200, 0, "invalid syntax"},
		{"refused", "", 404, 0, "404"},
	} {
		t.Run(test.name, func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(test.status)
				_, _ = w.Write([]byte(test.page))
			}))
			defer server.Close()
			got, err := Avoided(t.Context(), server.URL)
			if got != test.want || (err == nil) != (test.says == "") || err != nil && !strings.Contains(err.Error(), test.says) {
				t.Errorf("Avoided() = %d, %v; want %d, %q", got, err, test.want, test.says)
			}
		})
	}
}

func TestDatapath(t *testing.T) {
	for _, test := range []struct {
		name  string
		links []string
		files map[string]string
		want  advice.Datapath
	}{
		{"kube-proxy and bridges", []string{"lo", "eth0", "cni0", "cali123"}, nil, advice.Datapath{}},
		{"Cilium", []string{"cilium_host"}, nil, advice.Datapath{KubeProxyReplacement: true}},
		{"Cilium's Services", nil, map[string]string{"sys/fs/bpf/tc/globals/cilium_lb4_services_v2": ""}, advice.Datapath{KubeProxyReplacement: true}},
		{"Cilium's sockets", nil, map[string]string{"sys/fs/bpf/cilium/socketlb/links/cgroup/cil_sock4_connect": ""}, advice.Datapath{SocketLB: true}},
		{"Calico eBPF", []string{"bpfin.cali"}, nil, advice.Datapath{CalicoEBPF: true}},
		{"Calico's maps", nil, map[string]string{"sys/fs/bpf/tc/globals/cali_v4_nat_fe3": ""}, advice.Datapath{CalicoEBPF: true}},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := Datapath(plant(t, test.files), test.links)
			if got.KubeProxyReplacement != test.want.KubeProxyReplacement || got.SocketLB != test.want.SocketLB || got.CalicoEBPF != test.want.CalicoEBPF {
				t.Errorf("%+v, want %+v", got, test.want)
			}
			if something := got.KubeProxyReplacement || got.SocketLB || got.CalicoEBPF; something != (len(got.Evidence) > 0) {
				t.Errorf("evidence %v", got.Evidence)
			}
		})
	}
}

func TestMemTotal(t *testing.T) {
	root := plant(t, map[string]string{"proc/meminfo": "MemTotal:       24684432 kB\nMemFree:        1 kB\n"})
	if n, err := MemTotal(root); err != nil || n != 24684432<<10 {
		t.Errorf("MemTotal() = %d, %v", n, err)
	}
	if _, err := MemTotal(t.TempDir()); err == nil {
		t.Error("no meminfo, no error")
	}
}
