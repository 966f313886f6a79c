// Package redact takes secrets out of texts, Corefiles and JSON documents, before
// somebody gives them away.
package redact

import (
	"cmp"
	"encoding/json"
	"os"
	"regexp"
	"slices"
	"strings"
	"unicode"
)

// LeftOut stands where a secret was.
const LeftOut = "[left-out]"

// Redactor takes secrets out of texts. A secret found in one text is removed from all
// that follow, wherever it stands there. The zero value works.
type Redactor struct {
	values map[string]bool
	count  int
}

// Count is how many secrets were taken out.
func (r *Redactor) Count() int { return r.count }

// Learn finds the secrets of a text that Text takes out later, of other texts too.
func (r *Redactor) Learn(s string) {
	count := r.count
	r.Text(s)
	r.count = count
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

// Remember takes a value out of all that follows. Short ones would take words
// out that are none.
func (r *Redactor) Remember(value string) {
	value = strings.Trim(value, `"'\`)
	if len(value) < 5 || value == LeftOut || isPlaceholder(value) {
		return
	}
	if r.values == nil {
		r.values = map[string]bool{}
	}
	r.values[value] = true
}

// RememberEnvironment remembers the values of secret names. What is set for
// this process is often what is set for the instance.
func (r *Redactor) RememberEnvironment(environment []string) {
	for _, pair := range environment {
		if name, value, ok := strings.Cut(pair, "="); ok && secretName.MatchString(name) {
			if _, err := os.Stat(value); err != nil { // the name of a file is none
				r.Remember(value)
			}
		}
	}
}

// Text takes secrets out of a text of any kind.
func (r *Redactor) Text(s string) string {
	for _, shape := range secretShapes {
		s = shape.ReplaceAllStringFunc(s, func(found string) string {
			groups := shape.FindStringSubmatch(found)
			if groups[2] == LeftOut || isPlaceholder(groups[2]) {
				return found
			}
			r.Remember(groups[2])
			r.count++
			return groups[1] + LeftOut + strings.TrimPrefix(found, groups[1]+groups[2])
		})
	}
	s = randomLooking.ReplaceAllStringFunc(s, func(found string) string {
		if !isRandom(found) {
			return found
		}
		r.count++
		return LeftOut
	})
	return r.known(s)
}

// known takes out what was remembered, longer values first.
func (r *Redactor) known(s string) string {
	values := make([]string, 0, len(r.values))
	for value := range r.values {
		values = append(values, value)
	}
	slices.SortFunc(values, func(a, b string) int { return cmp.Or(cmp.Compare(len(b), len(a)), cmp.Compare(a, b)) })
	for _, value := range values {
		if n := strings.Count(s, value); n > 0 {
			r.count += n
			s = strings.ReplaceAll(s, value, LeftOut)
		}
	}
	return s
}

// JSON takes secrets out of the strings of a document, and leaves its form.
func (r *Redactor) JSON(document []byte) []byte {
	out := []byte(r.Text(string(document)))
	if json.Valid(out) {
		return out
	}
	var v any
	if json.Unmarshal(document, &v) != nil {
		return []byte(`"` + LeftOut + `"`)
	}
	// Encoding what was decoded cannot fail.
	out, _ = json.MarshalIndent(r.walk(v), "", "  ")
	return append(out, '\n')
}

func (r *Redactor) walk(v any) any {
	switch node := v.(type) {
	case string:
		return r.Text(node)
	case []any:
		for i := range node {
			node[i] = r.walk(node[i])
		}
	case map[string]any:
		for key := range node {
			if text, ok := node[key].(string); ok && secretName.MatchString(key) {
				r.Remember(text)
				node[key] = LeftOut
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

// isPlaceholder recognises a placeholder for an environment variable in a
// Corefile: its name is no secret.
func isPlaceholder(s string) bool {
	return strings.HasPrefix(s, "{$") && strings.HasSuffix(s, "}") || strings.HasPrefix(s, "{%") && strings.HasSuffix(s, "%}")
}
