package main

import (
	"flag"
	"fmt"
	"net"
	"time"

	"github.com/miekg/dns"
)

// answer is what `ask` prints for each name.
type answer struct {
	Name    string   `json:"name"`
	Rcode   string   `json:"rcode"`
	Records []string `json:"records"` // addresses
}

// ask prints a line of JSON for each name; it fails if one is not answered.
func ask(args []string) error {
	fs := flag.NewFlagSet("ask", flag.ExitOnError)
	server := fs.String("server", "10.96.0.10", "`address` to ask")
	proto := fs.String("proto", "udp", "udp or tcp")
	if err := fs.Parse(args); err != nil {
		return err
	}
	for _, name := range fs.Args() {
		a, err := exchange(*server, *proto, name, 2*time.Second)
		if err != nil {
			return fmt.Errorf("ask %s for %s over %s: %w", *server, name, *proto, err)
		}
		if err := printJSON(a); err != nil {
			return err
		}
	}
	return nil
}

func exchange(server, proto, name string, timeout time.Duration) (answer, error) {
	m := new(dns.Msg).SetQuestion(dns.Fqdn(name), dns.TypeA)
	m.SetEdns0(1232, false)
	c := dns.Client{Net: proto, Timeout: timeout}
	r, _, err := c.Exchange(m, net.JoinHostPort(server, "53"))
	if err != nil {
		return answer{}, err
	}
	a := answer{Name: name, Rcode: dns.RcodeToString[r.Rcode]}
	for _, rr := range r.Answer {
		if rr, ok := rr.(*dns.A); ok {
			a.Records = append(a.Records, rr.A.String())
		}
	}
	return a, nil
}
