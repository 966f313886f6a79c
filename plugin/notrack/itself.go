package notrack

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/coredns/caddy"
	"github.com/coredns/caddy/caddyfile"
	"github.com/coredns/coredns/core/dnsserver"

	"github.com/trackless-dns/trackless/conntrack/host"
	"github.com/trackless-dns/trackless/iptables"
)

// A block that forwards to an address of its own answers nobody: each miss comes
// back to it. The loop plugin finds that out later and by a query, and also loops
// that go through other servers; this is for those that can be read.

// target is a server that a block asks, as the Corefile has it.
type target struct {
	server netip.AddrPort
	words  string // those that name it
	line   int
}

// refuseItself returns an error for a block whose queries would come back to it.
func refuseItself(c *caddy.Controller, b block) error {
	corefile := loadedCorefile()
	blocks, err := caddyfile.Parse(corefile.Path, strings.NewReader(corefile.Contents), nil)
	if err != nil {
		return err
	}
	if c.ServerBlockIndex >= len(blocks) {
		return nil // nothing is started
	}
	everywhere := slices.ContainsFunc(dnsserver.GetConfig(c).ListenHosts, isWildcard)
	for _, t := range targetsOf(blocks[c.ServerBlockIndex].Tokens) {
		if !listensAt(b.plan.Listen, everywhere, t.server) {
			continue
		}
		return fmt.Errorf("%s:%d: %s: this server block itself listens on %s, so that every miss would come back to it; name the server that is to be asked, for kube-dns the address of a Service that is no listen address (kube-dns-upstream)",
			path.Base(corefile.Path), t.line, t.words, t.server)
	}
	return nil
}

// listensAt reports whether a query to the server comes back. A socket for all
// addresses gets those of this node at which nobody else has one.
func listensAt(listen []iptables.Endpoint, everywhere bool, server netip.AddrPort) bool {
	at := func(e iptables.Endpoint) bool { return e.AddrPort() == server }
	if slices.ContainsFunc(listen, at) {
		return true
	}
	port := func(e iptables.Endpoint) bool { return e.Port == server.Port() }
	return everywhere && slices.ContainsFunc(listen, port) && isLocal(server.Addr()) && !host.HasListener("/proc/thread-self", server)
}

func isWildcard(listen string) bool {
	a, err := netip.ParseAddr(listen)
	return listen == "" || err == nil && a.IsUnspecified()
}

// isLocal reports whether an address is this node's.
func isLocal(a netip.Addr) bool {
	if a.IsLoopback() {
		return true
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return false
	}
	return slices.ContainsFunc(addrs, func(have net.Addr) bool {
		p, err := netip.ParsePrefix(have.String())
		return err == nil && p.Addr() == a
	})
}

// targetsOf are the servers that a block's directives forward, grpc and upstream
// name, also by a file such as /etc/resolv.conf or by the environment.
func targetsOf(tokens map[string][]caddyfile.Token) []target {
	var out []target
	add := func(words string, line int, named string) {
		for _, server := range endpointsOf(named) {
			said := words
			if !strings.Contains(words, server.Addr().String()) {
				said += " (" + server.Addr().String() + ")"
			}
			out = append(out, target{server, said, line})
		}
	}
	for _, directive := range []string{"forward", "grpc"} {
		for _, words := range linesOf(tokens[directive], directive) {
			for _, w := range words[min(2, len(words)):] { // the zone comes first
				add(directive+" "+words[1].Text+" "+w.Text, w.Line, w.Text)
			}
		}
	}
	lines := linesOf(tokens["upstream"], "upstream", "fallback")
	for _, words := range lines {
		switch {
		case words[0].Text == "fallback":
			for _, w := range words[1:] {
				add("upstream … fallback "+w.Text, w.Line, w.Text)
			}
		case len(words) > 2 && words[1].Text == "service":
			variable := strings.ToUpper(strings.ReplaceAll(path.Base(words[2].Text), "-", "_")) + "_SERVICE_HOST"
			add("upstream service "+words[2].Text, words[2].Line, os.Getenv(variable))
		}
	}
	return out
}

// linesOf returns the lines that begin with one of the words, up to a brace.
func linesOf(tokens []caddyfile.Token, begins ...string) [][]caddyfile.Token {
	var out [][]caddyfile.Token
	line := -1
	open := false
	for _, t := range tokens {
		switch {
		case t.Line != line:
			line = t.Line
			if open = slices.Contains(begins, t.Text); open {
				out = append(out, []caddyfile.Token{t})
			}
		case t.Text == "{":
			open = false
		case open:
			last := len(out) - 1
			out[last] = append(out[last], t)
		}
	}
	return out
}
