package early

import (
	"encoding/json"
	"testing"

	"github.com/trackless-dns/trackless/iptables/control"
)

func TestWell(t *testing.T) {
	own := control.Self()
	elsewhere := own
	elsewhere.PIDNamespace++
	for _, tc := range []struct {
		name   string
		health control.Health
		ok     bool
	}{
		{"well", control.Health{OK: true, Detail: "it answers, 1 of 1", Process: own}, true},
		{"not well", control.Health{Detail: `no: "ok":true`, Process: own}, false},
		{"another container's", control.Health{OK: true, Detail: "it answers", Process: elsewhere}, false},
		{"a detail that JSON escapes", control.Health{OK: true, Detail: `a "name"`, Process: own}, false},
		{"nobody's", control.Health{OK: true, Detail: "it answers"}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			answer, err := json.Marshal(tc.health)
			if err != nil {
				t.Fatal(err)
			}
			detail, ok := well(string(answer) + "\n")
			if ok != tc.ok || ok && detail != tc.health.Detail {
				t.Errorf("%q, %t", detail, ok)
			}
		})
	}
	if detail, ok := well(""); ok {
		t.Errorf("no answer is %q", detail)
	}
}

func TestRequest(t *testing.T) {
	for _, tc := range []struct {
		args []string
		want string
	}{
		{[]string{"probe", "live"}, "live"},
		{[]string{"probe", "ready"}, "ready?name=" + Name},
		{[]string{"probe", "ready", "--wait", "--timeout", "15s"}, "ready?name=" + Name},
		{[]string{"probe", "live", "--socket", "x"}, ""},
		{[]string{"probe ready"}, ""},
		{[]string{"serve"}, ""},
		{nil, ""},
	} {
		if got := Request(tc.args...); got != tc.want {
			t.Errorf("%q: %q, want %q", tc.args, got, tc.want)
		}
	}
}
