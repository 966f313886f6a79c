package owner

import (
	"testing"
)

func TestMarksReadAsWritten(t *testing.T) {
	want := Self(3)
	if got, ok := Parse(want.String()); !ok || got != want {
		t.Errorf("%v, %t, want %v", got, ok, want)
	}
	for _, comment := range []string{"", "NodeLocal DNS Cache: skip conntrack", "trackless 1 pid 2"} {
		if got, ok := Parse(comment); ok {
			t.Errorf("%q reads as %v", comment, got)
		}
	}
}
