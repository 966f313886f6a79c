# Sourced by up.sh: one node with containerd, kubelet and kube-proxy in a
# network namespace, where pods with hostNetwork land too.

CGROUPS="cpu cpuacct cpuset memory devices freezer blkio pids systemd"

# The kubelet sets these for the whole machine when it starts.
KUBELET_SYSCTLS="vm.overcommit_memory vm.panic_on_oom kernel.panic kernel.panic_on_oops kernel.keys.root_maxkeys kernel.keys.root_maxbytes"

save_sysctls() { for k in $KUBELET_SYSCTLS; do echo "$k=$(sysctl -n "$k")"; done >"$RUN/sysctls"; }
restore_sysctls() { [ ! -f "$RUN/sysctls" ] || while IFS= read -r kv; do sysctl -qw "$kv"; done <"$RUN/sysctls"; }

# node NAME MODE
node() {
  local name=$1 mode=$2 number=${1#n} dir=$RUN/$1 ns=k8-$1 state=/run/k8-$1
  local ip=172.31.77.1$number
  mkdir -p "$dir"/{containerd,kubelet,cni,tmp} "$state"
  node_network "$ns" "$number" "$ip"
  node_cgroups "$ns"
  node_files "$name" "$mode" "$number" "$ip" "$dir" "$ns" "$state"
  [ -f "$RUN/sysctls" ] || save_sysctls

  start "containerd-$name" "$ns" containerd --config "$dir/containerd.toml"
  until_ok 30 ctr -a "$state/containerd.sock" version
  start "kubelet-$name" "$ns" kubelet --config="$dir/kubelet.yaml" --kubeconfig="$RUN/$name.kubeconfig" \
    --root-dir="$dir/kubelet" --cert-dir="$dir/kubelet/pki" --hostname-override="$name" --node-ip="$ip" --v=2
  start "kube-proxy-$name" "$ns" kube-proxy --config="$dir/kube-proxy.yaml" --v=2
  until_ok 90 kc wait --for=condition=Ready "node/$name" --timeout=1s
  restore_sysctls
}

node_network() {
  local ns=$1 number=$2 ip=$3 other
  ip netns add "$ns"
  ip -n "$ns" link set lo up
  ip -n $CP_NS link add "v-$ns" type veth peer name eth0 netns "$ns"
  ip -n $CP_NS link set "v-$ns" master k8br up
  ip -n $CP_NS route add "10.244.$((number - 1)).0/24" via "$ip"
  ip -n "$ns" addr add "$ip/24" dev eth0
  ip -n "$ns" link set eth0 up
  ip -n "$ns" route add default via $CP_IP
  for other in 1 2; do
    [ "$other" = "$number" ] || ip -n "$ns" route add "10.244.$((other - 1)).0/24" via "172.31.77.1$other"
  done
  in_ns "$ns" sysctl -qw net.ipv4.ip_forward=1
}

# A group of its own in every hierarchy, v1 or v2.
node_cgroups() {
  local c
  if [ -f /sys/fs/cgroup/cgroup.controllers ]; then
    sed 's/\</+/g' /sys/fs/cgroup/cgroup.controllers >/sys/fs/cgroup/cgroup.subtree_control 2>/dev/null || true
    mkdir -p "/sys/fs/cgroup/$1"
    return
  fi
  for c in $CGROUPS; do [ ! -d "/sys/fs/cgroup/$c" ] || mkdir -p "/sys/fs/cgroup/$c/$1"; done
  for c in cpus mems; do cat "/sys/fs/cgroup/cpuset/cpuset.$c" >"/sys/fs/cgroup/cpuset/$1/cpuset.$c"; done
}

node_files() {
  local name=$1 mode=$2 number=$3 ip=$4 dir=$5 ns=$6 state=$7
  cat >"$dir/cni/10-bridge.conflist" <<X
{"cniVersion":"1.0.0","name":"lab","plugins":[
 {"type":"bridge","bridge":"cni0","isGateway":true,"ipMasq":false,"hairpinMode":true,
  "ipam":{"type":"host-local","dataDir":"$dir/ipam","ranges":[[{"subnet":"10.244.$((number - 1)).0/24"}]],"routes":[{"dst":"0.0.0.0/0"}]}},
 {"type":"portmap","capabilities":{"portMappings":true}}]}
X
  # restrict_oom_score_adj: where CAP_SYS_RESOURCE is missing, runc could not lower it.
  cat >"$dir/containerd.toml" <<X
version = 3
root = '$dir/containerd'
state = '$state/containerd'
temp = '$dir/tmp'
disabled_plugins = ['io.containerd.tracing.processor.v1.otlp', 'io.containerd.internal.v1.tracing', 'io.containerd.nri.v1.nri']
[grpc]
  address = '$state/containerd.sock'
[plugins.'io.containerd.cri.v1.images']
  snapshotter = 'overlayfs'
  [plugins.'io.containerd.cri.v1.images'.pinned_images]
    sandbox = 'local.invalid/client:e2e'
[plugins.'io.containerd.cri.v1.runtime']
  enable_selinux = false
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins.'io.containerd.cri.v1.runtime'.containerd]
    default_runtime_name = 'runc'
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
      runtime_type = 'io.containerd.runc.v2'
      runtime_path = '$BIN/containerd-shim-runc-v2'
      [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
        BinaryName = '$BIN/runc'
        SystemdCgroup = false
        Root = '$state/runc'
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = ['$BIN']
    conf_dir = '$dir/cni'
X
  cat >"$dir/kubelet.yaml" <<X
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: $ip
port: 10250
readOnlyPort: 0
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $PKI/ca.crt}}
authorization: {mode: Webhook}
cgroupDriver: cgroupfs
cgroupRoot: /$ns
failCgroupV1: false
enforceNodeAllocatable: [pods]
failSwapOn: false
clusterDNS: [10.96.0.10]
clusterDomain: cluster.local
containerRuntimeEndpoint: unix://$state/containerd.sock
resolvConf: $dir/resolv.conf
healthzBindAddress: 127.0.0.1
nodeStatusUpdateFrequency: 4s
syncFrequency: 10s
podLogsDir: $dir/podlogs
volumePluginDir: $dir/volplugins
imageMinimumGCAge: 24h
imageGCHighThresholdPercent: 100
evictionHard: {memory.available: 100Mi, nodefs.available: 1%, imagefs.available: 1%}
X
  echo "nameserver $CP_IP" >"$dir/resolv.conf"
  # nf_conntrack_max and hashsize are the machine's, not the namespace's: kube-proxy leaves them alone.
  cat >"$dir/kube-proxy.yaml" <<X
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clientConnection: {kubeconfig: $RUN/kube-proxy.kubeconfig}
mode: "$mode"
hostnameOverride: $name
clusterCIDR: 10.244.0.0/16
bindAddress: $ip
healthzBindAddress: $ip:10256
metricsBindAddress: 127.0.0.1:10249
nodePortAddresses: [primary]
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s, udpTimeout: 0s, udpStreamTimeout: 0s}
X
}
