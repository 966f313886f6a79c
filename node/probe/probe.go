// Package probe asks DNS servers a name as a pod does.
package probe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// Report is what became of a question to some servers. Its JSON is that of
// `probe dns`.
type Report struct {
	Name    string     `json:"name"`
	Type    string     `json:"type"`
	OK      bool       `json:"ok"`
	Answers []Exchange `json:"answers"`
}

// Exchange is one query and what became of it.
type Exchange struct {
	Server    string   `json:"server"`
	Transport string   `json:"transport"`
	OK        bool     `json:"ok"`
	Rcode     string   `json:"rcode,omitempty"`
	Records   []string `json:"records,omitempty"`
	Micros    int64    `json:"microseconds"`
	Error     string   `json:"error,omitempty"`
}

// DNS asks each server over UDP and over TCP, and waits for each answer at most
// that long.
func DNS(ctx context.Context, servers []netip.AddrPort, name string, qtype uint16, timeout time.Duration) Report {
	r := Report{Name: dns.Fqdn(name), Type: dns.TypeToString[qtype], OK: true}
	for _, server := range servers {
		for _, transport := range []string{"udp", "tcp"} {
			e := ask(ctx, server, transport, r.Name, qtype, timeout)
			r.Answers = append(r.Answers, e)
			r.OK = r.OK && e.OK
		}
	}
	return r
}

// Failures says which servers did not answer, and why.
func (r *Report) Failures() []string {
	var failed []string
	for _, e := range r.Answers {
		if !e.OK {
			failed = append(failed, fmt.Sprintf("%s over %s: %s", e.Server, e.Transport, e.Error))
		}
	}
	return failed
}

// ask asks once; the error in the result says what was wrong.
func ask(ctx context.Context, server netip.AddrPort, transport, name string, qtype uint16, timeout time.Duration) Exchange {
	e := Exchange{Server: server.String(), Transport: transport}
	query := new(dns.Msg).SetQuestion(name, qtype)
	query.SetEdns0(1232, false) // RFC 9715, section 3.1
	client := dns.Client{Net: transport, Timeout: timeout}
	response, took, err := client.ExchangeContext(ctx, query, e.Server)
	e.Micros = took.Microseconds()
	if err != nil {
		e.Error = err.Error()
		if netErr := net.Error(nil); errors.As(err, &netErr) && netErr.Timeout() {
			e.Error = fmt.Sprintf("no answer within %s", timeout)
		}
		return e
	}
	e.Rcode = dns.RcodeToString[response.Rcode]
	for _, rr := range response.Answer {
		if rr.Header().Rrtype == qtype {
			e.Records = append(e.Records, strings.TrimPrefix(rr.String(), rr.Header().String()))
		}
	}
	switch {
	case response.Rcode != dns.RcodeSuccess:
		e.Error = "the answer is " + e.Rcode
	case len(e.Records) == 0:
		e.Error = "the answer has no record of the type"
	default:
		e.OK = true
	}
	return e
}

// CheckName refuses what is no domain name.
func CheckName(name string) error {
	if _, ok := dns.IsDomainName(name); !ok || name == "" || strings.ContainsAny(name, " \t\n") {
		return fmt.Errorf("%q is no domain name", name)
	}
	return nil
}

// ServerAddress reads an address, with port 53 if it names none.
func ServerAddress(s string) (netip.AddrPort, error) {
	if addr, err := netip.ParseAddr(s); err == nil {
		return netip.AddrPortFrom(addr, 53), nil
	}
	return netip.ParseAddrPort(s)
}

// ServersOf returns the name servers of a resolv.conf(5).
func ServersOf(file string) ([]netip.AddrPort, error) {
	config, err := dns.ClientConfigFromFile(file)
	if err != nil {
		return nil, fmt.Errorf("read the name servers: %w", err)
	}
	var servers []netip.AddrPort
	for _, s := range config.Servers {
		server, err := ServerAddress(s)
		if err != nil {
			return nil, fmt.Errorf("read the name servers: %s has %q, which is no address", file, s)
		}
		servers = append(servers, server)
	}
	if len(servers) == 0 {
		return nil, fmt.Errorf("%s names no server", file)
	}
	return servers, nil
}
