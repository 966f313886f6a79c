package host

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

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

func TestSaved(t *testing.T) {
	for _, test := range []struct {
		name, page string
		status     int
		want       uint64
		says       string
		queries    uint64
	}{
		{"search paths", "coredns_notrack_entries_avoided 7\ncoredns_cache_requests_total{server=\"a\"} 40\ncoredns_cache_requests_total{server=\"b\"} 60\ncoredns_cache_search_total{server=\"a\"} 50\n", 200, 7, "", 100},
		{"two labels", "# TYPE coredns_notrack_entries_avoided gauge\ncoredns_notrack_entries_avoided{proto=\"udp\",family=\"ipv4\"} 1200\ncoredns_notrack_entries_avoided{proto=\"tcp\"} 3 1700000000\ncoredns_notrack_entries_avoided_other 7\n", 200, 1203, "", 0},
		{"no labels", "coredns_notrack_entries_avoided 1.5e+03\n", 200, 1500, "", 0},
		{"another program", "up 1\n", 200, 0, "not a Trackless", 0},
		{"broken", "coredns_notrack_entries_avoided x\n", 200, 0, "invalid syntax", 0},
		{"refused", "", 404, 0, "404", 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(test.status)
				_, _ = w.Write([]byte(test.page))
			}))
			defer server.Close()
			got, err := Saved(t.Context(), server.URL)
			if got != (Savings{Entries: test.want, Queries: test.queries, Search: test.queries / 2}) || (err == nil) != (test.says == "") || err != nil && !strings.Contains(err.Error(), test.says) {
				t.Errorf("Saved() = %+v, %v; want %d, %q", got, err, test.want, test.says)
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
