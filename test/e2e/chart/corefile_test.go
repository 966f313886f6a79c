//go:build e2e

package chart

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/internal/testcert"
	"github.com/trackless-dns/trackless/internal/testns"
)

const patience = time.Minute

// serving is how `trackless serve` runs what a release renders.
type serving struct {
	ns        *testns.Namespace
	authority *testcert.Authority // of all certificates
	log       *logBuffer
}

type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}
func (l *logBuffer) String() string { l.mu.Lock(); defer l.mu.Unlock(); return l.b.String() }

var programs string // a directory for what a test builds

func TestMain(m *testing.M) {
	os.Exit(func() int {
		var err error
		if programs, err = os.MkdirTemp("", "trackless-chart-"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(programs)
		return m.Run()
	}())
}

// buildProgram builds the program under test, the first time it is asked.
var buildProgram = sync.OnceValues(func() (string, error) {
	path := filepath.Join(programs, "trackless")
	out, err := exec.Command("go", "build", "-o", path, "../../../cmd/trackless").CombinedOutput()
	if err != nil {
		err = fmt.Errorf("build the program: %w\n%s", err, out)
	}
	return path, err
})

// serve runs the program on the ConfigMap that these arguments render, in a
// network namespace of its own, with the files that the pod mounts. Addresses are
// those that its namespace has besides.
func serve(t *testing.T, addresses []string, args ...string) *serving {
	t.Helper()
	s := &serving{ns: testns.New(t), authority: testcert.New(t, "chart"), log: new(logBuffer)}
	manifest, complaints, err := template(t, args...)
	if err != nil {
		t.Fatalf("%v\n%s", err, complaints)
	}
	program, err := buildProgram()
	if err != nil {
		t.Fatal(err)
	}

	dir := t.TempDir()
	put := func(name string, content []byte) {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, content := range object(t, manifest, "ConfigMap")["data"].(map[string]any) {
		text := strings.NewReplacer("/etc/coredns", dir+"/etc/coredns", "/etc/trackless", dir+"/etc/trackless").Replace(content.(string))
		put("etc/coredns/"+name, []byte(text))
	}
	cert, key := s.authority.Issue(t, "dns.example", "localhost", "127.0.0.1")
	for _, name := range []string{"upstream-tls", "metrics-tls"} {
		put("etc/trackless/"+name+"/tls.crt", cert)
		put("etc/trackless/"+name+"/tls.key", key)
		put("etc/trackless/"+name+"/ca.crt", s.authority.PEM)
	}
	put("etc/trackless/upstream-ca.crt", s.authority.PEM)

	cmd := exec.Command(program, "serve", "-conf", filepath.Join(dir, "etc/coredns/Corefile"), "-control", "off")
	cmd.Env = append(os.Environ(), "KUBE_DNS_SERVICE_HOST=10.96.0.10")
	cmd.Stdout, cmd.Stderr = s.log, s.log
	s.ns.Do(func() {
		for _, address := range addresses {
			testns.Run(t, "ip", "addr", "add", address+"/32", "dev", "lo")
		}
		err = cmd.Start()
	})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("the program at its end: %v\n%s", err, s.log)
			}
		case <-time.After(patience):
			_ = cmd.Process.Kill()
			t.Errorf("the program does not end\n%s", s.log)
		}
	})
	// It prints its version once its Corefile is loaded and its listeners are there.
	for deadline := time.Now().Add(patience); !strings.Contains(s.log.String(), "CoreDNS v"); time.Sleep(10 * time.Millisecond) {
		select {
		case err := <-ended:
			ended <- nil
			t.Fatalf("the program does not load this Corefile: %v\n%s", err, s.log)
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("the program does not start\n%s", s.log)
		}
	}
	return s
}

// TestCorefiles has the program load the Corefile of every release, with the files
// that it names.
func TestCorefiles(t *testing.T) {
	for _, r := range releases {
		t.Run(r.name, func(t *testing.T) {
			t.Parallel()
			serve(t, nil, r.args...)
		})
	}
}

const (
	dotServer = "192.0.2.53"
	dohServer = "192.0.2.54"
	listened  = "10.96.0.10:53"
)

// resolver answers every A query with one address, over TLS and over HTTPS, with a
// certificate of an authority.
func (s *serving) resolver(t *testing.T, authority *testcert.Authority) {
	t.Helper()
	answer := func(query *dns.Msg) *dns.Msg {
		m := new(dns.Msg).SetReply(query)
		if q := query.Question[0]; q.Qtype == dns.TypeA {
			m.Answer = append(m.Answer, &dns.A{Hdr: dns.RR_Header{Name: q.Name, Rrtype: q.Qtype, Class: q.Qclass, Ttl: 30}, A: net.IPv4(192, 0, 2, 80)})
		}
		return m
	}
	config := &tls.Config{Certificates: []tls.Certificate{authority.KeyPair(t, "dns.example")}, NextProtos: []string{"h2", "http/1.1"}}
	var dot, doh net.Listener
	s.ns.Do(func() {
		var err, err2 error
		dot, err = net.Listen("tcp", dotServer+":853")
		doh, err2 = net.Listen("tcp", dohServer+":443")
		if err := errors.Join(err, err2); err != nil {
			t.Fatal(err)
		}
	})
	overTLS := &dns.Server{Listener: tls.NewListener(dot, &tls.Config{Certificates: config.Certificates}), Handler: dns.HandlerFunc(func(w dns.ResponseWriter, query *dns.Msg) {
		_ = w.WriteMsg(answer(query))
	})}
	// RFC 8484
	overHTTPS := &http.Server{TLSConfig: config, ErrorLog: log.New(io.Discard, "", 0), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		query := new(dns.Msg)
		body, err := io.ReadAll(r.Body)
		if err != nil || r.URL.Path != "/dns-query" || query.Unpack(body) != nil {
			http.Error(w, "no query", http.StatusBadRequest)
			return
		}
		wire, err := answer(query).Pack()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/dns-message")
		_, _ = w.Write(wire)
	})}
	done := make(chan struct{}, 2)
	go func() { _ = overTLS.ActivateAndServe(); done <- struct{}{} }()
	go func() { _ = overHTTPS.ServeTLS(doh, "", ""); done <- struct{}{} }()
	t.Cleanup(func() {
		dot.Close()
		_ = overHTTPS.Close()
		<-done
		<-done
	})
}

