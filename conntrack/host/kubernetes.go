package host

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/trackless-dns/trackless/conntrack/advice"
)

// KubeProxy finds the kube-proxy of this node among the processes below
// root/proc and reads its configuration: the file that --config names, inside
// the process's own root, or its flags. It returns nil if none runs, or none is
// visible in this PID namespace.
func KubeProxy(root string) (*advice.KubeProxy, error) {
	comms, err := filepath.Glob(filepath.Join(root, "proc/[0-9]*/comm"))
	if err != nil {
		return nil, err
	}
	for _, path := range comms {
		if b, err := os.ReadFile(path); err != nil || strings.TrimSpace(string(b)) != "kube-proxy" {
			continue
		}
		return readKubeProxy(filepath.Dir(path))
	}
	return nil, nil
}

// readKubeProxy reads the configuration of the process in the directory dir of
// proc. kube-proxy ignores its flags if a file is given.
func readKubeProxy(dir string) (*advice.KubeProxy, error) {
	b, err := os.ReadFile(filepath.Join(dir, "cmdline"))
	if err != nil {
		return &advice.KubeProxy{}, fmt.Errorf("kube-proxy's command line: %w", err)
	}
	args := strings.Split(strings.TrimRight(string(b), "\x00"), "\x00")
	path := flagValue(args, "config")
	if path == "" {
		return kubeProxyFlags(args)
	}
	config, err := os.ReadFile(filepath.Join(dir, "root", path))
	if err != nil {
		return &advice.KubeProxy{}, fmt.Errorf("kube-proxy's configuration: %w", err)
	}
	return ParseKubeProxy(path, config)
}

// flagValue returns the value of --name VALUE, --name=VALUE, or the same with
// one dash; the last one counts.
func flagValue(args []string, name string) string {
	value := ""
	for i, arg := range args {
		arg = strings.TrimPrefix(strings.TrimPrefix(arg, "-"), "-")
		if v, ok := strings.CutPrefix(arg, name+"="); ok {
			value = v
		} else if arg == name && i+1 < len(args) {
			value = args[i+1]
		}
	}
	return value
}

func kubeProxyFlags(args []string) (*advice.KubeProxy, error) {
	k := &advice.KubeProxy{Path: "its command line"}
	var errs []error
	number := func(name string, to **int64) {
		if s := flagValue(args, name); s != "" {
			n, err := strconv.ParseInt(s, 10, 64)
			errs = append(errs, err)
			*to = &n
		}
	}
	duration := func(name string, to **time.Duration) {
		if s := flagValue(args, name); s != "" {
			d, err := time.ParseDuration(s)
			errs = append(errs, err)
			*to = &d
		}
	}
	number("conntrack-max-per-core", &k.MaxPerCore)
	number("conntrack-min", &k.Min)
	duration("conntrack-tcp-timeout-established", &k.TCPEstablishedTimeout)
	duration("conntrack-tcp-timeout-close-wait", &k.TCPCloseWaitTimeout)
	duration("conntrack-udp-timeout", &k.UDPTimeout)
	duration("conntrack-udp-timeout-stream", &k.UDPStreamTimeout)
	if liberal := slices.Contains(args, "--conntrack-tcp-be-liberal") || flagValue(args, "conntrack-tcp-be-liberal") == "true"; liberal {
		k.TCPBeLiberal = &liberal
	}
	return k, errors.Join(errs...)
}

// ParseKubeProxy reads the section conntrack of a KubeProxyConfiguration.
func ParseKubeProxy(path string, config []byte) (*advice.KubeProxy, error) {
	var file struct {
		Kind      string
		Conntrack struct {
			MaxPerCore            *int64         `yaml:"maxPerCore"`
			Min                   *int64         `yaml:"min"`
			TCPEstablishedTimeout *time.Duration `yaml:"tcpEstablishedTimeout"`
			TCPCloseWaitTimeout   *time.Duration `yaml:"tcpCloseWaitTimeout"`
			UDPTimeout            *time.Duration `yaml:"udpTimeout"`
			UDPStreamTimeout      *time.Duration `yaml:"udpStreamTimeout"`
			TCPBeLiberal          *bool          `yaml:"tcpBeLiberal"`
		} `yaml:"conntrack"`
	}
	if err := yaml.Unmarshal(config, &file); err != nil {
		return &advice.KubeProxy{}, fmt.Errorf("kube-proxy's configuration %s: %w", path, err)
	}
	if file.Kind != "KubeProxyConfiguration" {
		return &advice.KubeProxy{}, fmt.Errorf("kube-proxy's configuration %s: kind is %q, not KubeProxyConfiguration", path, file.Kind)
	}
	c := file.Conntrack
	return &advice.KubeProxy{
		Path: path, MaxPerCore: c.MaxPerCore, Min: c.Min,
		TCPEstablishedTimeout: c.TCPEstablishedTimeout, TCPCloseWaitTimeout: c.TCPCloseWaitTimeout,
		UDPTimeout: c.UDPTimeout, UDPStreamTimeout: c.UDPStreamTimeout, TCPBeLiberal: c.TCPBeLiberal,
	}, nil
}

// Datapath looks for datapaths that translate Services before the hooks of
// iptables and nftables: links are the names of this node's network devices,
// and what they pin is below root/sys/fs/bpf.
func Datapath(root string, links []string) advice.Datapath {
	var d advice.Datapath
	found := func(what string) { d.Evidence = append(d.Evidence, what) }
	pinned := func(pattern string) bool {
		paths, _ := filepath.Glob(filepath.Join(root, "sys/fs/bpf", pattern))
		if len(paths) > 0 {
			rel, err := filepath.Rel(root, paths[0])
			if err == nil {
				found("pinned /" + rel)
			}
		}
		return len(paths) > 0
	}
	for _, name := range links {
		switch name {
		case "cilium_host":
			found("link " + name)
			// Also beside kube-proxy Cilium translates what pods send to
			// Service addresses in its program at the pod's device.
			d.KubeProxyReplacement = true
		case "bpfin.cali", "bpfout.cali":
			found("link " + name)
			d.CalicoEBPF = true
		}
	}
	if pinned("tc/globals/cilium_lb4_services*") {
		d.KubeProxyReplacement = true
	}
	if pinned("cilium/socketlb/links/cgroup/cil_sock4_connect") || pinned("tc/globals/cilium_lb4_reverse_sk") {
		d.SocketLB = true
	}
	if pinned("tc/globals/cali_v4_nat_fe*") {
		d.CalicoEBPF = true
	}
	return d
}
