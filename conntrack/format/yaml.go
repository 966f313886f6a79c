package format

import (
	"github.com/trackless-dns/trackless/conntrack"
)

// yamlDocument writes a sequence of mappings. It makes them from the JSON of an entry, so
// that both formats have the same names and types.
type yamlDocument struct{ object []byte }

func (*yamlDocument) begin(b []byte) []byte { return append(b, "---\n"...) }

func (y *yamlDocument) entry(b []byte, e *conntrack.Entry, t conntrack.EventType, _ bool) []byte {
	y.object = appendJSON(y.object[:0], e, t)
	return appendBlock(b, y.object)
}

func (*yamlDocument) end(b []byte, empty bool) []byte {
	if empty {
		b = append(b, "[]\n"...)
	}
	return b
}

// appendBlock appends a JSON object as a YAML block mapping inside a sequence. Each member
// takes a line, nested mappings are indented, and sequences of words stay in flow style.
func appendBlock(b, object []byte) []byte {
	start := len(b)
	depth, lineStart, inString, inList := 0, true, false, 0
	newline := func() {
		b = append(b, '\n')
		lineStart = true
	}
	indent := func() {
		if !lineStart {
			return
		}
		lineStart = false
		if len(b) == start {
			b = append(b, "- "...)
			return
		}
		for range depth {
			b = append(b, "  "...)
		}
	}
	for i := 0; i < len(object); i++ {
		c := object[i]
		switch {
		case inString:
			b = append(b, c)
			switch c {
			case '\\':
				i++
				b = append(b, object[i])
			case '"':
				inString = false
			}
		case c == '{':
			if depth > 0 {
				newline()
			}
			depth++
		case c == '}':
			depth--
		case c == '[':
			inList++
			b = append(b, c)
		case c == ']':
			inList--
			b = append(b, c)
		case c == ',' && inList > 0:
			b = append(b, ", "...)
		case c == ',':
			newline()
		case c == ':':
			b = append(b, ':')
			if object[i+1] != '{' {
				b = append(b, ' ')
			}
		case c == '"' && lineStart: // a key, which is an identifier and needs no quotes
			indent()
			for i++; object[i] != '"'; i++ {
				b = append(b, object[i])
			}
		case c == '"':
			inString = true
			b = append(b, c)
		default:
			b = append(b, c)
		}
	}
	return append(b, '\n')
}
