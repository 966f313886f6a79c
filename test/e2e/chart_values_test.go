//go:build e2e

package e2e

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/vishvananda/netns"
	"go.yaml.in/yaml/v3"

	"github.com/trackless-dns/trackless/internal/testcert"
	"github.com/trackless-dns/trackless/internal/thread"
)

const outside = "172.31.77.1" // an address of the control plane, which nodes and pods reach

// inControlPlane runs fn in the network namespace of the control plane. Sockets that
// it opens stay there.
func inControlPlane(t *testing.T, fn func() error) error {
	t.Helper()
	return thread.Elsewhere(func() error {
		ns, err := netns.GetFromName("k8-cp")
		if err != nil {
			return err
		}
		defer ns.Close()
		if err := netns.Set(ns); err != nil {
			return err
		}
		return fn()
	})
}

// resolverOverTLS answers below example.org on port 853, with another address than
// the resolver of kube-dns, and counts its queries.
func resolverOverTLS(t *testing.T, certificate tls.Certificate) *atomic.Int64 {
	t.Helper()
	var listener net.Listener
	err := inControlPlane(t, func() (err error) {
		listener, err = tls.Listen("tcp", outside+":853", &tls.Config{Certificates: []tls.Certificate{certificate}})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	queries := new(atomic.Int64)
	server := &dns.Server{Listener: listener, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, query *dns.Msg) {
		queries.Add(1)
		m := new(dns.Msg).SetReply(query)
		switch q := query.Question[0]; {
		case !dns.IsSubDomain("example.org.", q.Name):
			m.Rcode = dns.RcodeNameError
		case q.Qtype == dns.TypeA:
			m.Answer = append(m.Answer, &dns.A{Hdr: dns.RR_Header{Name: q.Name, Rrtype: q.Qtype, Class: q.Qclass, Ttl: 30}, A: net.IPv4(192, 0, 2, 90)})
		}
		_ = w.WriteMsg(m)
	})}
	done := make(chan struct{})
	go func() { _ = server.ActivateAndServe(); close(done) }()
	t.Cleanup(func() { listener.Close(); <-done })
	return queries
}

// create makes an object that is gone with the test.
func create(t *testing.T, args ...string) {
	t.Helper()
	apply(t, lab.must(t, append(append([]string{"create"}, args...), "--dry-run=client", "-o", "yaml")...))
}

// page reads the metrics of a node over TLS, from outside of the cluster.
func page(t *testing.T, node int, config *tls.Config) (string, error) {
	t.Helper()
	var body []byte
	err := inControlPlane(t, func() error {
		address := fmt.Sprintf("172.31.77.1%d:9253", node)
		conn, err := net.DialTimeout("tcp", address, 5*time.Second)
		if err != nil {
			return err
		}
		secure := tls.Client(conn, config)
		defer secure.Close()
		if err := secure.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
			return err
		}
		request, err := http.NewRequest(http.MethodGet, "https://"+address+"/metrics", nil)
		if err != nil {
			return err
		}
		transport := http.Transport{DialTLSContext: func(context.Context, string, string) (net.Conn, error) { return secure, nil }, DisableKeepAlives: true}
		response, err := transport.RoundTrip(request)
		if err != nil {
			return err
		}
		defer response.Body.Close()
		body, err = io.ReadAll(response.Body)
		return err
	})
	return string(body), err
}

