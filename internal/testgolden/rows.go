package testgolden

import (
	"flag"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// rowMark begins the line with the name of a row.
const rowMark = "== "

// Rows compares the messages of a table test with one golden file, a row for each
// case. It may be used by parallel tests.
type Rows struct {
	replace *strings.Replacer
	mu      sync.Mutex
	want    map[string]string
	got     map[string]string
}

// NewRows reads the file of that name in testdata. When the test ends, it fails
// where the file has rows that the test does not have. The pairs of replace are
// what differs from run to run, as a temporary folder, and what the file has
// instead.
func NewRows(t *testing.T, name string, replace ...string) *Rows {
	t.Helper()
	r := &Rows{replace: strings.NewReplacer(replace...), want: map[string]string{}, got: map[string]string{}}
	path := filepath.Join("testdata", name)
	if !*update {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for row := range strings.SplitSeq("\n"+string(text), "\n"+rowMark) {
			name, message, _ := strings.Cut(row, "\n")
			r.want[name] = strings.TrimSuffix(message, "\n")
		}
		delete(r.want, "")
	}
	t.Cleanup(func() {
		// With -run TestX/row, only some of the rows are there.
		if t.Failed() || t.Skipped() || strings.Contains(flag.Lookup("test.run").Value.String(), "/") {
			return
		}
		if *update {
			if err := os.WriteFile(path, r.text(), 0o644); err != nil {
				t.Error(err)
			}
			return
		}
		for name := range r.want {
			if _, ok := r.got[name]; !ok {
				t.Errorf("%s has a row %q, and the test has none", path, name)
			}
		}
	})
	return r
}

// Compare fails the test where the row of that name is not got. With -update it
// becomes the row.
func (r *Rows) Compare(t *testing.T, row, got string) {
	t.Helper()
	row, got = r.replace.Replace(row), strings.TrimSuffix(r.replace.Replace(got), "\n")
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.got[row]; ok {
		t.Errorf("there are two rows %q", row)
	}
	r.got[row] = got
	if *update {
		return
	}
	want, ok := r.want[row]
	if !ok {
		t.Errorf("the golden file has no row %q; got\n%s", row, got)
	} else if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("row %q (-want +got):\n%s", row, diff)
	}
}

func (r *Rows) text() []byte {
	var b []byte
	for _, name := range slices.Sorted(maps.Keys(r.got)) {
		b = append(b, rowMark+name+"\n"+r.got[name]+"\n"...)
	}
	return b
}
