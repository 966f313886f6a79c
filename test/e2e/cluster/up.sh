#!/bin/bash
# up.sh [MODE [MODE]]: starts a control plane and two nodes, each in a network
# namespace of its own, with kube-proxy in nftables mode on n1 and iptables mode
# on n2 unless told. The binaries of build.sh must be there.
set -euo pipefail
. "$(dirname "$(readlink -f "$0")")/lib.sh"
. "$HERE/certs.sh"
. "$HERE/node.sh"

for program in $PROGRAMS; do
  [ -x "$BIN/$program" ] || { echo "$BIN/$program is missing; build.sh makes it" >&2; exit 1; }
done
if [ -e "$RUN" ] || [ -e /run/netns/$CP_NS ]; then
  echo "a cluster is up, or was not taken down: $HERE/down.sh" >&2
  exit 1
fi
mkdir -p "$RUN/pids" "$LOGS"
certificates

ip netns add $CP_NS
ip -n $CP_NS link set lo up
ip -n $CP_NS link add k8br type bridge
ip -n $CP_NS addr add $CP_IP/24 dev k8br
ip -n $CP_NS link set k8br up

start etcd $CP_NS etcd --name lab --data-dir "$RUN/etcd" --unsafe-no-fsync \
  --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
  --listen-peer-urls http://127.0.0.1:2380 --initial-advertise-peer-urls http://127.0.0.1:2380 --initial-cluster lab=http://127.0.0.1:2380
start kube-apiserver $CP_NS kube-apiserver --etcd-servers=http://127.0.0.1:2379 \
  --service-cluster-ip-range=10.96.0.0/16 --advertise-address=$CP_IP --bind-address=0.0.0.0 --secure-port=6443 \
  --tls-cert-file="$PKI/apiserver.crt" --tls-private-key-file="$PKI/apiserver.key" --client-ca-file="$PKI/ca.crt" \
  --requestheader-client-ca-file="$PKI/ca.crt" --requestheader-allowed-names=none \
  --service-account-key-file="$PKI/sa.pub" --service-account-signing-key-file="$PKI/sa.key" \
  --service-account-issuer=https://kubernetes.default.svc.cluster.local \
  --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction --allow-privileged=true \
  --kubelet-client-certificate="$PKI/kubelet-client.crt" --kubelet-client-key="$PKI/kubelet-client.key" \
  --kubelet-preferred-address-types=InternalIP --v=1
until_ok 120 kc get --raw /readyz
start kube-controller-manager $CP_NS kube-controller-manager --kubeconfig="$RUN/kube-controller-manager.kubeconfig" \
  --use-service-account-credentials --service-account-private-key-file="$PKI/sa.key" --root-ca-file="$PKI/ca.crt" \
  --cluster-cidr=10.244.0.0/16 --allocate-node-cidrs --service-cluster-ip-range=10.96.0.0/16 \
  --leader-elect=false --bind-address=127.0.0.1 --node-monitor-grace-period=40s \
  --authentication-kubeconfig="$RUN/kube-controller-manager.kubeconfig" --authorization-kubeconfig="$RUN/kube-controller-manager.kubeconfig"
start kube-scheduler $CP_NS kube-scheduler --kubeconfig="$RUN/kube-scheduler.kubeconfig" --leader-elect=false --bind-address=127.0.0.1 \
  --authentication-kubeconfig="$RUN/kube-scheduler.kubeconfig" --authorization-kubeconfig="$RUN/kube-scheduler.kubeconfig"
until_ok 60 kc -n default get serviceaccount default
kc create clusterrolebinding kube-proxy --clusterrole=system:node-proxier --user=system:kube-proxy

# The names outside the cluster: everything below example.org is 192.0.2.80. Queries
# below n1.example.org and n2.example.org are counted on their own.
cat >"$RUN/outside.corefile" <<'X'
.:53 n1.example.org:53 n2.example.org:53 {
    bind 172.31.77.1
    prometheus 172.31.77.1:9153
    template IN A example.org {
        answer "{{ .Name }} 30 IN A 192.0.2.80"
    }
    template IN ANY . {
        rcode NXDOMAIN
        authority ". 30 IN SOA a.example. b.example. 1 30 30 30 30"
    }
}
X
start outside-dns $CP_NS coredns -conf "$RUN/outside.corefile"

node n1 "${1:-nftables}"
node n2 "${2:-iptables}"
