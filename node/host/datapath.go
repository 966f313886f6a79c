package host

import (
	"path/filepath"

	"github.com/trackless-dns/trackless/node/advice"
)

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
