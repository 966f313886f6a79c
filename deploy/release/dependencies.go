package main

import (
	"bytes"
	"debug/buildinfo"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/google/licensecheck"
)

// Dependency is a module that is linked into the product, or the standard
// library. Its license comes from its own files.
type Dependency struct {
	Path, Version, Sum string
	Dir                string
	License            string // an SPDX expression
	Texts              []Text
}

// Text is a license or a notice of a module.
type Text struct {
	Name     string // within the module
	Contents []byte
	license  string // empty for a notice
}

// standardLibrary is how vulnerability databases call it.
const standardLibrary = "stdlib"

// allowed are the licenses that the product may be linked with. All let it be
// passed on as a program under Apache-2.0; of MPL-2.0 the sources must be named,
// which the report does.
var allowed = []string{"0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "MIT", "MPL-2.0"}

// A binary is a program for one platform, by GOOS and GOARCH.
type binary struct{ OS, Arch, Path string }

// dependencies are those of the product.
func (r Release) dependencies() ([]Dependency, error) {
	var programs []binary
	for _, p := range r.Programs {
		programs = append(programs, binary{"linux", p.Arch, p.Path})
	}
	return dependenciesOf(r.Source, "./cmd/trackless", programs)
}

// dependenciesOf are the modules that the programs say that they were linked
// from, with what their own files say of licenses. All programs must agree on
// versions and on the Go release. They were built from pkg of the module in source.
func dependenciesOf(source, pkg string, programs []binary) ([]Dependency, error) {
	all := map[string]Dependency{}
	goVersion := ""
	for _, p := range programs {
		info, err := buildinfo.ReadFile(p.Path)
		if err != nil {
			return nil, fmt.Errorf("%s: what it was built from: %w", p.Path, err)
		}
		if goVersion != "" && goVersion != info.GoVersion {
			return nil, fmt.Errorf("compare the programs: %s is built with %s, another with %s; build all with one Go release", p.Path, info.GoVersion, goVersion)
		}
		goVersion = info.GoVersion
		for _, m := range info.Deps {
			if m.Replace != nil {
				return nil, fmt.Errorf("%s: %s is replaced by %s, which nobody can look up", p.Path, m.Path, m.Replace.Path)
			}
			if have, ok := all[m.Path]; ok && have.Version != m.Version {
				return nil, fmt.Errorf("%s: %s %s, and %s in another program", p.Path, m.Path, m.Version, have.Version)
			}
			all[m.Path] = Dependency{Path: m.Path, Version: m.Version, Sum: m.Sum}
		}
		if err := checkSettings(p, info); err != nil {
			return nil, err
		}
	}
	dirs, err := linked(source, pkg, programs)
	if err != nil {
		return nil, err
	}
	var deps []Dependency
	for _, path := range slices.Sorted(maps.Keys(all)) {
		d := all[path]
		at, ok := dirs[path]
		if !ok {
			return nil, fmt.Errorf("%s %s is in the programs, and the sources in %s do not need it", path, d.Version, source)
		}
		if d.Dir = at.dir; at.version != d.Version {
			return nil, fmt.Errorf("%s is %s in the programs and %s in the sources", path, d.Version, at.version)
		}
		if err := d.readLicenses(slices.Sorted(maps.Keys(at.packages))); err != nil {
			return nil, err
		}
		deps = append(deps, d)
	}
	library, err := goLicense(goVersion)
	if err != nil {
		return nil, err
	}
	return append(deps, library), nil
}

// checkSettings refuses a program that holds anything of the machine that it was
// built on.
func checkSettings(p binary, info *debug.BuildInfo) error {
	settings := map[string]string{}
	for _, s := range info.Settings {
		settings[s.Key] = s.Value
	}
	for _, want := range []struct{ key, value string }{{"-trimpath", "true"}, {"CGO_ENABLED", "0"}, {"GOOS", p.OS}, {"GOARCH", p.Arch}} {
		if got := settings[want.key]; got != want.value {
			return fmt.Errorf("%s: built with %s=%s, not %s", p.Path, want.key, got, want.value)
		}
	}
	if _, stamped := settings["vcs.revision"]; stamped {
		return fmt.Errorf("%s: the state of a checkout is in it; build with -buildvcs=false", p.Path)
	}
	return nil
}

type moduleDir struct {
	version, dir string
	packages     map[string]bool // directories of its packages that are linked
}

// linked asks the go command where the modules of a program's packages are.
func linked(source, pkg string, programs []binary) (map[string]moduleDir, error) {
	dirs := map[string]moduleDir{}
	for _, p := range programs {
		cmd := exec.Command("go", "list", "-deps", "-f", "{{with .Module}}{{if .Version}}{{.Path}}\t{{.Version}}\t{{.Dir}}\t{{$.Dir}}{{end}}{{end}}", pkg)
		cmd.Dir = source
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS="+p.OS, "GOARCH="+p.Arch)
		var complaints bytes.Buffer
		cmd.Stderr = &complaints
		out, err := cmd.Output()
		if err != nil {
			return nil, fmt.Errorf("go list in %s: %w\n%s", source, err, complaints.Bytes())
		}
		for line := range strings.Lines(string(out)) {
			f := strings.Split(strings.TrimSpace(line), "\t")
			if len(f) != 4 {
				continue
			}
			m, ok := dirs[f[0]]
			if !ok {
				m = moduleDir{f[1], f[2], map[string]bool{}}
				dirs[f[0]] = m
			}
			m.packages[f[3]] = true
		}
	}
	return dirs, nil
}

var (
	licenseFile = regexp.MustCompile(`(?i)^(licen[cs]e|copying|unlicense)([-._].*)?$`)
	noticeFile  = regexp.MustCompile(`(?i)^notice([-._].*)?$`)
	sourceFile  = regexp.MustCompile(`\.go$`)
)

// readLicenses reads the licenses and notices at the top of the module and
// beside the packages that are linked; a package may have one of its own.
func (d *Dependency) readLicenses(packages []string) error {
	folders := map[string]bool{d.Dir: true}
	for _, p := range packages {
		for dir := p; len(dir) > len(d.Dir); dir = filepath.Dir(dir) {
			folders[dir] = true
		}
	}
	for _, folder := range slices.Sorted(maps.Keys(folders)) {
		entries, err := os.ReadDir(folder)
		if err != nil {
			return fmt.Errorf("licenses of %s: %w", d.Path, err)
		}
		for _, e := range entries {
			isLicense := licenseFile.MatchString(e.Name())
			if e.IsDir() || sourceFile.MatchString(e.Name()) || !isLicense && !noticeFile.MatchString(e.Name()) {
				continue
			}
			b, err := os.ReadFile(filepath.Join(folder, e.Name()))
			if err != nil {
				return err
			}
			name, err := filepath.Rel(d.Dir, filepath.Join(folder, e.Name()))
			if err != nil {
				return err
			}
			text := Text{Name: name, Contents: b}
			if isLicense {
				if text.license, err = identify(b); err != nil {
					return fmt.Errorf("%s %s: %s: %w", d.Path, d.Version, name, err)
				}
			}
			d.Texts = append(d.Texts, text)
		}
	}
	var found []string
	for _, t := range d.Texts {
		if t.license != "" && !slices.Contains(found, t.license) {
			found = append(found, t.license)
		}
	}
	if len(found) == 0 {
		return fmt.Errorf("%s %s: no license file in %s; without one nobody may pass it on", d.Path, d.Version, d.Dir)
	}
	slices.Sort(found)
	d.License = strings.Join(found, " AND ")
	return nil
}

// identify returns the SPDX expression of a license's text.
func identify(text []byte) (string, error) {
	found := licensecheck.Scan(text)
	// A copyright line and a heading are a part of the text that no license has.
	if found.Percent < 75 {
		return "", fmt.Errorf("no known license (%.0f%% of the text is like one); read it, and do without the module or teach deploy/release about it", found.Percent)
	}
	var ids []string
	for _, m := range found.Match {
		if !slices.Contains(allowed, m.ID) {
			return "", fmt.Errorf("license %s is not among %s", m.ID, strings.Join(allowed, ", "))
		}
		if !slices.Contains(ids, m.ID) {
			ids = append(ids, m.ID)
		}
	}
	slices.Sort(ids)
	return strings.Join(ids, " AND "), nil
}

// goLicense is that of the standard library, which is linked, too.
func goLicense(version string) (Dependency, error) {
	out, err := exec.Command("go", "env", "GOVERSION", "GOROOT").Output()
	if err != nil {
		return Dependency{}, fmt.Errorf("go env: %w", err)
	}
	env := strings.Fields(string(out))
	if len(env) != 2 || env[0] != version {
		return Dependency{}, fmt.Errorf("the programs are built with %s, and the go command here is %s", version, env[0])
	}
	d := Dependency{Path: standardLibrary, Version: version, Dir: env[1]}
	return d, d.readLicenses(nil)
}

// licenseReport is a table of what is linked, and below it every text, those
// that many have in common once.
func licenseReport(program string, deps []Dependency) []byte {
	var out bytes.Buffer
	fmt.Fprintf(&out, "What %s is linked from, and under which licenses. The sources of each\nmodule are at https://proxy.golang.org/MODULE/@v/VERSION.zip.\n\n", program)
	type group struct {
		users    []string
		contents []byte
	}
	groups := map[string]*group{}
	var order []string
	for _, d := range deps {
		fmt.Fprintf(&out, "%-30s %s %s\n", d.License, d.Path, d.Version)
		for _, t := range d.Texts {
			key := string(t.Contents)
			if groups[key] == nil {
				groups[key] = &group{contents: t.Contents}
				order = append(order, key)
			}
			groups[key].users = append(groups[key].users, d.Path+" "+d.Version+": "+t.Name)
		}
	}
	for _, key := range order {
		g := groups[key]
		fmt.Fprintf(&out, "\n%s\n%s\n\n%s\n", strings.Repeat("=", 78), strings.Join(g.users, "\n"), bytes.TrimSpace(g.contents))
	}
	return out.Bytes()
}
