package redact

import (
	"strings"
	"unicode"
)

// Corefile takes secrets out of a Corefile: all that follows a secret name on
// its line, comments that speak of one, and what Text finds.
func (r *Redactor) Corefile(s string) string {
	var b strings.Builder
	hide := false // what follows on this line
	for i := 0; i < len(s); {
		switch c := s[i]; {
		case c == '\n':
			hide = false
			b.WriteByte(c)
			i++
		case c == ' ' || c == '\t' || c == '\r':
			b.WriteByte(c)
			i++
		case c == '#' && (i == 0 || strings.ContainsRune(" \t\n", rune(s[i-1]))):
			end := lineEnd(s, i)
			b.WriteString(r.comment(s[i:end], hide))
			i = end
		default:
			end := tokenEnd(s, i)
			token := s[i:end]
			switch {
			case token == "{" || token == "}":
				hide = false
				b.WriteString(token)
			case hide && !isPlaceholder(token):
				r.Remember(token)
				r.count++
				b.WriteString(LeftOut)
			default:
				hide = hide || secretName.MatchString(strings.Trim(token, `"`))
				b.WriteString(token)
			}
			i = end
		}
	}
	return r.Text(b.String())
}

func (r *Redactor) comment(comment string, hide bool) string {
	for _, word := range strings.FieldsFunc(comment, func(c rune) bool { return !unicode.IsLetter(c) && !unicode.IsDigit(c) && c != '_' && c != '-' }) {
		if hide || secretName.MatchString(word) {
			r.count++
			return "# " + LeftOut
		}
	}
	return comment
}

func lineEnd(s string, from int) int {
	if n := strings.IndexByte(s[from:], '\n'); n >= 0 {
		return from + n
	}
	return len(s)
}

// tokenEnd is where a token of a Corefile ends: at white space, or with a quote
// that was opened, which may be some lines later (caddyfile/lexer.go).
func tokenEnd(s string, from int) int {
	if s[from] != '"' {
		if n := strings.IndexAny(s[from:], " \t\r\n"); n >= 0 {
			return from + n
		}
		return len(s)
	}
	for i := from + 1; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case '"':
			return i + 1
		}
	}
	return len(s)
}
