package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/template"
)

// pluginName is that of the program, by which kubectl finds it.
const pluginName = "kubectl-trackless"

// A platform is what krew's manifest says of one archive.
type platform struct{ OS, Arch, Archive, SHA256, Program string }

// parsePlugin reads OS/ARCH=FILE.
func parsePlugin(arg string) (binary, error) {
	target, path, ok := strings.Cut(arg, "=")
	system, arch, both := strings.Cut(target, "/")
	if !ok || !both || system == "" || arch == "" || path == "" {
		return binary{}, fmt.Errorf("%q is not OS/ARCH=FILE", arg)
	}
	return binary{system, arch, path}, nil
}

// plugins packs the kubectl plugin for each platform, and writes krew's manifest.
func (r Release) plugins() error {
	if len(r.Plugins) == 0 {
		return nil
	}
	deps, err := dependenciesOf(filepath.Join(r.Source, "deploy", pluginName), ".", r.Plugins)
	if err != nil {
		return fmt.Errorf("kubectl plugin: %w", err)
	}
	license, err := os.ReadFile(filepath.Join(r.Source, "LICENSE"))
	if err != nil {
		return err
	}
	report := licenseReport(pluginName+" "+r.Version, deps)
	var platforms []platform
	for _, p := range r.Plugins {
		program := pluginName
		if p.OS == "windows" {
			program += ".exe"
		}
		contents, err := os.ReadFile(p.Path)
		if err != nil {
			return err
		}
		archive, err := tarball([]member{
			{"LICENSE", license, 0o644}, {"THIRD-PARTY-LICENSES.txt", report, 0o644}, {program, contents, 0o755},
		}, r.Created)
		if err != nil {
			return err
		}
		name := fmt.Sprintf("%s-%s-%s-%s.tar.gz", pluginName, r.Version, p.OS, p.Arch)
		if err := r.file(name, archive); err != nil {
			return err
		}
		digest, err := r.digestOf(name)
		if err != nil {
			return err
		}
		platforms = append(platforms, platform{p.OS, p.Arch, name, digest, program})
	}
	return r.krew(platforms)
}

func (r Release) krew(platforms []platform) error {
	t, err := template.ParseFiles(filepath.Join(r.Source, "deploy", pluginName, "krew.yaml.tmpl"))
	if err != nil {
		return err
	}
	var b bytes.Buffer
	if err := t.Execute(&b, map[string]any{"Version": r.Version, "Platforms": platforms}); err != nil {
		return fmt.Errorf("krew's manifest: %w", err)
	}
	return r.file("trackless-krew.yaml", b.Bytes())
}