// TestChartValues installs with other names, with a resolver over TLS and the
// metrics over TLS, both with an authority of their own, has Helm test it, rolls
// back past Helm, and removes it.
func TestChartValues(t *testing.T) {
	authority := testcert.New(t, "e2e")
	queries := resolverOverTLS(t, authority.KeyPair(t, "resolver.example"))
	dir := t.TempDir()
	cert, key := authority.Issue(t, "metrics.example")
	for name, content := range map[string][]byte{"tls.crt": cert, "tls.key": key, "ca.crt": authority.PEM} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	create(t, "-n", namespace, "secret", "tls", "trackless-metrics", "--cert="+dir+"/tls.crt", "--key="+dir+"/tls.key")
	create(t, "-n", namespace, "configmap", "authority", "--from-file=ca.crt="+dir+"/ca.crt")

	const daemonSet = "node-dns"
	change := func(args ...string) (string, error) {
		return helm(t.Context(), append([]string{"upgrade", "--install", "trackless", "../../deploy/helm/trackless", "--wait", "--timeout=3m",
			"--set", "image.repository=local.invalid/trackless,image.tag=e2e,nameOverride=dns,fullnameOverride=" + daemonSet,
			"--set", "commonLabels.team=network,commonAnnotations.owner=operator,serviceAccount.annotations.a=b",
			"--set", "external.servers={tls://" + outside + "},external.tls.serverName=resolver.example,external.tls.ca.configMap=authority",
			"--set", "metrics.tls.secret=trackless-metrics,metrics.tls.clientCA.configMap=authority"}, args...)...)
	}
	uninstalled(t)
	if out, err := change("--set", "podAnnotations.step=one"); err != nil {
		describe(t)
		t.Fatalf("helm upgrade: %v\n%s", err, out)
	}
	rolledOut(t, daemonSet)

	t.Run("names", func(t *testing.T) {
		for _, object := range []string{"daemonset/" + daemonSet, "configmap/" + daemonSet, "service/" + daemonSet, "serviceaccount/" + daemonSet,
			"role/" + daemonSet, "rolebinding/" + daemonSet, "service/kube-dns-upstream"} {
			got := lab.must(t, "-n", namespace, "get", object, "-o", `jsonpath={.metadata.labels.app\.kubernetes\.io/name} {.metadata.labels.team} {.metadata.annotations.owner}`)
			if got != "dns network operator" {
				t.Errorf("%s: labels and annotation are %q", object, got)
			}
		}
	})
	t.Run("resolver over TLS", func(t *testing.T) {
		for i, node := range nodes {
			name := fmt.Sprintf("www%d.example.org", i)
			eventually(t, node+" asks for "+name, 30*time.Second, func() error {
				got, err := lab.ask(t.Context(), node, clusterDNS, "udp", name, "kubernetes.default.svc.cluster.local")
				if err != nil {
					return err
				}
				if len(got) != 2 || strings.Join(got[0].Records, " ") != "192.0.2.90" || strings.Join(got[1].Records, " ") != "10.96.0.1" {
					return fmt.Errorf("got %+v", got)
				}
				return nil
			})
			untracked(t, node, clusterDNS)
		}
		if queries.Load() < int64(len(nodes)) {
			t.Errorf("the resolver had %d queries", queries.Load())
		}
	})
	t.Run("metrics over TLS", func(t *testing.T) {
		for i := range nodes {
			ours := &tls.Config{RootCAs: authority.Pool(), ServerName: "metrics.example", Certificates: []tls.Certificate{authority.KeyPair(t, "prometheus.example")}}
			out, err := page(t, i+1, ours)
			if want := fmt.Sprintf("coredns_notrack_attached{address=%q} 1", clusterDNS); err != nil || !strings.Contains(out, want) {
				t.Errorf("%v; no %s on the page", err, want)
			}
			ours.Certificates = nil
			if _, err := page(t, i+1, ours); err == nil {
				t.Error("a client without a certificate reads the page")
			}
		}
	})
	t.Run("helm test", func(t *testing.T) {
		out, err := helm(t.Context(), "test", "trackless", "--timeout=2m")
		if err != nil || !strings.Contains(out, "Succeeded") {
			describe(t)
			t.Errorf("helm test: %v\n%s", err, out)
		}
	})
	t.Run("rollback past Helm", func(t *testing.T) {
		if out, err := change("--set", "podAnnotations.step=two"); err != nil {
			t.Fatalf("helm upgrade: %v\n%s", err, out)
		}
		lab.must(t, "-n", namespace, "rollout", "undo", "daemonset/"+daemonSet)
		rolledOut(t, daemonSet)
		out, err := change("--set", "podAnnotations.step=three")
		if err == nil || !strings.Contains(out, `conflict with "kubectl"`) {
			t.Errorf("helm upgrade after rollout undo: want a conflict: %v\n%s", err, out)
		}
		if out, err := change("--set", "podAnnotations.step=three", "--force-conflicts"); err != nil {
			t.Errorf("helm upgrade --force-conflicts: %v\n%s", err, out)
		}
		rolledOut(t, daemonSet)
		// The fields are Helm's again.
		if out, err := change("--set", "podAnnotations.step=four"); err != nil {
			t.Errorf("helm upgrade after --force-conflicts: %v\n%s", err, out)
		}
	})

	if out, err := helm(t.Context(), "uninstall", "trackless", "--wait", "--timeout=2m"); err != nil {
		t.Fatalf("helm uninstall: %v\n%s", err, out)
	}
	eventually(t, "no object of the release", time.Minute, func() error {
		out, err := lab.kubectl(t.Context(), "get", "all,configmaps,secrets,serviceaccounts,roles,rolebindings,controllerrevisions", "-A", "-o", "name",
			"-l", "app.kubernetes.io/instance=trackless")
		if out != "" {
			err = errors.New("there are " + out)
		}
		return err
	})
	nothingLeft(t)
}

// TestPodSecurity has the API server hold the pods of the chart against the Pod
// Security Standards that docs/security.md names for them.
func TestPodSecurity(t *testing.T) {
	for _, level := range []string{"baseline", "restricted"} {
		create(t, "namespace", level)
		lab.must(t, "label", "namespace", level, "pod-security.kubernetes.io/enforce="+level)
	}
	for _, tc := range []struct {
		name, level string
		template    string // with the pod
		set         string
		taken       bool
	}{
		{"helm test", "restricted", "tests/dns", "mode=cluster-ip", true},
		{"DaemonSet", "baseline", "daemonset", "mode=cluster-ip", false},
		{"DaemonSet in mode cilium", "baseline", "daemonset", "mode=cilium", true},
		{"DaemonSet in mode cilium, more than it can", "restricted", "daemonset", "mode=cilium", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			manifest, err := helm(t.Context(), "template", "trackless", "../../deploy/helm/trackless", "-s", "templates/"+tc.template+".yaml", "--set", tc.set)
			if err != nil {
				t.Fatalf("%v\n%s", err, manifest)
			}
			var object struct{ Spec map[string]any }
			if err := yaml.Unmarshal([]byte(manifest), &object); err != nil {
				t.Fatal(err)
			}
			spec := object.Spec
			if template, ok := spec["template"].(map[string]any); ok {
				spec = template["spec"].(map[string]any)
			}
			delete(spec, "serviceAccountName") // it is not there
			pod, err := yaml.Marshal(map[string]any{"apiVersion": "v1", "kind": "Pod", "metadata": map[string]string{"name": "judged", "namespace": tc.level}, "spec": spec})
			if err != nil {
				t.Fatal(err)
			}
			eventually(t, "the API server judges the pod", 30*time.Second, func() error {
				_, err := lab.kubectlWith(t.Context(), string(pod), "apply", "--dry-run=server", "-f", "-")
				switch refused := err != nil && strings.Contains(err.Error(), "violates PodSecurity"); {
				case refused && tc.taken, err == nil && !tc.taken:
					return fmt.Errorf("a namespace with the level %s takes it: %t, want %t (%w)", tc.level, err == nil, tc.taken, err)
				case refused:
					return nil
				}
				return err // such as a namespace that has no service account yet
			})
		})
	}
}
