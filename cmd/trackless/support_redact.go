package main

import (
	"cmp"
	"encoding/json"
	"os"
	"regexp"
	"slices"
	"strings"
	"unicode"
)

// leftOut stands where a secret was.
const leftOut = "[left-out]"

// redactor takes secrets out of texts. What it finds in one it takes out of all
// that follow, wherever it stands there. The zero value works.
type redactor struct {
	values map[string]bool
	count  int
}

// secretName matches names of things that are secret.
var secretName = regexp.MustCompile(`(?i)^([\w.-]*[_.-])?(secrets?|password|passwd|passphrase|pwd|tokens?|credentials?|bearer|authorization|(basic[_-]?)?auth|api[_-]?key|(secret|access|private|client|account|storage|tsig|shared)[_-]?keys?([_-]id)?|key)$`)

// The shapes of secrets in texts of any kind. Where a pattern has two groups
// the first one stays.
var secretShapes = []*regexp.Regexp{
	// PEM (RFC 7468), also cut off, also in JSON strings.
	regexp.MustCompile(`()(-----BEGIN [A-Z0-9 ]+-----(?:[\sA-Za-z0-9+/=:,-]|\\n)*?-----END [A-Z0-9 ]+-----)`),
	regexp.MustCompile(`()(-----BEGIN [A-Z0-9 ]+-----(?:[\sA-Za-z0-9+/=]|\\n)*)`),
	// User and password in a URL.
	regexp.MustCompile(`([A-Za-z][A-Za-z0-9+.-]*://)([^\s/@"'<>]+)@`),
	// HTTP credentials (RFC 9110, section 11).
	regexp.MustCompile(`(?i)((?:proxy-)?authorization["']?\s*[:=]\s*["']?(?:(?:basic|bearer|digest|negotiate)\s+)?)([^\s"',;]+)`),
	regexp.MustCompile(`(?i)(\b(?:bearer|basic)\s+)([A-Za-z0-9._~+/-]{12,}=*)`),
	// JSON Web Tokens (RFC 7519), those of Kubernetes' service accounts among them.
	regexp.MustCompile(`()(\beyJ[A-Za-z0-9_-]{6,}\.[A-Za-z0-9_-]{6,}(?:\.[A-Za-z0-9_-]*)?)`),
	// Tokens that name their issuer.
	regexp.MustCompile(`()(\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\bgh[pousr]_[A-Za-z0-9]{20,}|\bglpat-[A-Za-z0-9_-]{16,}|\bxox[abprs]-[A-Za-z0-9-]{10,})`),
	// name=value and name: value; quoted, also in a string that is quoted itself.
	regexp.MustCompile(`(?i)([\w.-]*` + secretWord + `[\w.-]*\\?["']?\s*[:=]\s*)(\\"[^"]*"|"(?:[^"\\]|\\.)*"|'[^']*'|[^\s,;&"'\[\]{}]+)`),
	// --name value, as in a command line.
	regexp.MustCompile(`(?i)((?:^|\s)--?[\w-]*` + secretWord + `[\w-]*\s+)([^\s-]\S*)`),
}

// secretWord is in the names of things that are secret.
const secretWord = `(?:password|passwd|passphrase|secret|token|api[_-]?key|access[_-]?key|private[_-]?key|credential)`

// randomLooking are candidates for keys in base64 or hexadecimal.
var randomLooking = regexp.MustCompile(`[A-Za-z0-9+/_-]{32,}={0,2}`)

