#!/usr/bin/env bash
# procfs reads /proc/net/stat/nf_conntrack by position and does not look at the
# header line. The kernel gave two columns another meaning: since Linux 5.10 the
# second is `clashres` (it was `searched`), since Linux 5.15 the eighth is
# `chainlength` (it was `delete_list`).
#
# Software:  github.com/prometheus/procfs v0.23.0, FS.ConntrackStat
# Input:     the file as Linux 6.18 writes it, with 7 races settled without loss
#            and 5 packets lost because their hash bucket was full
# Expected:  7 under a name of clashres, 5 under one of chainlength, or neither
# Seen:      7 as Searched and 5 as DeleteList: a count of lost packets appears
#            under the name of an operation that kernels no longer count
# So:        read that file by its header. To learn whether buckets overflow,
#            take neither the name DeleteList nor a missing counter for an answer.
#
# Needs Go and the Go module proxy; writes to a temporary folder only.
set -euo pipefail
cd "$(mktemp -d)"
trap 'rm -rf "$PWD"' EXIT
export GOFLAGS=-mod=mod GOWORK=off

cat > go.mod <<'X'
module finding

go 1.25
X
cat > main.go <<'X'
package main

import (
	"fmt"
	"log"

	"github.com/prometheus/procfs"
)

func main() {
	fs, err := procfs.NewFS("proc")
	if err != nil {
		log.Fatal(err)
	}
	stats, err := fs.ConntrackStat()
	if err != nil {
		log.Fatal(err)
	}
	s := stats[0]
	fmt.Printf("Searched=%d Found=%d Invalid=%d DeleteList=%d\n", s.Searched, s.Found, s.Invalid, s.DeleteList)
}
X
mkdir -p proc/net/stat
cat > proc/net/stat/nf_conntrack <<'X'
entries  clashres found new invalid ignore delete chainlength insert insert_failed drop early_drop icmp_error  expect_new expect_create expect_delete search_restart
00000064  00000007 00000002 00000000 00000003 00000000 00000000 00000005 00000000 00000000 00000000 00000000 00000000  00000000 00000000 00000000 00000000
X
go get github.com/prometheus/procfs@v0.23.0 2> get.log || { cat get.log >&2; exit 1; }

want='Searched=7 Found=2 Invalid=3 DeleteList=5'
got=$(go run .)
echo "$got"
[ "$got" = "$want" ] || { echo "changed: the output was: $want" >&2; exit 1; }
