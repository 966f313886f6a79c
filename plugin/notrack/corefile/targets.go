// Package corefile reads from the blocks of a Corefile at which addresses they listen and
// which servers they ask.
package corefile

import (
	"net/netip"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/coredns/caddy"
	"github.com/coredns/caddy/caddyfile"
	hostparse "github.com/coredns/coredns/plugin/pkg/parse"

	"github.com/trackless-dns/trackless/agent/services"
)

// Target is a server that a block asks.
type Target struct {
	Server netip.AddrPort
	Words  string // the words of the Corefile that name it
	Line   int
}

// Targets returns the servers of a block's directives forward, grpc and upstream. A file
// such as /etc/resolv.conf, or the environment, may name a server, too.
func Targets(tokens map[string][]caddyfile.Token) []Target {
	var out []Target
	add := func(words string, line int, named string) {
		for _, server := range endpointsOf(named) {
			text := words
			if !strings.Contains(words, server.Addr().String()) {
				text += " (" + server.Addr().String() + ")"
			}
			out = append(out, Target{server, text, line})
		}
	}
	for _, directive := range []string{"forward", "grpc"} {
		for _, words := range linesOf(tokens[directive], directive) {
			for _, w := range words[min(2, len(words)):] { // words[1] is the zone
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
			add("upstream service "+words[2].Text, words[2].Line, os.Getenv(services.HostVariable(path.Base(words[2].Text))))
		}
	}
	return out
}

// linesOf returns the lines that begin with one of the words, each up to its brace.
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

// BoundTo returns the addresses and interfaces of bind directives, without their
// exceptions.
func BoundTo(tokens []caddyfile.Token) []string {
	var words, except []string
	excepting := false
	for _, token := range tokens {
		switch {
		case token.Text == "bind", token.Text == "}":
			excepting = false
		case token.Text == "except":
			excepting = true
		case token.Text == "{":
		case excepting:
			except = append(except, token.Text)
		default:
			words = append(words, token.Text)
		}
	}
	return slices.DeleteFunc(words, func(w string) bool { return slices.Contains(except, w) })
}

// endpointsOf returns the servers that a word of a forward directive names: ADDRESS,
// TRANSPORT://ADDRESS:PORT, or a file such as /etc/resolv.conf. Other words name none.
func endpointsOf(word string) []netip.AddrPort {
	servers, err := hostparse.HostPortOrFile(word)
	if err != nil {
		return nil
	}
	var out []netip.AddrPort
	for _, s := range servers {
		_, s = hostparse.Transport(s)
		if ap, err := netip.ParseAddrPort(s); err == nil {
			out = append(out, netip.AddrPortFrom(ap.Addr().WithZone(""), ap.Port()))
		}
	}
	return out
}

// Forwards returns the upstreams of the blocks with a directive, in the order of the
// Corefile: the servers of `forward`, and the fallbacks of `upstream`.
func Forwards(blocks []caddyfile.ServerBlock, with string) []netip.AddrPort {
	var out []netip.AddrPort
	for _, b := range blocks {
		if len(b.Tokens[with]) == 0 {
			continue
		}
		for _, token := range b.Tokens["forward"] {
			out = append(out, endpointsOf(token.Text)...)
		}
		for i, token := range b.Tokens["upstream"] {
			out = append(out, endpointsOf(token.Text)...)
			if i == 2 { // the Service
				service := path.Base(token.Text)
				for _, name := range []string{service + "-upstream", service} {
					out = append(out, endpointsOf(os.Getenv(services.HostVariable(name)))...)
				}
			}
		}
	}
	return out
}

// MaxConcurrent returns the smallest number of max_concurrent in the blocks, of the
// directives forward and upstream; 0 without one.
func MaxConcurrent(blocks []caddyfile.ServerBlock) int {
	least := 0
	for _, b := range blocks {
		for _, directive := range []string{"forward", "upstream"} {
			for _, words := range linesOf(b.Tokens[directive], "max_concurrent") {
				if len(words) < 2 {
					continue
				}
				if n, err := strconv.Atoi(words[1].Text); err == nil && n > 0 && (least == 0 || n < least) {
					least = n
				}
			}
		}
	}
	return least
}

// Loaded returns the Corefile that caddy starts or has started last. Only caddy's callbacks
// may call it: caddy changes its list without a lock.
func Loaded() (path, contents string) {
	for _, instance := range slices.Backward(caddy.Instances()) {
		if in := instance.Caddyfile(); in != nil {
			return in.Path(), string(in.Body())
		}
	}
	return "", ""
}
