package names

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

const ownBlock = `dns://.:53 169.254.20.10`

var noon = time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC)

func named(text string) Name { return Name{Block: ownBlock, Text: text, Type: 1} }

// texts returns the names in a file.
func texts(t *testing.T, path string) (out []string) {
	t.Helper()
	file, _, err := read(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, u := range file {
		out = append(out, u.Text)
	}
	return out
}

func TestEverythingOfAName(t *testing.T) {
	want := []used{
		{Name{ownBlock, "www.example.org.", 1, false, false}, 494521},
		{Name{ownBlock, "www.example.org.", 28, true, false}, 494521},
		{Name{"dns://cluster.local.:53 view \"a\nb\"", `a\ b\010\.c.cluster.local.`, 65, false, true}, 494520},
		{Name{ownBlock, ".", 65535, true, true}, -3},
		{Name{"", "example.", 0, false, false}, 0},
	}
	got, err := decode(encode(want))
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v, want %v", got, err, want)
	}
}

// TestDamage: a file of which any byte is another one, or is missing, is not read.
func TestDamage(t *testing.T) {
	whole := encode([]used{{named("www.example.org."), 1}, {named("ftp.example.org."), 2}})
	for i := range whole {
		for _, content := range [][]byte{whole[:i], slices.Concat(whole[:i], []byte{whole[i] ^ 1}, whole[i+1:]), slices.Delete(slices.Clone(whole), i, i+1)} {
			if names, err := decode(content); err == nil {
				t.Errorf("%q: %v", content, names)
			}
		}
	}
	if names, err := decode(append(slices.Clone(whole), '\n')); err == nil {
		t.Errorf("a line more: %v", names)
	}
}

// TestBounds: neither many names nor long ones make a file that is not read.
func TestBounds(t *testing.T) {
	long := strings.Repeat(`\001`, 255)
	var many []Name
	for i := range 3 * Most {
		many = append(many, Name{Block: fmt.Sprint(ownBlock, i%2), Text: fmt.Sprint(i, long)[:maxText], Type: 1})
	}
	b := encode(merge(many, nil, noon))
	names, err := decode(b)
	if err != nil || len(b) > maxFile || len(names) < 400 || names[0].Text != many[0].Text {
		t.Errorf("%d names in %d bytes, %v", len(names), len(b), err)
	}
	if got := merge(many[:2*Most], nil, noon); len(got) != Most {
		t.Errorf("%d names", len(got))
	}
}

func TestMerge(t *testing.T) {
	hour := hourOf(noon)
	file := []used{{named("a."), hour - 1}, {named("b."), hour}, {named("c."), hour - 24}, {named("d."), hour - 25}, {named("ahead."), hour + 99}, {named("hot."), hour - 3}}
	got := merge([]Name{named("hot."), named("new."), named("hot.")}, file, noon)
	want := []used{{named("hot."), hour}, {named("new."), hour}, {named("b."), hour}, {named("ahead."), hour}, {named("a."), hour - 1}, {named("c."), hour - 24}}
	if !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// TestSave: instances that share the file keep each other's names, and a file that would be the
// same is not written.
func TestSave(t *testing.T) {
	path := filepath.Join(t.TempDir(), "names")
	for _, current := range [][]Name{{named("a."), named("b.")}, {named("c.")}, {named("c.")}, nil} {
		if err := save(path, current, noon); err != nil {
			t.Fatal(err)
		}
	}
	if got := texts(t, path); !slices.Equal(got, []string{"c.", "a.", "b."}) {
		t.Errorf("the file has %q", got)
	}
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if before.Mode() != 0o600 {
		t.Errorf("mode %v", before.Mode())
	}
	if err := save(path, []Name{named("c.")}, noon.Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if after, err := os.Stat(path); err != nil || !os.SameFile(before, after) {
		t.Errorf("it was written again: %v", err)
	}
	// A day later there is only what is in use.
	if err := save(path, []Name{named("z.")}, noon.Add(25*time.Hour)); err != nil {
		t.Fatal(err)
	}
	if got := texts(t, path); !slices.Equal(got, []string{"z."}) {
		t.Errorf("a day later the file has %q", got)
	}
	if left, _ := filepath.Glob(path + "?*"); left != nil {
		t.Errorf("left: %q", left)
	}
}

func TestSaveNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "names")
	if err := save(path, nil, noon); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file without names: %v", err)
	}
}

// TestSaveOverOthers: what we did not write stays as it is, and what we wrote and is damaged
// does not.
func TestSaveOverOthers(t *testing.T) {
	good := encode([]used{{named("old."), hourOf(noon)}})
	for _, tc := range []struct {
		name, content string
		keep          bool
		want          []string
	}{
		{"of a resolver", "nameserver 192.0.2.1\n", true, nil},
		{"large", string(bytes.Repeat([]byte("x"), 2*maxFile)), true, nil},
		{"empty", "", false, []string{"new."}},
		{"cut off", string(good[:len(good)/2]), false, []string{"new."}},
		{"of another version", strings.Replace(string(good), " 1\n", " 2\n", 1), false, []string{"new."}},
		{"ours", string(good), false, []string{"new.", "old."}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "names")
			if err := os.WriteFile(path, []byte(tc.content), 0o644); err != nil {
				t.Fatal(err)
			}
			err := save(path, []Name{named("new.")}, noon)
			if errors.Is(err, errForeign) != tc.keep || err != nil && !tc.keep {
				t.Fatal(err)
			}
			if tc.keep {
				if now, err := os.ReadFile(path); err != nil || string(now) != tc.content {
					t.Errorf("it was changed: %v", err)
				}
				return
			}
			if got := texts(t, path); !slices.Equal(got, tc.want) {
				t.Errorf("it has %q, want %q", got, tc.want)
			}
		})
	}
}

// TestSaveBeside: of two instances that write at the same time one waits for its next turn, and
// what a killed one left is in nobody's way for long.
func TestSaveBeside(t *testing.T) {
	path := filepath.Join(t.TempDir(), "names")
	if err := os.WriteFile(path+".new", []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := save(path, []Name{named("a.")}, noon); err != nil || texts(t, path) != nil {
		t.Errorf("written beside another instance: %v", err)
	}
	old := time.Now().Add(-2 * staleAfter)
	if err := os.Chtimes(path+".new", old, old); err != nil {
		t.Fatal(err)
	}
	if err := save(path, []Name{named("a.")}, noon); err != nil || len(texts(t, path)) != 1 {
		t.Errorf("not written after a killed instance: %v", err)
	}
	if left, _ := filepath.Glob(path + "?*"); left != nil {
		t.Errorf("left: %q", left)
	}
}

// FuzzDecode: whatever a file has, its names can be written and read again.
func FuzzDecode(f *testing.F) {
	f.Add(string(encode([]used{{named("www.example.org."), 1}, {Name{"b", `a\ b.`, 28, true, true}, 2}})))
	f.Add("")
	f.Add(magic + version + "\n")
	f.Fuzz(func(t *testing.T, content string) {
		for _, c := range []string{content, string(sign([]byte(magic + version + "\n" + content)))} {
			names, err := decode([]byte(c))
			if err != nil {
				continue
			}
			again, err := decode(encode(names))
			if err != nil || !slices.Equal(names, again) {
				t.Errorf("%v, then %v, %v", names, again, err)
			}
		}
	})
}
