package main

import (
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// roomRow is a row of the table of rooms in ARCHITECTURE.md: a folder, and
// whether the row speaks for the folders below it.
var roomRow = regexp.MustCompile("(?m)^\\| `([^`]+)/`( and below)? \\|")

// roomTable reads the folders of the section Rooms: true for those whose row
// speaks for the folders below.
func roomTable(page string) map[string]bool {
	_, section, _ := strings.Cut(page, "\n## Rooms\n")
	section, _, _ = strings.Cut(section, "\n## ")
	rooms := map[string]bool{}
	for _, m := range roomRow.FindAllStringSubmatch(section, -1) {
		rooms[m[1]] = m[2] != ""
	}
	return rooms
}

// hasRoom reports whether a folder stands in the table, by itself or by a row of
// a folder above that speaks for it.
func hasRoom(rooms map[string]bool, folder string) bool {
	if _, ok := rooms[folder]; ok {
		return true
	}
	for folder != "." {
		if folder = path.Dir(folder); rooms[folder] {
			return true
		}
	}
	return false
}

// packageFolders lists the folders of the tree with Go files, test data left out.
func packageFolders(t *testing.T) []string {
	t.Helper()
	var folders []string
	err := fs.WalkDir(os.DirFS("../.."), ".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && name != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "bin"):
			return fs.SkipDir
		case !d.IsDir() && path.Ext(name) == ".go" && !slices.Contains(folders, path.Dir(name)):
			folders = append(folders, path.Dir(name))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return folders
}

// Every package of the tree is in the table of rooms, and every folder of the
// table is in the tree.
func TestDocRooms(t *testing.T) {
	b, err := os.ReadFile("../../ARCHITECTURE.md")
	if err != nil {
		t.Fatal(err)
	}
	rooms := roomTable(string(b))
	folders := packageFolders(t)
	if len(rooms) < 30 || len(folders) < 50 {
		t.Fatalf("only %d rows, %d packages", len(rooms), len(folders))
	}
	for _, folder := range folders {
		if !hasRoom(rooms, folder) {
			t.Errorf("%s/ is in no row of the table of rooms", folder)
		}
	}
	for folder := range rooms {
		if info, err := os.Stat(filepath.Join("../..", folder)); err != nil || !info.IsDir() {
			t.Errorf("the table of rooms names %s/, and there is no such folder", folder)
		}
	}
}

func TestRoomTable(t *testing.T) {
	rooms := roomTable("# A\n\n| `before/` | no |\n\n## Rooms\n\n| folder | |\n|---|---|\n| `a/` | `x/` in it |\n| `b/c/` and below | more |\n\n## After\n\n| `after/` | no |\n")
	if len(rooms) != 2 {
		t.Fatalf("rows %v; want a and b/c", rooms)
	}
	for folder, want := range map[string]bool{
		"a": true, "a/x": false, "b": false, "b/c": true, "b/c/d/e": true, "b/cd": false, "before": false, "after": false,
	} {
		if got := hasRoom(rooms, folder); got != want {
			t.Errorf("%s in the table: %t, want %t", folder, got, want)
		}
	}
}
