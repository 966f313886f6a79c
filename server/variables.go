package server

import (
	"fmt"
	"os"
	"regexp"
	"strings"
)

// corefileVariable is how a Corefile names a variable of the environment (caddy,
// caddyfile/parse.go).
var corefileVariable = regexp.MustCompile(`\{\$([^}\s]+)\}|\{%([^%\s]+)%\}`)

// unsetVariables names the variables of a Corefile that the environment lacks, each
// with its line. caddy puts nothing in their place, and whichever directive then
// finds a word missing complains of something else.
func unsetVariables(corefile string) []string {
	var out []string
	for i, line := range strings.Split(corefile, "\n") {
		if at := comment.FindStringIndex(line); at != nil {
			line = line[:at[0]]
		}
		for _, m := range corefileVariable.FindAllStringSubmatch(line, -1) {
			if _, set := os.LookupEnv(m[1] + m[2]); !set {
				out = append(out, fmt.Sprintf("%s in line %d", m[0], i+1))
			}
		}
	}
	return out
}

// comment begins where a word could.
var comment = regexp.MustCompile(`(^|\s)#`)

// withUnset adds the variables that are not set to an error about a Corefile.
func withUnset(err error, corefile string) error {
	unset := unsetVariables(corefile)
	if err == nil || len(unset) == 0 {
		return err
	}
	return fmt.Errorf("%w; the Corefile uses variables that are not set: %s (set them in the environment of this process, for Kubernetes in the container's env)", err, strings.Join(unset, ", "))
}
