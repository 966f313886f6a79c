package main

import (
	"bufio"
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/trackless-dns/trackless/internal/module"
	"github.com/trackless-dns/trackless/test/kernels"
)

// entries reads an archive as the kernel does (init/initramfs.c).
func entries(t *testing.T, data []byte) (names []string, content map[string]string) {
	t.Helper()
	content = map[string]string{}
	for at := 0; ; {
		field := func(i int) int {
			n, err := strconv.ParseUint(string(data[at+6+8*i:at+14+8*i]), 16, 32)
			if err != nil {
				t.Fatal(err)
			}
			return int(n)
		}
		if string(data[at:at+6]) != "070701" {
			t.Fatalf("no header at byte %d", at)
		}
		size, nameSize := field(6), field(11)
		name := string(data[at+110 : at+110+nameSize-1])
		if name == "TRAILER!!!" {
			return names, content
		}
		body := (at + 110 + nameSize + 3) / 4 * 4
		names = append(names, name)
		content[name] = string(data[body : body+size])
		at = (body + size + 3) / 4 * 4
	}
}

func TestArchive(t *testing.T) {
	source := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(source, []byte("text"), 0o755); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	a := newArchive(&b)
	a.folder("/proc")
	a.text("/etc/hosts", "127.0.0.1 localhost\n")
	a.link("/bin", "usr/bin")
	if err := a.file("/usr/bin/program", source); err != nil {
		t.Fatal(err)
	}
	a.text("/etc/hosts", "the second is none")
	if !a.has("/usr/bin/program") || a.has("/usr/bin/other") {
		t.Error("has is wrong")
	}
	if err := a.close(); err != nil {
		t.Fatal(err)
	}
	names, content := entries(t, b.Bytes())
	if diff := cmp.Diff([]string{"proc", "etc", "etc/hosts", "bin", "usr", "usr/bin", "usr/bin/program"}, names); diff != "" {
		t.Errorf("entries: %s", diff)
	}
	for name, want := range map[string]string{"etc/hosts": "127.0.0.1 localhost\n", "bin": "usr/bin", "usr/bin/program": "text", "proc": ""} {
		if content[name] != want {
			t.Errorf("%s is %q, want %q", name, content[name], want)
		}
	}
}

func TestListen(t *testing.T) {
	for _, tc := range []struct {
		name, text string
		results    int
		done       bool
		says       string
	}{
		{name: "whole", text: "{\"Kernel\":\"6.1\"}\n{\"Result\":{\"name\":\"a\"}}\n{\"Done\":true}\n", results: 1, done: true},
		{name: "cut off", text: "{\"Result\":{\"name\":\"a\"}}\n{\"Resu", results: 1, says: "not a report"},
		{name: "an error", text: "{\"Error\":\"no modules\"}\n", says: "no modules"},
		{name: "nothing"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			results := 0
			done, err := listen(bufio.NewReader(strings.NewReader(tc.text)), func(r kernels.Report) {
				if r.Result != nil {
					results++
				}
			})
			if done != tc.done || results != tc.results {
				t.Errorf("done %t, %d results", done, results)
			}
			if tc.says == "" && err != nil || tc.says != "" && (err == nil || !strings.Contains(err.Error(), tc.says)) {
				t.Errorf("error %v, want %q", err, tc.says)
			}
		})
	}
}

// Names select binaries, so two packages may not share one.
func TestCasesAreWhole(t *testing.T) {
	root, err := module.Root()
	if err != nil {
		t.Fatal(err)
	}
	names, packages := map[string]bool{}, map[string]string{}
	for _, c := range kernels.Cases {
		if names[c.Name] || c.What == "" {
			t.Errorf("case %q has a name twice or no words", c.Name)
		}
		names[c.Name] = true
		if other, ok := packages[c.Binary()]; ok && other != c.Package {
			t.Errorf("%s and %s have the same binary", other, c.Package)
		}
		packages[c.Binary()] = c.Package
		if found, err := filepath.Glob(filepath.Join(root, c.Package, "*_test.go")); err != nil || len(found) == 0 {
			t.Errorf("case %s: no tests in %s", c.Name, c.Package)
		}
	}
	if _, err := kernels.Select(kernels.Cases, []string{"nosuch"}); err == nil || !strings.Contains(err.Error(), kernels.Cases[0].Name) {
		t.Errorf("an unknown case: %v", err)
	}
}

func TestNewestPackage(t *testing.T) {
	const list = `linux-image-6.1.0-9-amd64 - Linux 6.1 for 64-bit PCs (signed)
linux-image-6.1.0-56-amd64 - Linux 6.1 for 64-bit PCs (signed)
linux-image-6.1.0-57-cloud-amd64 - Linux 6.1 for x86-64 cloud (signed)
linux-image-6.1.0-10-amd64 - Linux 6.1 for 64-bit PCs (signed)
linux-image-6.12.117+deb12-amd64 - Linux 6.12 for 64-bit PCs (signed)
linux-image-6.12.118+deb12-rt-amd64 - Linux 6.12 for 64-bit PCs (signed), PREEMPT_RT
linux-image-6.12.99+deb12-amd64 - Linux 6.12 for 64-bit PCs (signed)
`
	for series, want := range map[string]string{
		"6.1": "linux-image-6.1.0-56-amd64", "6.12": "linux-image-6.12.117+deb12-amd64", "5.10": "",
	} {
		if got := newestPackage(list, series); got != want {
			t.Errorf("%s: %q, want %q", series, got, want)
		}
	}
	if _, err := kernels.Select(kernels.Cases, strings.Split(kernels.OnOtherKernels, ",")); err != nil {
		t.Error(err)
	}
}
