#!/usr/bin/env bash
# A label may contain a dot. RFC 6763, 4.3, names a service instance
# "Dr. Pepper", whose name on the wire has the label of ten bytes `Dr. Pepper`.
# Three widely used DNS libraries do three things with a PTR record of it.
#
# Software:  github.com/miekg/dns v1.1.73; golang.org/x/net v0.62.0, package
#            dns/dnsmessage, of which Go's own resolver has a copy; npm
#            dns-packet 5.6.1
# Input:     one valid response: _http._tcp.example.com. PTR
#            Dr\.\032Pepper._http._tcp.example.com.
# Expected:  each reads the message, and writes the same name again
# Seen:      miekg/dns escapes the dot, and writes the same bytes again.
#            dnsmessage refuses the whole message: "invalid dns name".
#            dns-packet reads the name without an escape, and writes two labels,
#            `Dr` and ` Pepper`: another name, without an error. The message
#            keeps its length, since the dot becomes a length byte.
# So:        a cache or proxy must not pass names through a text form without
#            escapes, and a test that compares lengths does not find it.
#
# Needs Go, Node.js, the Go module proxy and the npm registry; writes to a
# temporary folder only.
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
	"bytes"
	"fmt"
	"log"
	"os"

	"github.com/miekg/dns"
	"golang.org/x/net/dns/dnsmessage"
)

func main() {
	m := new(dns.Msg)
	m.SetQuestion("_http._tcp.example.com.", dns.TypePTR)
	m.Id, m.Response = 1, true
	m.Answer = []dns.RR{&dns.PTR{
		Hdr: dns.RR_Header{Name: m.Question[0].Name, Rrtype: dns.TypePTR, Class: dns.ClassINET, Ttl: 60},
		Ptr: `Dr\.\032Pepper._http._tcp.example.com.`,
	}}
	wire, err := m.Pack()
	if err != nil {
		log.Fatal(err)
	}
	if err := os.WriteFile("message", wire, 0o600); err != nil {
		log.Fatal(err)
	}
	var back dns.Msg
	if err := back.Unpack(wire); err != nil {
		log.Fatal(err)
	}
	again, err := back.Pack()
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("miekg/dns: %s, same bytes %t\n", back.Answer[0].(*dns.PTR).Ptr, bytes.Equal(wire, again))
	fmt.Println("dnsmessage:", new(dnsmessage.Message).Unpack(wire))
}
X
cat > packet.js <<'X'
const fs = require('fs')
const packet = require('dns-packet')
const wire = fs.readFileSync('message')
const message = packet.decode(wire)
const again = packet.encode(message)
const labels = (bytes) => [bytes.includes('\x0aDr. Pepper'), bytes.includes('\x02Dr\x07 Pepper')]
console.log('dns-packet: %s, length %s, one label %s, then two labels %s', message.answers[0].data,
  wire.length === again.length ? 'the same' : 'another', labels(wire)[0], labels(again)[1])
X
go get github.com/miekg/dns@v1.1.73 golang.org/x/net@v0.62.0 2> get.log || { cat get.log >&2; exit 1; }
npm install --no-audit --no-fund --silent dns-packet@5.6.1

want='miekg/dns: Dr\.\ Pepper._http._tcp.example.com., same bytes true
dnsmessage: unpacking Answer: PTR record: invalid dns name
dns-packet: Dr. Pepper._http._tcp.example.com, length the same, one label true, then two labels true'
got=$(go run . && node packet.js)
echo "$got"
[ "$got" = "$want" ] || { printf 'changed: the output was:\n%s\n' "$want" >&2; exit 1; }
