//go:build privileged

package main

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/trackless-dns/trackless/cmd/trackless/cli"
	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/internal/thread"
	"github.com/trackless-dns/trackless/node/host"
	"github.com/trackless-dns/trackless/node/tune"
)

// tuneHost is a host whose table is full, below a new root.
func tuneHost(t *testing.T, more map[string]string) string {
	t.Helper()
	root := t.TempDir()
	files := map[string]string{
		"proc/sys/net/netfilter/nf_conntrack_max":                     "65536\n",
		"proc/sys/net/netfilter/nf_conntrack_buckets":                 "16384\n",
		"proc/sys/net/netfilter/nf_conntrack_count":                   "60000\n",
		"proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established": "432000\n",
		"proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close_wait":  "60\n",
		"sys/module/nf_conntrack/parameters/hashsize":                 "16384\n",
		"proc/meminfo": "MemTotal: 8000000 kB\n",
		"proc/uptime":  "10.0 10.0\n",
		"dev/kmsg":     "",
	}
	for name, content := range more {
		files[name] = content
	}
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

// files returns what the files below root hold, but for what measures.
func files(t *testing.T, root string) map[string]string {
	t.Helper()
	held := map[string]string{}
	if err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		held[strings.TrimPrefix(path, root)] = strings.TrimSpace(string(b))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return held
}

// inside runs the program in a namespace with an empty table.
func inside(t *testing.T, args ...string) (out, errs string, code int) {
	t.Helper()
	ns := testns.New(t)
	ns.Do(func() { out, errs, code = trackless(args...) })
	return out, errs, code
}

func TestTuneApplyAndRevert(t *testing.T) {
	t.Parallel()
	root := tuneHost(t, map[string]string{"etc/sysctl.d/90-trackless-conntrack.conf": "# mine\n"})
	before := files(t, root)

	out, errs, code := inside(t, "tune", "--apply", "--root", root)
	if code != 0 {
		t.Fatalf("exit status %d\n%s%s", code, out, errs)
	}
	after := files(t, root)
	for name, want := range map[string]string{
		"/proc/sys/net/netfilter/nf_conntrack_max":                     "131072",
		"/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established": "86400",
		"/sys/module/nf_conntrack/parameters/hashsize":                 "131072",
	} {
		if after[name] != want {
			t.Errorf("%s is %s, want %s", name, after[name], want)
		}
	}
	for name, want := range map[string]string{
		tune.SysctlFile: "net.netfilter.nf_conntrack_max = 131072", tune.ModprobeFile: "options nf_conntrack hashsize=131072", tune.ModulesLoadFile: "\nnf_conntrack",
	} {
		if !strings.Contains(after[name], want) {
			t.Errorf("%s holds %q, want %q in it", name, after[name], want)
		}
	}

	// A second apply must not take the first one's values for the original ones.
	if _, errs, code := inside(t, "tune", "--apply", "--root", root, "--entries", "200000"); code != 0 {
		t.Fatalf("second apply: exit status %d, %s", code, errs)
	}
	if got := files(t, root)["/proc/sys/net/netfilter/nf_conntrack_max"]; got != "524288" {
		t.Errorf("planned for 200,000 entries the limit is %s, want 524288", got)
	}
	// Somebody else's later change stays.
	if err := os.WriteFile(filepath.Join(root, "proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established"), []byte("7200\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	out, errs, code = inside(t, "tune", "--revert", "--root", root)
	if code != 0 || !strings.Contains(out, "left net.netfilter.nf_conntrack_tcp_timeout_established at 7200") {
		t.Fatalf("revert: exit status %d\n%s%s", code, out, errs)
	}
	before["/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established"] = "7200"
	if got := fmt.Sprint(files(t, root)); got != fmt.Sprint(before) {
		t.Errorf("after revert\n%s\nbefore\n%s", got, before)
	}
	if _, errs, code := inside(t, "tune", "--revert", "--root", root); code != cli.ExitCannotMeasure || !strings.Contains(errs, "nothing was applied") {
		t.Errorf("second revert: exit status %d, %s", code, errs)
	}
}

// When a step fails the ones before it are undone.
func TestTuneApplyIsAllOrNothing(t *testing.T) {
	t.Parallel()
	root := tuneHost(t, nil)
	// The directory for the last file cannot be made: a file is in its place.
	if err := os.MkdirAll(filepath.Join(root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/nowhere/at/all", filepath.Join(root, "etc/modprobe.d")); err != nil {
		t.Fatal(err)
	}
	held := func() string {
		h := map[string]string{}
		for _, dir := range []string{"proc", "sys", "dev"} {
			for name, content := range files(t, filepath.Join(root, dir)) {
				h[dir+name] = content
			}
		}
		return fmt.Sprint(h)
	}
	before := held()
	out, errs, code := inside(t, "tune", "--apply", "--root", root)
	if code != cli.ExitFailure || !strings.Contains(errs, "as it was again") {
		t.Fatalf("exit status %d\n%s%s", code, out, errs)
	}
	if after := held(); after != before {
		t.Errorf("after\n%s\nbefore\n%s", after, before)
	}
	for _, name := range []string{tune.SysctlFile, tune.ModulesLoadFile, tune.StateFile} {
		if _, err := os.Stat(filepath.Join(root, name)); err == nil {
			t.Errorf("%s was left behind", name)
		}
	}
}

func TestTuneOutputs(t *testing.T) {
	t.Parallel()
	root := tuneHost(t, map[string]string{
		"proc/7/comm": "kube-proxy\n", "proc/7/cmdline": "kube-proxy\x00--config=/c\x00",
		"proc/7/root/c": "kind: KubeProxyConfiguration\nconntrack:\n  tcpEstablishedTimeout: 1h\n  udpTimeout: 15s\n  tcpBeLiberal: true\n",
	})
	before := fmt.Sprint(files(t, root))
	for _, test := range []struct {
		args []string
		has  []string
	}{
		{nil, []string{"net.netfilter.nf_conntrack_max", "65536   131072", "why ", "cost ", "risk ", "hash buckets", tune.SysctlFile, "kube-proxy runs on this node"}},
		{[]string{"--for", "sysctl"}, []string{"net.netfilter.nf_conntrack_max = 131072\n", "nf_conntrack_tcp_timeout_established = 86400\n"}},
		{[]string{"--for", "modprobe"}, []string{"options nf_conntrack hashsize=131072\n"}},
		{[]string{"--for", "modules-load"}, []string{"\nnf_conntrack\n"}},
		{[]string{"--for", "kube-proxy"}, []string{"kind: KubeProxyConfiguration", "min: 131072", "tcpEstablishedTimeout: 24h0m0s", "tcpCloseWaitTimeout: 1m0s", "udpTimeout: 15s", "tcpBeLiberal: true"}},
		{[]string{"-o", "json"}, []string{`"max": 131072`, `"kube_proxy_overrides"`, `"path": "` + tune.SysctlFile}},
	} {
		t.Run(strings.Join(test.args, " "), func(t *testing.T) {
			out, errs, code := inside(t, append([]string{"tune", "--root", root}, test.args...)...)
			if code != 0 {
				t.Fatalf("exit status %d: %s", code, errs)
			}
			for _, want := range test.has {
				if !strings.Contains(out, want) {
					t.Errorf("no %q in\n%s", want, out)
				}
			}
			if len(test.args) == 2 && test.args[1] == "kube-proxy" {
				checkFragment(t, map[string]string{"proc/7/comm": "kube-proxy\n", "proc/7/cmdline": "kube-proxy\x00--config=/c\x00", "c": out})
			}
		})
	}
	if after := fmt.Sprint(files(t, root)); after != before {
		t.Error("tune without --apply changed files")
	}
}

// checkFragment lets the program that reads the configuration of kube-proxies
// read what tune printed.
func checkFragment(t *testing.T, files map[string]string) {
	t.Helper()
	list, err := host.KubeProxies(tuneHost(t, files), thread.Proc)
	if err != nil || len(list) != 1 {
		t.Fatalf("%+v, %v", list, err)
	}
	for _, cpus := range []int{1, 2, 512} {
		k := list[0]
		k.NodeCPUs, k.OwnCPUs = cpus, 1
		limits := k.Limits()
		if len(limits) != 1 && len(limits) != 2 || limits[0].Entries != 131072 || limits[len(limits)-1].Entries != 131072 || *k.TCPEstablishedTimeout != 24*3600e9 {
			t.Errorf("on %d CPUs %+v gives %v", cpus, k, limits)
		}
	}
}

// A distribution that gives kube-proxy its flags gets them, not a file that
// nobody reads.
func TestTuneForDistributions(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name       string
		proc, file map[string]string
		path       string
	}{
		{"k3s", map[string]string{"proc/7/comm": "k3s-server\n", "proc/7/cmdline": "k3s\x00server\x00"}, map[string]string{"etc/rancher/k3s/config.yaml": ""}, "/etc/rancher/k3s/config.yaml"},
		{"RKE2", map[string]string{"proc/7/comm": "rke2\n", "proc/7/cmdline": "rke2\x00agent\x00"}, map[string]string{"etc/rancher/rke2/config.yaml": ""}, "/etc/rancher/rke2/config.yaml"},
		{"MicroK8s", map[string]string{"proc/7/comm": "kubelite\n", "proc/7/cmdline": "kubelite\x00--proxy-args-file=/a\x00"}, map[string]string{"a": ""}, "/var/snap/microk8s/current/args/kube-proxy"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			files := maps.Clone(test.proc)
			maps.Copy(files, test.file)
			root := tuneHost(t, files)
			out, errs, code := inside(t, "tune", "--root", root)
			if code != 0 || !strings.Contains(out, "\n--- "+test.path+"\n") {
				t.Fatalf("exit status %d: %s\n%s", code, errs, out)
			}
			out, errs, code = inside(t, "tune", "--root", root, "--for", "kube-proxy")
			if code != 0 {
				t.Fatalf("exit status %d: %s", code, errs)
			}
			for path := range test.file {
				files[path] = out
			}
			checkFragment(t, files)
		})
	}
}

// nf_conntrack_max 0 is no limit: there is none to raise, and none to set.
func TestTuneWithoutLimit(t *testing.T) {
	t.Parallel()
	root := tuneHost(t, map[string]string{
		"proc/sys/net/netfilter/nf_conntrack_max": "0\n",
		"proc/7/comm": "kube-proxy\n", "proc/7/cmdline": "kube-proxy\x00",
	})
	out, errs, code := inside(t, "tune", "--root", root)
	if code != 0 {
		t.Fatalf("exit status %d: %s", code, errs)
	}
	for _, want := range []string{"net.netfilter.nf_conntrack_max = 0\n", "maxPerCore: 0", "there is no limit, and none is proposed", "kube-proxy runs on this node and sets net.netfilter.nf_conntrack_max"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	if strings.Contains(out, "min:") {
		t.Errorf("a limit for kube-proxy:\n%s", out)
	}
	out, _, _ = inside(t, "doctor", "--root", root, "--interval", "1ms", "--metrics", "off")
	if !strings.Contains(out, "there is no limit now") || strings.Contains(out, "of 0") {
		t.Errorf("doctor:\n%s", out)
	}
	out, _, _ = inside(t, "conntrack", "limits", "--root", root)
	if !strings.Contains(out, "0 (no limit)") || strings.Contains(out, "when full") || strings.Contains(out, "when reached") {
		t.Errorf("limits:\n%s", out)
	}
}

func TestTuneNothingToDo(t *testing.T) {
	t.Parallel()
	root := tuneHost(t, map[string]string{
		"proc/sys/net/netfilter/nf_conntrack_count":                   "10\n",
		"proc/sys/net/netfilter/nf_conntrack_buckets":                 "65536\n",
		"proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established": "86400\n",
	})
	out, errs, code := inside(t, "tune", "--root", root)
	if code != 0 || !strings.Contains(out, "Nothing to change") {
		t.Errorf("exit status %d\n%s%s", code, out, errs)
	}
}
