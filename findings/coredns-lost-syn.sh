#!/usr/bin/env bash
# A lost SYN ends a dial of CoreDNS's proxy (plugin forward): its shortest dial timeout
# is as long as the kernel waits before it sends the SYN again.
#
# Software:  github.com/coredns/coredns v1.15.0, plugin/pkg/proxy, on Linux
# Input:     plain queries over TCP to a DNS server that answers; the first SYN of
#            each new connection is lost, the second one arrives
# Expected:  the connection comes about with the second SYN, as with any program
#            that dials with Go's package net
# Seen:      the first dials have 30 s. Once the server has answered some queries the
#            dial timeout is one second. The kernel sends the second SYN after one
#            second (RFC 6298 section 2.1), so the dial fails just before that:
#            "i/o timeout", every time.
# So:        a lost packet of a handshake is a failed dial. With max_connect_attempts 1
#            it is a failed query; without, the query is dialled anew.
#
# Needs root, nftables, iproute2, Go and the Go module proxy; works in a network
# namespace of its own and in a temporary folder.
set -euo pipefail
cd "$(mktemp -d)"
trap 'rm -rf "$PWD"' EXIT
export GOFLAGS=-mod=mod GOWORK=off

cat > go.mod <<'X'
module finding

go 1.26

require github.com/coredns/coredns v1.15.0
X
cat > main.go <<'X'
package main

import (
	"context"
	"fmt"
	"log"
	"net"
	"os/exec"
	"time"

	"github.com/coredns/coredns/plugin/pkg/proxy"
	"github.com/coredns/coredns/plugin/pkg/transport"
	"github.com/coredns/coredns/plugin/test"
	"github.com/coredns/coredns/request"
	"github.com/miekg/dns"
)

const addr = "127.0.0.1:1053"

const loseFirst = `table inet lossy {
	set seen { type inet_service; size 1024; flags dynamic; }
	chain input {
		type filter hook input priority 0;
		tcp dport 1053 tcp flags & (syn | ack) == syn tcp sport != @seen add @seen { tcp sport } drop
	}
}`

func main() {
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		log.Fatal(err)
	}
	go func() {
		log.Fatal((&dns.Server{Listener: listener, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) {
			_ = w.WriteMsg(new(dns.Msg).SetReply(r))
		})}).ActivateAndServe())
	}()

	p := proxy.NewProxy("finding", addr, transport.DNS)
	p.SetExpire(time.Nanosecond) // a connection for each query
	ask := func() error {
		state := request.Request{W: &test.ResponseWriter{}, Req: new(dns.Msg).SetQuestion("example.org.", dns.TypeA)}
		_, _, _, err := p.Connect(context.Background(), state, proxy.Options{ForceTCP: true})
		return err
	}
	for range 20 {
		if err := ask(); err != nil {
			log.Fatal(err)
		}
	}

	if out, err := exec.Command("nft", loseFirst).CombinedOutput(); err != nil {
		log.Fatalf("nft: %v: %s", err, out)
	}
	for range 3 {
		err := ask()
		if e, ok := err.(net.Error); ok && e.Timeout() {
			fmt.Println("CoreDNS: timeout")
			continue
		}
		fmt.Println("CoreDNS:", err)
	}
	conn, err := net.DialTimeout("tcp", addr, 5*time.Second)
	fmt.Println("net.Dial:", err)
	if err == nil {
		conn.Close()
	}
}
X
go build -o finding . 2> build.log || { cat build.log >&2; exit 1; }

want='CoreDNS: timeout
CoreDNS: timeout
CoreDNS: timeout
net.Dial: <nil>'
got=$(unshare --net sh -c 'ip link set lo up; exec ./finding')
echo "$got"
[ "$got" = "$want" ] || { printf 'changed: the output was:\n%s\n' "$want" >&2; exit 1; }
