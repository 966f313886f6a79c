#!/bin/bash
# build.sh [-n]: with -n only says whether there is anything to build.
#
# Builds what a cluster runs, once, from the Go module proxy alone: Kubernetes
# and etcd in one binary (hyper), containerd, runc, the CNI plugins, CoreDNS to
# be the cluster's DNS, and what charts are tested with. On two cores it takes a
# quarter of an hour.
#
# Beside each program stands what it was built of. A program that was built of
# something else is built again: of other versions, flags or sources.
set -euo pipefail
. "$(dirname "$(readlink -f "$0")")/lib.sh"
export GOBIN=$BIN CGO_ENABLED=0 GOFLAGS="-mod=readonly -buildvcs=false -trimpath"
ONLY_SAY= BUILT=$BIN/.built
[ "${1:-}" != -n ] || ONLY_SAY=1

# have "PROGRAM..." OF...: whether they are there, and were built of that.
have() {
  local p of
  of=${*:2}
  for p in $1; do
    [ -x "$BIN/$p" ] && [ "$(cat "$BUILT/$p" 2>/dev/null)" = "$of" ] || return 1
  done
}

# built "PROGRAM..." OF...: notes it.
built() {
  local p of
  of=${*:2}
  mkdir -p "$BUILT"
  for p in $1; do echo "$of" >"$BUILT/$p"; done
}

# program "PROGRAM..." OF...: unless they are there, installs them with the
# arguments of go install.
program() {
  have "$@" && return
  [ ! "$ONLY_SAY" ] || exit 1
  echo "building $1 into $BIN" >&2
  go install "${@:2}"
  built "$@"
}

hyper() {
  local version=k8s.io/component-base/version flags sources
  flags="-s -w -X $version.gitVersion=$KUBERNETES -X $version.gitMajor=1 -X $version.gitMinor=37 -X $version.gitTreeState=clean -X $version.gitCommit=unknown"
  sources=$(cd "$HERE/hyper" && cat go.mod go.sum ./*.go | sha256sum)
  have hyper "$flags" "$sources" && return
  [ ! "$ONLY_SAY" ] || exit 1
  echo "building Kubernetes $KUBERNETES into $BIN (10 minutes or more)" >&2
  (cd "$HERE/hyper" && go build -o "$BIN/hyper.new" -ldflags "$flags" .)
  mv "$BIN/hyper.new" "$BIN/hyper"
  built hyper "$flags" "$sources"
}

# Seccomp profiles need libseccomp, a C library.
runc() {
  local of=(-tags seccomp -ldflags "-s -w -X main.version=1.5.2" github.com/opencontainers/runc@v1.5.2)
  have runc "${of[@]}" && return
  [ ! "$ONLY_SAY" ] || exit 1
  { command -v gcc && command -v pkg-config && pkg-config --exists libseccomp && [ -f /usr/include/stdlib.h ]; } >/dev/null ||
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y -qq --no-install-recommends gcc libc6-dev pkg-config libseccomp-dev; } >&2
  CGO_ENABLED=1 program runc "${of[@]}"
}

[ "$ONLY_SAY" ] || mkdir -p "$BIN"
hyper
for component in etcd kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubelet kubectl; do
  ln -sf hyper "$BIN/$component"
done
CONTAINERD=v2.4.2
containerd_flags="-s -w -X github.com/containerd/containerd/v2/version.Version=$CONTAINERD"
program coredns -ldflags "-s -w" github.com/coredns/coredns@v1.15.0
program containerd -tags "no_btrfs no_zfs no_devmapper no_aufs" -ldflags "$containerd_flags" \
  github.com/containerd/containerd/v2/cmd/containerd@$CONTAINERD
program "containerd-shim-runc-v2 ctr" -ldflags "$containerd_flags" \
  github.com/containerd/containerd/v2/cmd/{containerd-shim-runc-v2,ctr}@$CONTAINERD
program "bridge loopback host-local portmap" -ldflags "-s -w" \
  github.com/containernetworking/plugins/plugins/{main/bridge,main/loopback,ipam/host-local,meta/portmap}@v1.9.1
program helm -ldflags "-s -w" helm.sh/helm/v4/cmd/helm@v4.3.1
program kubeconform -ldflags "-s -w" github.com/yannh/kubeconform/cmd/kubeconform@v0.8.0
runc
