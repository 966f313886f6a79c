// Package kubeproxy reads from kube-proxy's rules which Services there are and
// whether somebody is behind them, in its nftables mode and in its iptables mode
// with the nft binaries. For the rules of legacy iptables package legacy is asked.
package kubeproxy