// remember takes a value out of all that follows. Short ones would take words
// out that are none.
func (r *redactor) remember(value string) {
	value = strings.Trim(value, `"'\`)
	if len(value) < 5 || value == leftOut || isPlaceholder(value) {
		return
	}
	if r.values == nil {
		r.values = map[string]bool{}
	}
	r.values[value] = true
}

// rememberEnvironment remembers the values of secret names. What is set for
// this process is often what is set for the instance.
func (r *redactor) rememberEnvironment(environment []string) {
	for _, pair := range environment {
		if name, value, ok := strings.Cut(pair, "="); ok && secretName.MatchString(name) {
			if _, err := os.Stat(value); err != nil { // the name of a file is none
				r.remember(value)
			}
		}
	}
}

// text takes secrets out of a text of any kind.
func (r *redactor) text(s string) string {
	for _, shape := range secretShapes {
		s = shape.ReplaceAllStringFunc(s, func(found string) string {
			groups := shape.FindStringSubmatch(found)
			if groups[2] == leftOut || isPlaceholder(groups[2]) {
				return found
			}
			r.remember(groups[2])
			r.count++
			return groups[1] + leftOut + strings.TrimPrefix(found, groups[1]+groups[2])
		})
	}
	s = randomLooking.ReplaceAllStringFunc(s, func(found string) string {
		if !isRandom(found) {
			return found
		}
		r.count++
		return leftOut
	})
	return r.known(s)
}

// known takes out what was remembered, longer values first.
func (r *redactor) known(s string) string {
	values := make([]string, 0, len(r.values))
	for value := range r.values {
		values = append(values, value)
	}
	slices.SortFunc(values, func(a, b string) int { return cmp.Or(cmp.Compare(len(b), len(a)), cmp.Compare(a, b)) })
	for _, value := range values {
		if n := strings.Count(s, value); n > 0 {
			r.count += n
			s = strings.ReplaceAll(s, value, leftOut)
		}
	}
	return s
}

// json takes secrets out of the strings of a document, and leaves its form.
func (r *redactor) json(document []byte) []byte {
	out := []byte(r.text(string(document)))
	if json.Valid(out) {
		return out
	}
	var v any
	if json.Unmarshal(document, &v) != nil {
		return []byte(`"` + leftOut + `"`)
	}
	// Encoding what was decoded cannot fail.
	out, _ = json.MarshalIndent(r.walk(v), "", "  ")
	return append(out, '\n')
}

func (r *redactor) walk(v any) any {
	switch node := v.(type) {
	case string:
		return r.text(node)
	case []any:
		for i := range node {
			node[i] = r.walk(node[i])
		}
	case map[string]any:
		for key := range node {
			if text, ok := node[key].(string); ok && secretName.MatchString(key) {
				r.remember(text)
				node[key] = leftOut
				continue
			}
			node[key] = r.walk(node[key])
		}
	}
	return v
}

// isRandom tells a key from a path or a name: it has digits and letters, upper
// and lower case or nothing but hexadecimal digits, and few separators.
func isRandom(s string) bool {
	var upper, lower, digits, separators, hex int
	for _, c := range strings.TrimRight(s, "=") {
		switch {
		case unicode.IsUpper(c):
			upper++
		case unicode.IsLower(c):
			lower++
		case unicode.IsDigit(c):
			digits++
		default:
			separators++
		}
		if strings.ContainsRune("0123456789abcdefABCDEF", c) {
			hex++
		}
	}
	if s[0] == '/' || digits == 0 || separators > 4 {
		return false
	}
	return hex == len(s) || upper > 2 && lower > 2
}

// isPlaceholder recognises what stands for an environment variable in a
// Corefile: its name is no secret.
func isPlaceholder(s string) bool {
	return strings.HasPrefix(s, "{$") && strings.HasSuffix(s, "}") || strings.HasPrefix(s, "{%") && strings.HasSuffix(s, "%}")
}

// corefile takes secrets out of a Corefile: all that follows a secret name on
// its line, comments that speak of one, and what text finds.
func (r *redactor) corefile(s string) string {
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
				r.remember(token)
				r.count++
				b.WriteString(leftOut)
			default:
				hide = hide || secretName.MatchString(strings.Trim(token, `"`))
				b.WriteString(token)
			}
			i = end
		}
	}
	return r.text(b.String())
}

func (r *redactor) comment(comment string, hide bool) string {
	for _, word := range strings.FieldsFunc(comment, func(c rune) bool { return !unicode.IsLetter(c) && !unicode.IsDigit(c) && c != '_' && c != '-' }) {
		if hide || secretName.MatchString(word) {
			r.count++
			return "# " + leftOut
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
