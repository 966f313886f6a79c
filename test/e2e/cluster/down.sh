#!/bin/bash
# down.sh: ends everything that up.sh started, by pid, and removes namespaces,
# control groups, mounts and state. The binaries stay.
. "$(dirname "$(readlink -f "$0")")/lib.sh"
. "$HERE/node.sh"
[ -d "$RUN" ] || exit 0

for n in $NODES; do
  ns=k8-$n state=/run/k8-$n
  [ -e /run/netns/"$ns" ] || continue
  stop "kubelet-$n" KILL
  stop "kube-proxy-$n" KILL
  # Containers outlive containerd: end them through it first.
  for c in $(timeout 10 ctr -a "$state/containerd.sock" -n k8s.io tasks ls -q 2>/dev/null); do
    timeout 10 ctr -a "$state/containerd.sock" -n k8s.io tasks rm -f "$c" >/dev/null 2>&1
  done
  stop "containerd-$n" TERM
  # Shims whose socket is in our state directory; nobody else's.
  for pid in $(pgrep -f "containerd-shim-runc-v2.*-address $state/containerd.sock"); do kill -KILL "$pid" 2>/dev/null; done
  sleep .3
  awk '{print $5}' /proc/self/mountinfo | grep -E "^($state/|$RUN/$n/)" | sort -r | while read -r m; do umount -l "$m"; done
  for c in $CGROUPS unified .; do
    [ ! -d "/sys/fs/cgroup/$c/$ns" ] || find "/sys/fs/cgroup/$c/$ns" -depth -type d -exec rmdir {} \; 2>/dev/null
  done
  rm -rf --one-file-system "$state"
  ip netns del "$ns"
done
for name in outside-dns kube-scheduler kube-controller-manager kube-apiserver etcd; do stop $name KILL; done
ip netns del $CP_NS 2>/dev/null
restore_sysctls
rm -rf --one-file-system "$RUN"
