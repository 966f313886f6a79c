package main

import (
	"strings"
	"testing"
)

func TestCheck(t *testing.T) {
	for _, tc := range []struct {
		name, directory string
		want            []string // in the error; none is no error
	}{
		{"sound, dependencies from source", "testdata/sound", nil},
		{"a function that takes more than the caller knows", "testdata/broken", []string{"main.go:9:", "cannot use"}},
		{"and in a test", "testdata/broken", []string{"main_test.go:6:", "undefined: missing"}},
		{"nothing to check", "testdata", []string{"no packages"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			err := check(tc.directory)
			if len(tc.want) == 0 && err != nil {
				t.Fatal(err)
			}
			for _, want := range tc.want {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("got %v, want %q in it", err, want)
				}
			}
		})
	}
}
