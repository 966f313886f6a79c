// Package e2e installs Trackless on a real Kubernetes: etcd, the control plane
// and two nodes with containerd, kubelet and kube-proxy, one in nftables and
// one in iptables mode, each in a network namespace of this machine. cluster/
// builds it once, starts it and takes it down; client/ is what runs in pods.
//
// The tests have the build tag e2e; `make e2e` runs them.
package e2e
