// Package kubeproxy reads from kube-proxy's rules which Services there are and whether
// they have endpoints. It reads the rules of nftables mode, and of iptables mode with
// the nft binaries. Package legacy reads those of iptables mode with legacy binaries.
package kubeproxy
