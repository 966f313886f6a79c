#!/bin/bash
# build.sh [-n]: with -n only says whether there is anything to build.
#
# Builds what a cluster runs, once, from the Go module proxy alone: Kubernetes
# and etcd in one binary (hyper), containerd, runc, the CNI plugins, CoreDNS to
# be the cluster's DNS, and what charts are tested with. On two cores it takes a
# quarter of an hour.
set -euo pipefail
. "$(dirname "$(readlink -f "$0")")/lib.sh"
export GOBIN=$BIN CGO_ENABLED=0 GOFLAGS="-mod=readonly -buildvcs=false -trimpath"

have() { local p; for p; do [ -x "$BIN/$p" ] || return 1; done; }

if [ "${1:-}" = -n ]; then
  have $PROGRAMS
  exit
fi

mkdir -p "$BIN"
if ! have hyper; then
  echo "building Kubernetes $KUBERNETES into $BIN (10 minutes or more)" >&2
  V=k8s.io/component-base/version
  (cd "$HERE/hyper" && go build -o "$BIN/hyper.new" \
    -ldflags "-s -w -X $V.gitVersion=$KUBERNETES -X $V.gitMajor=1 -X $V.gitMinor=37 -X $V.gitTreeState=clean -X $V.gitCommit=unknown" .)
  mv "$BIN/hyper.new" "$BIN/hyper"
fi
for component in etcd kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubelet kubectl; do
  ln -sf hyper "$BIN/$component"
done
have coredns ||
  go install -ldflags "-s -w" github.com/coredns/coredns@v1.15.0
have containerd ||
  go install -tags "no_btrfs no_zfs no_devmapper no_aufs" -ldflags "-s -w -X github.com/containerd/containerd/v2/version.Version=v2.4.2" \
    github.com/containerd/containerd/v2/cmd/containerd@v2.4.2
have containerd-shim-runc-v2 ctr ||
  go install -ldflags "-s -w -X github.com/containerd/containerd/v2/version.Version=v2.4.2" \
    github.com/containerd/containerd/v2/cmd/{containerd-shim-runc-v2,ctr}@v2.4.2
have bridge loopback host-local portmap ||
  go install -ldflags "-s -w" github.com/containernetworking/plugins/plugins/{main/bridge,main/loopback,ipam/host-local,meta/portmap}@v1.9.1
have helm ||
  go install -ldflags "-s -w" helm.sh/helm/v4/cmd/helm@v4.3.1
have kubeconform ||
  go install -ldflags "-s -w" github.com/yannh/kubeconform/cmd/kubeconform@v0.8.0
if ! have runc; then
  # Seccomp profiles need libseccomp, a C library.
  [ -f /usr/include/seccomp.h ] ||
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends gcc libc6-dev pkg-config libseccomp-dev; }
  CGO_ENABLED=1 go install -tags seccomp -ldflags "-s -w -X main.version=1.5.2" github.com/opencontainers/runc@v1.5.2
fi
