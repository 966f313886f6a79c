package host

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/trackless-dns/trackless/node/advice"
)

const kubeProxyConfig = `apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: iptables
conntrack:
  maxPerCore: 0
  min: 131072
  tcpBeLiberal: true
  tcpCloseWaitTimeout: 1h0m0s
  tcpEstablishedTimeout: 2h30m0s
  udpStreamTimeout: 0s
  udpTimeout: null
clusterCIDR: 10.244.0.0/16
`

func cmdline(args ...string) string { return strings.Join(args, "\x00") + "\x00" }

func TestKubeProxies(t *testing.T) {
	number := func(n int64) *int64 { return &n }
	duration := func(d time.Duration) *time.Duration { return &d }
	yes, no := true, false
	standalone := func(k advice.KubeProxy) []advice.KubeProxy {
		k.Distribution = advice.Standalone
		return []advice.KubeProxy{k}
	}
	for _, test := range []struct {
		name  string
		files map[string]string
		want  []advice.KubeProxy
		says  string
	}{
		{"none", map[string]string{"proc/1/comm": "systemd\n"}, nil, ""},
		{"configuration file", map[string]string{
			"proc/7/comm":    "kube-proxy\n",
			"proc/7/cmdline": cmdline("/usr/local/bin/kube-proxy", "--config=/var/lib/kube-proxy/config.conf", "--hostname-override=n1", "--conntrack-min=9"),
			"proc/7/root/var/lib/kube-proxy/config.conf": kubeProxyConfig,
		}, standalone(advice.KubeProxy{
			Path: "/var/lib/kube-proxy/config.conf", MaxPerCore: number(0), Min: number(131072), TCPBeLiberal: &yes,
			TCPCloseWaitTimeout: duration(time.Hour), TCPEstablishedTimeout: duration(150 * time.Minute), UDPStreamTimeout: duration(0),
		}), ""},
		{"flags", map[string]string{
			"proc/7/comm": "kube-proxy\n",
			"proc/7/cmdline": cmdline("kube-proxy", "--conntrack-max-per-core", "65536", "--conntrack-tcp-timeout-established=30m",
				"--conntrack-tcp-be-liberal", "--conntrack_min=7", "--conntrack-udp-timeout=1s", "--conntrack-udp-timeout=2s"),
			"proc/7/status": "Name:\tkube-proxy\nCpus_allowed:\t5\nCpus_allowed_list:\t0,2-3\n",
		}, standalone(advice.KubeProxy{
			Path: "its command line", OwnCPUs: 3, MaxPerCore: number(65536), Min: number(7), TCPEstablishedTimeout: duration(30 * time.Minute),
			UDPTimeout: duration(2 * time.Second), TCPBeLiberal: &yes,
		}), ""},
		{"T is true", map[string]string{"proc/7/comm": "kube-proxy\n", "proc/7/cmdline": cmdline("kube-proxy", "--conntrack-tcp-be-liberal=T")},
			standalone(advice.KubeProxy{Path: "its command line", TCPBeLiberal: &yes}), ""},
		{"the last switch counts", map[string]string{"proc/7/comm": "kube-proxy\n", "proc/7/cmdline": cmdline("kube-proxy", "--conntrack-tcp-be-liberal", "--conntrack-tcp-be-liberal=0")},
			standalone(advice.KubeProxy{Path: "its command line", TCPBeLiberal: &no}), ""},
		{"no boolean", map[string]string{"proc/7/comm": "kube-proxy\n", "proc/7/cmdline": cmdline("kube-proxy", "--conntrack-tcp-be-liberal=yes")},
			standalone(advice.KubeProxy{Path: "its command line"}), "--conntrack-tcp-be-liberal=yes"},
		{"no file", map[string]string{"proc/7/comm": "kube-proxy\n", "proc/7/cmdline": cmdline("kube-proxy", "--config", "/config"), "proc/7/root/x": ""},
			standalone(advice.KubeProxy{}), "no such file"},
		{"another kind", map[string]string{"proc/7/comm": "kube-proxy\n", "proc/7/cmdline": cmdline("kube-proxy", "--config", "/config"), "proc/7/root/config": "kind: Pod\n"},
			standalone(advice.KubeProxy{}), "not KubeProxyConfiguration"},
		{"no YAML", map[string]string{"proc/7/comm": "kube-proxy\n", "proc/7/cmdline": cmdline("kube-proxy", "--config", "/config"), "proc/7/root/config": "\t{"},
			standalone(advice.KubeProxy{}), "yaml"},
		{"k3s by its command line", map[string]string{
			"proc/7/comm": "k3s-server\n", "proc/7/cmdline": cmdline("/usr/local/bin/k3s", "server", "--kube-proxy-arg=conntrack-tcp-timeout-established=99s", "--kube-proxy-arg", "conntrack-min=5"),
		}, []advice.KubeProxy{{Distribution: advice.K3s, Path: "its command line", Min: number(5), TCPEstablishedTimeout: duration(99 * time.Second)}}, ""},
		{"k3s by its files", map[string]string{
			"proc/7/comm": "k3s-server\n", "proc/7/cmdline": cmdline("/usr/local/bin/k3s", "server"), "proc/7/root/x": "",
			"proc/7/root/etc/rancher/k3s/config.yaml":          "kube-proxy-arg: conntrack-min=5\n",
			"proc/7/root/etc/rancher/k3s/config.yaml.d/1.yaml": "kube-proxy-arg+:\n- conntrack-max-per-core=0\n",
		}, []advice.KubeProxy{{Distribution: advice.K3s, Path: "its command line, /etc/rancher/k3s/config.yaml, /etc/rancher/k3s/config.yaml.d/1.yaml", Min: number(5), MaxPerCore: number(0)}}, ""},
		{"k3s by its unit", map[string]string{
			"proc/7/comm": "k3s-agent\n", "proc/7/cmdline": cmdline("/usr/local/bin/k3s", "agent"),
			"etc/systemd/system/k3s-agent.service": "[Service]\nExecStart=/usr/local/bin/k3s \\\n    agent \\\n\t'--kube-proxy-arg=conntrack-min=6' \\\n",
		}, []advice.KubeProxy{{Distribution: advice.K3s, Path: "its command line, /etc/systemd/system/k3s-agent.service", Min: number(6)}}, ""},
		{"k3s without kube-proxy", map[string]string{
			"proc/7/comm": "k3s-server\n", "proc/7/cmdline": cmdline("/usr/local/bin/k3s", "server", "--disable-kube-proxy"),
		}, nil, ""},
		{"k3s without kube-proxy, by its file", map[string]string{
			"proc/7/comm": "k3s-server\n", "proc/7/cmdline": cmdline("k3s", "server", "--config", "/c"), "c": "disable-kube-proxy: true\n",
		}, nil, ""},
		{"k3s kubectl", map[string]string{"proc/7/comm": "k3s\n", "proc/7/cmdline": cmdline("k3s", "kubectl", "get", "pods")}, nil, ""},
		{"RKE2 and its kube-proxy", map[string]string{
			"proc/7/comm": "rke2\n", "proc/7/cmdline": cmdline("/usr/local/bin/rke2", "server"),
			"etc/rancher/rke2/config.yaml": "kube-proxy-arg: [conntrack-min=8]\n",
			"proc/12/comm":                 "kube-proxy\n", "proc/12/cmdline": cmdline("kube-proxy", "--conntrack-max-per-core=0"),
		}, []advice.KubeProxy{
			{Distribution: advice.RKE2, Path: "its command line, /etc/rancher/rke2/config.yaml", Min: number(8)},
			{Distribution: advice.Standalone, Path: "its command line", MaxPerCore: number(0)},
		}, ""},
		{"MicroK8s", map[string]string{
			"proc/7/comm": "kubelite\n", "proc/7/cmdline": cmdline("/snap/microk8s/1/kubelite", "--proxy-args-file=/var/snap/microk8s/1/args/kube-proxy", "--start-control-plane=true"),
			"var/snap/microk8s/1/args/kube-proxy": "# a comment\n--conntrack-min=9\n--conntrack-max-per-core \"3\"\n",
		}, []advice.KubeProxy{{Distribution: advice.MicroK8s, Path: "/var/snap/microk8s/1/args/kube-proxy", Min: number(9), MaxPerCore: number(3)}}, ""},
		{"MicroK8s without the file", map[string]string{
			"proc/7/comm": "kubelite\n", "proc/7/cmdline": cmdline("kubelite", "--proxy-args-file=/a"),
		}, []advice.KubeProxy{{Distribution: advice.MicroK8s}}, "MicroK8s' kube-proxy"},
		{"k0s", map[string]string{
			"proc/3/comm": "k0s\n", "proc/3/cmdline": cmdline("k0s", "worker"), "proc/7/comm": "kube-proxy\n", "proc/7/cmdline": cmdline("kube-proxy", "--conntrack-min=1"),
		}, []advice.KubeProxy{{Distribution: advice.K0s, Path: "its command line", Min: number(1)}}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.files["sys/devices/system/cpu/online"] = "0-3,6\n"
			for i := range test.want {
				test.want[i].NodeCPUs = 5
			}
			got, err := KubeProxies(plant(t, test.files), "/proc/thread-self")
			if (err == nil) != (test.says == "") || err != nil && !strings.Contains(err.Error(), test.says) {
				t.Errorf("error %v, want %q", err, test.says)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func TestHelperSleep(*testing.T) {
	if os.Getenv("TRACKLESS_TEST_SLEEP") == "" {
		return
	}
	_, _ = os.Stdout.WriteString("x")
	_, _ = os.Stdin.Read(make([]byte, 1)) // until the test closes it
}

func TestKubernetesMinor(t *testing.T) {
	for version, want := range map[string]int{"v1.37.2": 37, "v1.31.1-k3s1": 31, "(devel)": -1, "v0.30.1": -1} {
		if got, ok := minorVersion(version, "v1."); ok != (want >= 0) || ok && got != want {
			t.Errorf("minorVersion(%q) = %d, %t", version, got, ok)
		}
	}
}
