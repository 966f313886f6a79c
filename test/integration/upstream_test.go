//go:build privileged

package integration

import (
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/lab"
)

// startAPI serves the EndpointSlices of kube-dns on the node, over HTTPS.
func startAPI(t *testing.T, node *lab.Node) (port string, ca []byte) {
	t.Helper()
	var endpoints []string
	for _, a := range node.DNSPod.Addrs {
		endpoints = append(endpoints, fmt.Sprintf(`{"metadata":{"name":"kube-dns-%[1]s"},"ports":[{"name":"dns","protocol":"UDP","port":53}],"endpoints":[{"addresses":[%[1]q]}]}`, a))
	}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path != "/apis/discovery.k8s.io/v1/namespaces/kube-system/endpointslices" || r.Header.Get("Authorization") != "Bearer token":
			http.Error(w, `{"message":"not allowed"}`, http.StatusForbidden)
		case r.URL.Query().Get("watch") == "true":
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		default:
			fmt.Fprintf(w, `{"metadata":{"resourceVersion":"1"},"items":[%s]}`, strings.Join(endpoints, ","))
		}
	}))
	if err := node.Namespace.Do(func() error {
		if err := server.Listener.Close(); err != nil {
			return err
		}
		var err error
		server.Listener, err = net.Listen("tcp", "127.0.0.1:0")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	server.StartTLS()
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
	_, port, err := net.SplitHostPort(server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
}

// serveInCluster starts the program with a service account, which only its own
// view of /run has.
func serveInCluster(t *testing.T, node *lab.Node, corefile string) *lab.Child {
	t.Helper()
	testns.Program(t, "unshare")
	port, ca := startAPI(t, node)
	dir := t.TempDir()
	for name, text := range map[string]string{"Corefile": corefile, "token": "token", "ca.crt": string(ca), "namespace": "kube-system"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const account = "/run/secrets/kubernetes.io/serviceaccount"
	cmd := exec.Command("unshare", "--mount", "sh", "-ec", `
		mount -t tmpfs none /run
		mkdir -p `+account+`
		cp "$1/token" "$1/ca.crt" "$1/namespace" `+account+`
		exec "$2" serve -conf "$1/Corefile" -control @trackless/control.sock`, "sh", dir, program)
	cmd.Env = append(os.Environ(), "KUBERNETES_SERVICE_HOST=127.0.0.1", "KUBERNETES_SERVICE_PORT="+port)
	child, err := node.Namespace.Start("trackless", cmd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := child.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			t.Error(err)
		}
		if t.Failed() {
			t.Log(child.Output())
		}
	})
	return child
}

// upstreamEntries are the lines of `conntrack -L` that have kube-dns's pod and
// no Service as a destination: what misses leave.
func upstreamEntries(t *testing.T, node *lab.Node) []string {
	t.Helper()
	var out []string
	for line := range strings.Lines(run(t, node.Namespace, "conntrack", "-L", "-f", "ipv4") + run(t, node.Namespace, "conntrack", "-L", "-f", "ipv6")) {
		for _, a := range node.DNSPod.Addrs {
			if _, original, _ := strings.Cut(line, "dst="); strings.HasPrefix(original, a.String()+" ") && strings.Contains(line, "dport=53 ") {
				out = append(out, line)
			}
		}
	}
	return out
}

func TestMissesGoStraightToEndpoints(t *testing.T) {
	for _, tc := range []struct {
		name, options string
		tracked       bool
	}{
		{"untracked", "", false},
		{"untracked, over TCP", "force_tcp", false},
		{"tracked", "tracked", true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			node := newNode(t)
			text := strings.Replace(corefile(steady, "", listenAddresses(node)...), "forward . "+lab.UpstreamDNS4.String(),
				"upstream endpoints kube-system/kube-dns {\n        read_timeout 500ms\n        expire 1s\n        "+tc.options+"\n    }", 1)
			child := serveInCluster(t, node, text)
			answeredBy(t, node, lab.Trackless, listenAddresses(node)...)
			ask := func(n int) error {
				name := fmt.Sprintf("svc-9-9-%d.lab.svc.cluster.local.", n)
				response, err := node.Pods[0].Query(t.Context(), lab.UDP, lab.ClusterDNS4, new(dns.Msg).SetQuestion(name, dns.TypeA))
				if err == nil && len(response.Answer) != 1 {
					err = fmt.Errorf("%s: %v", name, response)
				}
				return err
			}
			// The first connections may be older than the rules.
			run(t, node.Namespace, "conntrack", "-F")
			for n := range 20 {
				eventually(t, "a miss is answered", func() error { return ask(n) })
			}
			if entries := upstreamEntries(t, node); len(entries) > 0 != tc.tracked {
				t.Errorf("%d entries of misses, tracked: %t\n%s", len(entries), tc.tracked, strings.Join(entries, ""))
			}
			if os.Getenv("TRACKLESS_BIG_TABLE") != "" { // make bigtable
				// A full table stops misses that are tracked, and no others. Filling it takes
				// longer than the sockets of the misses before are kept, whose entries are in it.
				if _, err := node.Fill(t.Context(), nil); err != nil {
					t.Fatal(err)
				}
				if err := ask(100); (err != nil) != tc.tracked {
					t.Errorf("with a full table: error %v, tracked: %t", err, tc.tracked)
				}
			}
			if !strings.Contains(child.Output(), "(from the Kubernetes API)") {
				t.Error("the endpoints are not from the API")
			}
			if err := child.Stop(patience); err != nil {
				t.Fatal(err)
			}
			if tables := run(t, node.Namespace, "nft", "list", "tables"); strings.Contains(tables, "trackless-upstream") {
				t.Errorf("left behind:\n%s", tables)
			}
		})
	}
}
