package probe

import (
	"bytes"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/cmd/trackless/cli"
	"github.com/trackless-dns/trackless/internal/testport"
	"github.com/trackless-dns/trackless/node/probe"
)

// nameServer answers on a port of 127.0.0.1 over UDP and TCP, and over TCP
// differently if overTCP is not nil.
func nameServer(t *testing.T, answer, overTCP dns.HandlerFunc) string {
	t.Helper()
	streams, packets := testport.Both(t, net.ListenConfig{}, "127.0.0.1")
	if overTCP == nil {
		overTCP = answer
	}
	for _, server := range []*dns.Server{{PacketConn: packets, Handler: answer}, {Listener: streams, Handler: overTCP}} {
		started := make(chan struct{})
		server.NotifyStartedFunc = func() { close(started) }
		done := make(chan error, 1)
		go func() { done <- server.ActivateAndServe() }()
		select {
		case <-started:
		case err := <-done:
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := server.Shutdown(); err != nil {
				t.Error(err)
			}
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
	return packets.LocalAddr().String()
}

func addressAnswer(w dns.ResponseWriter, query *dns.Msg) {
	m := new(dns.Msg).SetReply(query)
	if q := query.Question[0]; q.Qtype == dns.TypeA {
		m.Answer = append(m.Answer, &dns.A{Hdr: dns.RR_Header{Name: q.Name, Rrtype: q.Qtype, Class: q.Qclass, Ttl: 5}, A: net.IPv4(192, 0, 2, 7)})
	}
	_ = w.WriteMsg(m)
}

func nameError(w dns.ResponseWriter, query *dns.Msg) {
	_ = w.WriteMsg(new(dns.Msg).SetRcode(query, dns.RcodeNameError))
}

func noAnswer(dns.ResponseWriter, *dns.Msg) {}

func TestProbeDNS(t *testing.T) {
	good := nameServer(t, addressAnswer, nil)
	resolv := filepath.Join(t.TempDir(), "resolv.conf")
	for name, content := range map[string]string{resolv: "nameserver 127.0.0.1\n", resolv + ".empty": "search example.org\n", resolv + ".wrong": "nameserver here\n"} {
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct {
		name    string
		options dnsOptions
		status  int
		out     []string // each is in the output
		err     string   // is in the error
	}{
		{"answered", dnsOptions{servers: []string{good}}, 0, []string{good + " over udp: name.example. A is 192.0.2.7 (", good + " over tcp: name.example. A is 192.0.2.7 ("}, ""},
		{"lower-case type", dnsOptions{servers: []string{good}, qtype: "a"}, 0, []string{"is 192.0.2.7"}, ""},
		{"no record of the type", dnsOptions{servers: []string{good}, qtype: "AAAA"}, cli.ExitFailure, nil, good + " over udp: the answer has no record of the type"},
		{"no such name", dnsOptions{servers: []string{nameServer(t, nameError, nil)}}, cli.ExitFailure, nil, "over udp: the answer is NXDOMAIN"},
		{"not over TCP", dnsOptions{servers: []string{nameServer(t, addressAnswer, nameError)}}, cli.ExitFailure, []string{"over udp: name.example. A is 192.0.2.7"}, "over tcp: the answer is NXDOMAIN"},
		{"one of two servers", dnsOptions{servers: []string{good, nameServer(t, nameError, nil)}}, cli.ExitFailure, []string{good + " over tcp: "}, "the answer is NXDOMAIN"},
		{"silence", dnsOptions{servers: []string{nameServer(t, noAnswer, addressAnswer)}, timeout: 50 * time.Millisecond}, cli.ExitFailure, []string{"over tcp: "}, "over udp: no answer within 50ms"},
		{"nobody listens", dnsOptions{servers: []string{"127.0.0.1:1"}}, cli.ExitFailure, nil, "127.0.0.1:1 over udp: "},
		{"empty resolv.conf", dnsOptions{resolv: resolv + ".empty"}, cli.ExitFailure, nil, "names no server; name a server with --server"},
		{"no resolv.conf", dnsOptions{resolv: resolv + ".none"}, cli.ExitFailure, nil, "no such file or directory"},
		{"wrong resolv.conf", dnsOptions{resolv: resolv + ".wrong"}, cli.ExitFailure, nil, `has "here", which is no address`},
		{"type", dnsOptions{qtype: "B"}, cli.ExitUsage, nil, `--type "B": it takes a record type`},
		{"server", dnsOptions{servers: []string{"kube-dns"}}, cli.ExitUsage, nil, `--server "kube-dns": it takes an IP address`},
		{"timeout", dnsOptions{timeout: -1}, cli.ExitUsage, nil, "--timeout is more than 0"},
		{"output", dnsOptions{output: "xml"}, cli.ExitUsage, nil, `--output is table or json, not "xml"`},
		{"name", dnsOptions{name: "a..b"}, cli.ExitUsage, nil, `"a..b" is no domain name`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			o := tc.options
			if o.name == "" {
				o.name = "name.example"
			}
			if o.qtype == "" {
				o.qtype = "A"
			}
			if o.output == "" {
				o.output = "table"
			}
			if o.timeout == 0 {
				o.timeout = 10 * time.Second
			}
			var out bytes.Buffer
			err := runDNS(t.Context(), o, &out)
			if got := cli.ExitStatus(err); got != tc.status {
				t.Errorf("exit status %d, want %d (%v)", got, tc.status, err)
			}
			if err == nil {
				err = errors.New("")
			}
			if !strings.Contains(err.Error(), tc.err) {
				t.Errorf("error %q, want %q in it", err, tc.err)
			}
			for _, want := range tc.out {
				if !strings.Contains(out.String(), want) {
					t.Errorf("output %q, want %q in it", &out, want)
				}
			}
		})
	}

	t.Run("json", func(t *testing.T) {
		var out bytes.Buffer
		o := dnsOptions{name: "name.example", qtype: "A", servers: []string{good}, output: "json", timeout: 10 * time.Second}
		if err := runDNS(t.Context(), o, &out); err != nil {
			t.Fatal(err)
		}
		var r probe.Report
		if err := json.Unmarshal(out.Bytes(), &r); err != nil {
			t.Fatal(err)
		}
		if !r.OK || len(r.Answers) != 2 || r.Answers[1].Transport != "tcp" || r.Answers[1].Rcode != "NOERROR" || r.Answers[1].Records[0] != "192.0.2.7" {
			t.Errorf("%+v", r)
		}
	})
}