// ask asks the program from its namespace.
func (s *serving) ask(t *testing.T, name string) *dns.Msg {
	t.Helper()
	var conn net.Conn
	var err error
	s.ns.Do(func() { conn, err = net.DialTimeout("tcp", listened, patience) })
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	client := dns.Client{Timeout: patience}
	response, _, err := client.ExchangeWithConn(new(dns.Msg).SetQuestion(name, dns.TypeA), &dns.Conn{Conn: conn})
	if err != nil {
		t.Fatalf("%v\n%s", err, s.log)
	}
	return response
}

// TestResolversOverTLS: names outside of the cluster are asked over TLS and over
// HTTPS, and answered if the authority of the values has signed the certificate.
func TestResolversOverTLS(t *testing.T) {
	for _, tc := range []struct {
		name, server string
		set          string
		ours         bool // the resolver's certificate is of the authority of the values
		rcode        int
	}{
		{"DNS over TLS", "tls://" + dotServer, "external.tls.serverName=dns.example", true, dns.RcodeSuccess},
		{"with the name beside the address", "tls://" + dotServer + "%dns.example", "", true, dns.RcodeSuccess},
		{"DNS over HTTPS", "https://" + dohServer, "external.tls.serverName=dns.example", true, dns.RcodeSuccess},
		{"with a certificate of ours", "tls://" + dotServer, "external.tls.serverName=dns.example,external.tls.clientSecret=x", true, dns.RcodeSuccess},
		{"DNS over TLS with another name", "tls://" + dotServer, "external.tls.serverName=other.example", true, dns.RcodeServerFailure},
		{"DNS over TLS of another authority", "tls://" + dotServer, "external.tls.serverName=dns.example", false, dns.RcodeServerFailure},
		{"DNS over HTTPS of another authority", "https://" + dohServer, "external.tls.serverName=dns.example", false, dns.RcodeServerFailure},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			s := serve(t, []string{dotServer, dohServer}, "--set", "external.servers={"+tc.server+"},external.tls.ca.configMap=x", "--set", tc.set)
			authority := s.authority
			if !tc.ours {
				authority = testcert.New(t, "another")
			}
			s.resolver(t, authority)
			response := s.ask(t, "www.example.org.")
			if response.Rcode != tc.rcode || (tc.rcode == dns.RcodeSuccess) != (len(response.Answer) == 1) {
				t.Errorf("%v\n%s", response, s.log)
			}
		})
	}
}

// TestMetricsOverTLS reads the page as Prometheus does: with and without a
// certificate of its own, where one is wanted and where it is not.
func TestMetricsOverTLS(t *testing.T) {
	for _, tc := range []struct {
		name, set string
		shows     bool // the client shows a certificate
		refused   bool
	}{
		{"for anybody", "metrics.tls.secret=m", false, false},
		{"for clients with a certificate", "metrics.tls.secret=m,metrics.tls.clientCA.secret=ca", true, false},
		{"for clients without one", "metrics.tls.secret=m,metrics.tls.clientCA.secret=ca", false, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			s := serve(t, nil, "--set", tc.set)
			config := &tls.Config{RootCAs: s.authority.Pool()}
			if tc.shows {
				config.Certificates = []tls.Certificate{s.authority.KeyPair(t, "prometheus.example")}
			}
			transport := &http.Transport{TLSClientConfig: config, DialContext: func(ctx context.Context, network, address string) (conn net.Conn, err error) {
				s.ns.Do(func() { conn, err = new(net.Dialer).DialContext(ctx, network, address) })
				return conn, err
			}}
			defer transport.CloseIdleConnections()
			client := http.Client{Transport: transport, Timeout: patience}
			response, err := client.Get("https://127.0.0.1:9253/metrics")
			if tc.refused {
				if err == nil {
					response.Body.Close()
					t.Error("it answers a client that shows no certificate")
				} else if !strings.Contains(err.Error(), "certificate required") {
					t.Error(err)
				}
				return
			}
			if err != nil {
				t.Fatalf("%v\n%s", err, s.log)
			}
			defer response.Body.Close()
			page, err := io.ReadAll(response.Body)
			if err != nil || !bytes.Contains(page, []byte("coredns_trackless_build_info{")) {
				t.Errorf("%v\n%s", err, page)
			}
			if plain, err := (&http.Client{Transport: &http.Transport{DialContext: transport.DialContext}, Timeout: patience}).Get("http://127.0.0.1:9253/metrics"); err == nil {
				plain.Body.Close()
				if plain.StatusCode != http.StatusBadRequest {
					t.Errorf("without TLS it answers %s", plain.Status)
				}
			}
		})
	}
}
