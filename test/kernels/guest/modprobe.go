package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/test/kernels"
)

// modprobe loads the modules that the arguments name, by name or by alias, with
// what they need. Options are those of the kernel and of iptables: -q and --.
func modprobe(args []string) error {
	text, err := os.ReadFile(kernels.ModulesIndex)
	if err != nil {
		return err
	}
	var modules kernels.Modules
	if err := json.Unmarshal(text, &modules); err != nil {
		return fmt.Errorf("%s: %w", kernels.ModulesIndex, err)
	}
	for _, arg := range args {
		if strings.HasPrefix(arg, "-") {
			continue
		}
		names := resolve(modules, strings.ReplaceAll(arg, "-", "_"))
		if len(names) == 0 {
			return fmt.Errorf("no module is called %s, nor has it as an alias", arg)
		}
		for _, name := range names {
			if err := load(modules, name); err != nil {
				return err
			}
		}
	}
	return nil
}

// resolve finds modules by name, else by alias, whose patterns are those of a
// shell.
func resolve(modules kernels.Modules, name string) (names []string) {
	if _, ok := modules[name]; ok {
		return []string{name}
	}
	for module, m := range modules {
		for _, alias := range m.Aliases {
			if ok, err := path.Match(strings.ReplaceAll(alias, "-", "_"), name); ok && err == nil {
				names = append(names, module)
				break
			}
		}
	}
	return names
}

// load loads a module after those that it depends on. It is no error if it is
// there already.
func load(modules kernels.Modules, name string) error {
	m, ok := modules[name]
	if !ok {
		return nil // compiled in
	}
	for _, other := range m.Depends {
		if err := load(modules, other); err != nil {
			return err
		}
	}
	f, err := os.Open(m.Path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("load %s: %w", name, err)
	}
	return nil
}
