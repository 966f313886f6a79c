package server

import (
	"errors"
	"strings"
	"testing"
)

func TestUnsetVariables(t *testing.T) {
	t.Setenv("SET", "10.96.0.99")
	t.Setenv("EMPTY", "")
	for _, tc := range []struct{ name, corefile, want string }{
		{"none", ".:53 {\n forward . {$SET} {%SET%} {$EMPTY}\n}\n", ""},
		{"both ways to write it", ".:{$PORT_UNSET} {\n forward . {%UPSTREAM_UNSET%}\n}\n", "{$PORT_UNSET} in line 1, {%UPSTREAM_UNSET%} in line 2"},
		{"in a comment", "# {$A_UNSET}\n.:53 {\n whoami # {$B_UNSET}\n}\n", ""},
		{"a Go template", ".:53 {\n template IN A . {\n answer \"{{ .Name }} 30 IN A 192.0.2.1\"\n }\n}\n", ""},
	} {
		if got := strings.Join(unsetVariables(tc.corefile), ", "); got != tc.want {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
		err := withUnset(errors.New("not an IP address"), tc.corefile)
		if tc.want == "" && err.Error() != "not an IP address" || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
	if err := withUnset(nil, "{$A_UNSET}"); err != nil {
		t.Errorf("without an error: %v", err)
	}
}
