package binaries

import (
	"fmt"
	"strings"
	"testing"

	"github.com/trackless-dns/trackless/internal/testgolden"
)

// TestLacks compares the guarantees that a kernel cannot give with testdata/lacks.txt.
func TestLacks(t *testing.T) {
	var out strings.Builder
	for _, tc := range []struct {
		name string
		features
	}{
		{"nothing", features{recent: true, ipset: true}}, {"xt_recent", features{ipset: true}},
		{"ip_set", features{recent: true}}, {"both", features{}},
	} {
		fmt.Fprintf(&out, "without %s:\n%s\n", tc.name, strings.Join(tc.lacks(), "\n"))
	}
	testgolden.Compare(t, "lacks.txt", out.String())
}
