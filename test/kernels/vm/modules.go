package main

import (
	"debug/elf"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"github.com/trackless-dns/trackless/test/kernels"
)

// moduleFolders hold the modules that a node needs, below .../kernel; of
// drivers/net only what are virtual devices, and of crypto what
// checksums and hashes need.
var moduleFolders = []string{"net/*", "drivers/net/*.ko", "drivers/net/vxlan/*.ko", "crypto/crc32*.ko", "crypto/sha*.ko", "lib/*.ko", "lib/*/*.ko"}

// findModules reads the modules in a kernel package laid out under root. The
// paths in the result are relative to root.
func findModules(root string) (kernels.Modules, error) {
	trees, err := filepath.Glob(filepath.Join(root, "lib/modules/*/kernel"))
	if err != nil {
		return nil, err
	}
	if len(trees) != 1 {
		return nil, fmt.Errorf("%d kernels below %s/lib/modules, want one", len(trees), root)
	}
	modules := kernels.Modules{}
	add := func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || filepath.Ext(path) != ".ko" {
			return err
		}
		m, err := readModule(path)
		if err != nil {
			return err
		}
		if m.Path, err = filepath.Rel(root, path); err != nil {
			return err
		}
		m.Path = "/" + m.Path
		modules[moduleName(path)] = m
		return nil
	}
	for _, pattern := range moduleFolders {
		found, err := filepath.Glob(filepath.Join(trees[0], pattern))
		if err != nil {
			return nil, err
		}
		for _, path := range found {
			if err := filepath.WalkDir(path, add); err != nil {
				return nil, err
			}
		}
	}
	if len(modules) == 0 {
		return nil, fmt.Errorf("no module below %s", trees[0])
	}
	return modules, nil
}

func moduleName(path string) string {
	return strings.ReplaceAll(strings.TrimSuffix(filepath.Base(path), ".ko"), "-", "_")
}

// readModule reads what a module says of itself: strings KEY=VALUE, each ended
// by a zero byte (include/linux/moduleparam.h, MODULE_INFO).
func readModule(path string) (m kernels.Module, err error) {
	file, err := elf.Open(path)
	if err != nil {
		return m, fmt.Errorf("%s: %w", path, err)
	}
	defer file.Close()
	section := file.Section(".modinfo")
	if section == nil {
		return m, fmt.Errorf("%s: no section .modinfo: not a kernel module", path)
	}
	data, err := section.Data()
	if err != nil {
		return m, fmt.Errorf("%s: section .modinfo: %w", path, err)
	}
	for info := range strings.SplitSeq(string(data), "\x00") {
		switch key, value, _ := strings.Cut(info, "="); {
		case key == "alias":
			m.Aliases = append(m.Aliases, value)
		case key == "depends" && value != "":
			m.Depends = strings.Split(strings.ReplaceAll(value, "-", "_"), ",")
		}
	}
	return m, nil
}
