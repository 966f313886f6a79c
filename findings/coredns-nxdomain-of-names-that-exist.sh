#!/usr/bin/env bash
# CoreDNS's plugin kubernetes, which is the DNS of most clusters, says NXDOMAIN
# of names that exist. NXDOMAIN means: no record of any type here (RFC 2308, 5),
# and nothing below (RFC 8020, 2).
#
# Software:  github.com/coredns/coredns v1.15.0, plugin kubernetes, with one
#            namespace and one Service `web` with the port `http` over TCP
# Input:     plain questions about names of Kubernetes' own DNS specification
# Expected:  NOERROR without an answer for a name that has other records, or
#            names below it
# Seen:      dns-version.cluster.local: TXT is answered, A is NXDOMAIN.
#            _tcp.web.default.svc.cluster.local: A is NXDOMAIN, and the SRV record
#            of _http below it is answered.
#            default.svc.cluster.local: A is NOERROR, TXT is NXDOMAIN.
# So:        a cache in front that believes the RFCs hides SRV records and
#            dns-version for as long as it keeps the negative answer. Cut at such
#            names only where no label begins with an underscore, and only for
#            answers to A and AAAA.
#
# Needs Go and the Go module proxy, and some minutes to build client-go the first
# time; writes to a temporary folder only, and opens no socket.
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

	"github.com/coredns/coredns/plugin/kubernetes"
	"github.com/coredns/coredns/plugin/kubernetes/object"
	"github.com/coredns/coredns/plugin/pkg/dnstest"
	"github.com/coredns/coredns/plugin/test"
	"github.com/miekg/dns"
	api "k8s.io/api/core/v1"
)

var web = []*object.Service{{
	Name: "web", Namespace: "default", Index: object.ServiceKey("web", "default"), Type: api.ServiceTypeClusterIP,
	ClusterIPs: []string{"10.96.0.80"}, Ports: []api.ServicePort{{Name: "http", Protocol: "tcp", Port: 80}},
}}

// cluster is what the plugin has seen of the API: one namespace and one Service.
type cluster struct{}

func (cluster) ServiceList() []*object.Service { return web }
func (cluster) SvcIndex(key string) []*object.Service {
	if key == web[0].Index {
		return web
	}
	return nil
}
func (cluster) EndpointsList() []*object.Endpoints                          { return nil }
func (cluster) ServiceImportList() []*object.ServiceImport                  { return nil }
func (cluster) SvcIndexReverse(string) []*object.Service                    { return nil }
func (cluster) SvcExtIndexReverse(string) []*object.Service                 { return nil }
func (cluster) SvcImportIndex(string) []*object.ServiceImport               { return nil }
func (cluster) PodIndex(string) []*object.Pod                               { return nil }
func (cluster) EpIndex(string) []*object.Endpoints                          { return nil }
func (cluster) EpIndexReverse(string) []*object.Endpoints                   { return nil }
func (cluster) McEpIndex(string) []*object.MultiClusterEndpoints            { return nil }
func (cluster) GetNodeByName(context.Context, string) (*api.Node, error)    { return nil, nil }
func (cluster) Run()                                                        {}
func (cluster) HasSynced() bool                                             { return true }
func (cluster) Stop() error                                                 { return nil }
func (cluster) Modified(kubernetes.ModifiedMode) int64                      { return 1 }
func (cluster) GetNamespaceByName(name string) (*object.Namespace, error) {
	if name == "default" {
		return &object.Namespace{Name: name}, nil
	}
	return nil, fmt.Errorf("no namespace %s", name)
}

func main() {
	k := kubernetes.New([]string{"cluster.local."})
	k.APIConn = cluster{}
	k.Namespaces = map[string]struct{}{"default": {}}
	for _, q := range []struct {
		name  string
		qtype uint16
	}{
		{"dns-version.cluster.local.", dns.TypeTXT},
		{"dns-version.cluster.local.", dns.TypeA},
		{"_http._tcp.web.default.svc.cluster.local.", dns.TypeSRV},
		{"_tcp.web.default.svc.cluster.local.", dns.TypeA},
		{"default.svc.cluster.local.", dns.TypeA},
		{"default.svc.cluster.local.", dns.TypeTXT},
	} {
		m := new(dns.Msg)
		m.SetQuestion(q.name, q.qtype)
		w := dnstest.NewRecorder(&test.ResponseWriter{})
		if _, err := k.ServeDNS(context.Background(), w, m); err != nil {
			log.Fatal(err)
		}
		fmt.Println(q.name, dns.TypeToString[q.qtype], dns.RcodeToString[w.Msg.Rcode], len(w.Msg.Answer))
	}
}
X
go build -o finding . 2> build.log || { cat build.log >&2; exit 1; }

want='dns-version.cluster.local. TXT NOERROR 1
dns-version.cluster.local. A NXDOMAIN 0
_http._tcp.web.default.svc.cluster.local. SRV NOERROR 1
_tcp.web.default.svc.cluster.local. A NXDOMAIN 0
default.svc.cluster.local. A NOERROR 0
default.svc.cluster.local. TXT NXDOMAIN 0'
got=$(./finding)
echo "$got"
[ "$got" = "$want" ] || { printf 'changed: the output was:\n%s\n' "$want" >&2; exit 1; }
