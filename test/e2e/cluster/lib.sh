# Shared by build.sh, up.sh and down.sh: where things are, and processes by name.
#
# Everything built stays in $LAB/bin for the next time; everything that a
# running cluster writes is in $RUN and goes with it.
HERE=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
LAB=${K8S_LAB_HOME:-${XDG_CACHE_HOME:-$HOME/.cache}/k8s-lab}
BIN=$LAB/bin RUN=$LAB/run
PKI=$RUN/pki LOGS=$RUN/logs
export PATH=$BIN:$PATH

KUBERNETES=v1.37.2
CP_NS=k8-cp CP_IP=172.31.77.1
NODES="n1 n2"
# What up.sh does not do without.
PROGRAMS="hyper containerd containerd-shim-runc-v2 ctr runc bridge host-local loopback portmap coredns helm kubeconform"

in_ns() { local ns=$1; shift; nsenter --net=/run/netns/"$ns" "$@"; }

# start NAME NETNS COMMAND...: its pid is in $RUN/pids/NAME, its output in $LOGS/NAME.log
start() {
  local name=$1 ns=$2; shift 2
  setsid nsenter --net=/run/netns/"$ns" "$@" >>"$LOGS/$name.log" 2>&1 </dev/null &
  echo $! >"$RUN/pids/$name"
}

alive() { case $(awk '{print $3}' /proc/"$1"/stat 2>/dev/null) in ''|Z) return 1;; esac; }

# stop NAME SIGNAL: ends what start started, the hard way after five seconds
stop() {
  local file=$RUN/pids/$1 pid
  [ -f "$file" ] || return 0
  pid=$(<"$file")
  kill "-$2" "$pid" 2>/dev/null
  for _ in $(seq 50); do alive "$pid" || break; sleep .1; done
  kill -KILL "$pid" 2>/dev/null
  rm -f "$file"
}

# until_ok SECONDS COMMAND...: repeats it until it succeeds; gives up when
# a process of the cluster has died
until_ok() {
  local seconds=$1 file; shift
  for ((i = 0; i < seconds * 5; i++)); do
    "$@" >/dev/null 2>&1 && return 0
    for file in "$RUN"/pids/*; do
      alive "$(<"$file")" && continue
      echo "$(basename "$file") died:" >&2
      tail -3 "$LOGS/$(basename "$file").log" >&2
      return 1
    done
    sleep .2
  done
  echo "not within ${seconds}s: $*" >&2
  return 1
}

kc() { in_ns $CP_NS kubectl --kubeconfig="$RUN/admin.kubeconfig" "$@"; }
