//go:build privileged

package integration

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/lab"
)

// startAPI serves the EndpointSlices of kube-dns on the node, over HTTPS, with other addresses
// besides.
func startAPI(t *testing.T, node *lab.Node, others ...netip.Addr) (port string, ca []byte) {
	t.Helper()
	var endpoints []string
	for _, a := range slices.Concat(others, node.DNSPod.Addrs) {
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
func serveInCluster(t *testing.T, node *lab.Node, corefile string, others ...netip.Addr) *lab.Child {
	t.Helper()
	testns.Program(t, "unshare")
	port, ca := startAPI(t, node, others...)
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

// An instance that replaces another one knows which endpoints are dead, and the addresses of all
// although no API tells it. No query of it waits for a dead one.
func TestReplacementKnowsDeadEndpoints(t *testing.T) {
	node := newNode(t)
	dead := netip.MustParseAddr("10.1.0.99") // nobody is there; it is asked first
	text := func(n int) string {
		c := strings.Replace(corefile(steady, "", lab.ClusterDNS4), "forward . "+lab.UpstreamDNS4.String(),
			"upstream endpoints kube-system/kube-dns {\n        policy sequential\n        read_timeout 1s\n    }", 1)
		return strings.ReplaceAll(c, metricsAddress, metricsOf(n))
	}
	first := serveInCluster(t, node, text(0), dead)
	answeredBy(t, node, lab.Trackless, lab.ClusterDNS4)
	asked := 0
	ask := func() error {
		asked++
		query := newName(asked)
		response, err := node.Pods[0].Query(t.Context(), lab.UDP, lab.ClusterDNS4, query)
		if err == nil && len(response.Answer) != 1 {
			err = fmt.Errorf("%s: %v", query.Question[0].Name, response)
		}
		return err
	}
	eventually(t, "a miss is answered", ask)
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, network, address string) (conn net.Conn, err error) {
		err = node.Namespace.Do(func() error {
			var err error
			conn, err = new(net.Dialer).DialContext(ctx, network, address)
			return err
		})
		return conn, err
	}}}
	defer client.CloseIdleConnections()
	eventually(t, "a health check of the dead endpoint fails", func() error {
		response, err := client.Get("http://" + metricsOf(0) + "/metrics")
		if err != nil {
			return err
		}
		defer response.Body.Close()
		page, err := io.ReadAll(response.Body)
		if err == nil && !strings.Contains(string(page), `coredns_proxy_healthcheck_failures_total{proxy_name="upstream",to="10.1.0.99:53"}`) {
			err = errors.New("no such metric")
		}
		return err
	})

	// No API tells the next one anything.
	next, err := node.Serve(text(1))
	if err != nil {
		t.Fatal(err)
	}
	awaitAttached(t, next, metricsOf(1))
	if !strings.Contains(next.Output(), "(from the instance before)") {
		t.Errorf("the log of the next instance:\n%s", next.Output())
	}
	if err := first.Stop(time.Minute); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		if err := ask(); err != nil {
			t.Error(err)
		}
	}
	if n := sumOf(t, next, metricsOf(1), "coredns_upstream_retries_total"); n != 0 {
		t.Errorf("%v queries waited for a dead endpoint", n)
	}
}

// An instance that replaces one whose queries have failed over, since its upstream is dead, fails
// over before a miss has come to it.
func TestReplacementGoesOnFailingOver(t *testing.T) {
	node := newNode(t)
	spec := instanceSpec{listen: []netip.Addr{lab.ClusterDNS4}}
	text := func(n int) string {
		return strings.Replace(spec.corefile(n), "forward . "+lab.UpstreamDNS4.String(), "forward . "+lab.UpstreamDNS4.String()+" {\n        force_tcp\n    }", 1)
	}
	const line = "detached, DNS goes to the cluster: the upstreams do not answer misses"
	first, err := node.Serve(text(0))
	if err != nil {
		t.Fatal(err)
	}
	awaitAttached(t, first, metricsOf(0))
	run(t, node.Namespace, "nft", "add table inet fw; add chain inet fw o { type filter hook output priority 10; }; add rule inet fw o ip daddr 10.0.0.0/8 ip daddr != "+lab.ClusterDNS4.String()+" tcp dport 53 drop")
	end := misses(t, node, lab.ClusterDNS4)
	eventually(t, "the queries fail over", func() error {
		if !strings.Contains(first.Output(), line) {
			return errors.New(first.Output())
		}
		return nil
	})
	end()
	next, err := node.Serve(text(1))
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "those to the next instance do", func() error {
		if !strings.Contains(next.Output(), line) {
			return errors.New(next.Output())
		}
		return nil
	})
}
