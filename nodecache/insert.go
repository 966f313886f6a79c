package nodecache

import (
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/coredns/caddy/caddyfile"
)

// Insert adds a notrack block to each server block of a Corefile that listens on an
// address of -localip. The other flags decide what the notrack blocks say. A Corefile that
// has a notrack block itself is returned unchanged, and so is every Corefile with
// -setupiptables=false. With anySource, clients of all networks are served, as node-cache
// does.
//
// path is the path of the Corefile, to which its imports are relative. directives are the
// known directives. A Corefile with others is an error.
func (o *Options) Insert(path, corefile string, directives []string, anySource bool) (string, error) {
	parsed, err := caddyfile.Parse(path, strings.NewReader(corefile), directives)
	if err != nil {
		return "", err
	}
	if !o.SetupIPTables {
		return corefile, nil
	}
	for _, block := range parsed {
		if len(block.Tokens["notrack"]) > 0 {
			return corefile, nil
		}
	}
	lines := strings.SplitAfter(corefile, "\n")
	var out strings.Builder
	done := 0 // number of lines that are in out
	for _, s := range scan(path, corefile) {
		var text string
		// Both lists have the blocks in the same order. In parsed, blocks of imported
		// files are among them.
		i := slices.IndexFunc(parsed, func(b caddyfile.ServerBlock) bool { return slices.Equal(b.Keys, s.keys) })
		if i < 0 {
			text = o.directive(o.LocalIPs, anySource)
		} else {
			if addrs := o.listening(parsed[i]); len(addrs) > 0 {
				text = o.directive(addrs, anySource)
			}
			parsed = parsed[i+1:]
		}
		for ; done < min(s.end, len(lines)); done++ {
			out.WriteString(lines[done])
		}
		if text != "" && !strings.HasSuffix(out.String(), "\n") {
			out.WriteByte('\n')
		}
		out.WriteString(text)
	}
	for ; done < len(lines); done++ {
		out.WriteString(lines[done])
	}
	return out.String(), nil
}

// directive returns the notrack block for the listen addresses.
func (o *Options) directive(addrs []netip.Addr, anySource bool) string {
	var b strings.Builder
	fmt.Fprintf(&b, "    notrack %s {\n", addressList(addrs))
	switch {
	case !o.SetupInterface:
		b.WriteString("        interface none\n")
	case o.InterfaceName != DefaultInterface:
		fmt.Fprintf(&b, "        interface %s\n", o.InterfaceName)
	}
	if o.HealthPort != 0 {
		b.WriteString("        untrack")
		for _, a := range o.LocalIPs {
			b.WriteString(" " + netip.AddrPortFrom(a, o.HealthPort).String())
		}
		b.WriteByte('\n')
	}
	fmt.Fprintf(&b, "        sync %s\n", o.SyncInterval.Round(time.Millisecond))
	if anySource {
		b.WriteString("        sources any\n")
	}
	if o.SkipTeardown {
		b.WriteString("        keep\n")
	}
	b.WriteString("    }\n")
	return b.String()
}

// listening returns the addresses of -localip on which the block listens, with a transport
// that notrack knows.
func (o *Options) listening(block caddyfile.ServerBlock) []netip.Addr {
	for _, key := range block.Keys {
		transport, _, found := strings.Cut(key, "://")
		if found && !slices.Contains([]string{"dns", "tls", "https", "grpc"}, transport) {
			return nil
		}
	}
	bind := block.Tokens["bind"]
	if len(bind) == 0 {
		return o.LocalIPs // it listens everywhere
	}
	var bound []netip.Addr
	except := false
	for _, token := range bind {
		a, err := netip.ParseAddr(token.Text)
		switch {
		case token.Text == "bind", token.Text == "}":
			except = false
		case token.Text == "except":
			except = true
		case except:
			bound = slices.DeleteFunc(bound, func(b netip.Addr) bool { return err == nil && a == b })
		case token.Text == "{":
		case err != nil || a.IsUnspecified():
			bound = slices.Clone(o.LocalIPs) // an interface, or all of them
		default:
			bound = append(bound, a)
		}
	}
	return slices.DeleteFunc(slices.Clone(o.LocalIPs), func(a netip.Addr) bool { return !slices.Contains(bound, a) })
}

// scanned is a server block in the text of a Corefile.
type scanned struct {
	keys []string
	end  int // number of lines before its closing brace
}

// scan returns the server blocks of a Corefile in order, without snippets. The Corefile
// must parse. Then the closing brace of a block is the first word of its line.
func scan(path, corefile string) []scanned {
	var (
		out   []scanned
		keys  []string
		depth int
		d     = caddyfile.NewDispenser(path, strings.NewReader(corefile))
		last  int // line of the last key
		open  int // line of the opening brace, 0 outside of blocks
	)
	for d.Next() {
		switch text := d.Val(); {
		case depth == 0 && text == "{":
			depth, open = 1, d.Line()
		case depth == 0 && text == "import" && len(keys) == 0:
			d.Next() // the files; blocks in them are not in this text
		case depth == 0:
			if len(keys) > 0 && d.Line() != last && !strings.HasSuffix(keys[len(keys)-1], ",") {
				// Without braces there is one block, to the end.
				return append(out, scanned{trimKeys(keys), strings.Count(corefile, "\n") + 1})
			}
			keys, last = append(keys, expand(text)), d.Line()
		case text == "{":
			depth++
		case text == "}":
			if depth--; depth == 0 {
				if !isSnippet(keys) && open != d.Line() {
					out = append(out, scanned{trimKeys(keys), d.Line() - 1})
				}
				keys, open = nil, 0
			}
		}
	}
	if len(keys) > 0 && open == 0 {
		out = append(out, scanned{trimKeys(keys), strings.Count(corefile, "\n") + 1})
	}
	return out
}

// variables matches environment variables in the syntax of caddy.
var variables = regexp.MustCompile(`\{\$[^}]+\}|\{%[^%]+%\}`)

func expand(text string) string {
	return variables.ReplaceAllStringFunc(text, func(v string) string { return os.Getenv(strings.Trim(v, "{}$%")) })
}

func isSnippet(keys []string) bool {
	return len(keys) == 1 && strings.HasPrefix(keys[0], "(") && strings.HasSuffix(keys[0], ")")
}

func trimKeys(keys []string) []string {
	out := make([]string, 0, len(keys))
	for _, k := range keys {
		if k = strings.TrimSuffix(k, ","); k != "" {
			out = append(out, k)
		}
	}
	return out
}
