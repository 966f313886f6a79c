// Package backends is the list of backends. The option's parser and the printers also name
// each backend: see "Where to add" in ARCHITECTURE.
package backends

import (
	"errors"
	"fmt"

	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/binaries"
	"github.com/trackless-dns/trackless/iptables/nftables"
)

// Kind is one backend.
type Kind struct {
	// Name is its name in the Corefile (`backend`) and in [iptables.Instance].
	Name string
	// Needs is the kernel feature that it needs.
	Needs string
	// Open makes the backend of an instance. It changes nothing in the kernel, and
	// fails with an [iptables.UnsupportedError] if this node cannot use the kind.
	Open func(Options) (iptables.Backend, error)
	// Instances reads the rules of all instances of the kind. It changes nothing.
	Instances func() ([]iptables.Instance, error)
	// Remove removes the rules of an instance, by the name of its table.
	Remove func(table string) error
	// RemoveStale removes the rules of instances whose process is certainly gone,
	// and returns the names of their tables.
	RemoveStale func() ([]string, error)
}

// Options are for backends that run programs; other backends ignore them.
type Options struct {
	Variant binaries.Variant
	// Count is called for each failure, with its type.
	Count func(errorType string)
}

// All returns the kinds, the best first.
func All() []Kind {
	return []Kind{
		{
			Name:  iptables.BackendNFTables,
			Needs: "nf_tables",
			Open: func(Options) (iptables.Backend, error) {
				return opened(nftables.New(nftables.Config{}))
			},
			Instances:   func() ([]iptables.Instance, error) { return nftables.Instances(nftables.Config{}) },
			Remove:      func(table string) error { return nftables.RemoveTable(nftables.Config{}, table) },
			RemoveStale: func() ([]string, error) { return nftables.RemoveStale(nftables.Config{}) },
		},
		{
			Name:  iptables.BackendBinaries,
			Needs: "x_tables",
			Open: func(o Options) (iptables.Backend, error) {
				return opened(binaries.New(binaries.Config{Variant: o.Variant, Count: o.Count}))
			},
			Instances:   binaries.Instances,
			Remove:      binaries.RemoveInstance,
			RemoveStale: binaries.RemoveStale,
		},
	}
}

// opened returns the backend as an interface: nil on an error, not an interface that
// holds a nil pointer.
func opened[B iptables.Backend](b B, err error) (iptables.Backend, error) {
	if err != nil {
		return nil, err
	}
	return b, nil
}

// Named returns the kind with that name.
func Named(name string) (k Kind, known bool) {
	for _, k := range All() {
		if k.Name == name {
			return k, true
		}
	}
	return Kind{}, false
}

// Instances returns the instances of all kinds, sorted by kind and name. If the
// kernel lacks a feature that one kind needs, it returns the instances of the others
// and an [iptables.UnsupportedError].
func Instances() (all []iptables.Instance, err error) {
	for _, k := range All() {
		some, someErr := k.Instances()
		all = append(all, some...)
		err = errors.Join(err, someErr)
	}
	return all, err
}

// Remove removes the rules of an instance.
func Remove(i iptables.Instance) error {
	k, known := Named(i.Backend)
	if !known {
		return fmt.Errorf("remove %s: unknown backend %q", i.Name(), i.Backend)
	}
	return k.Remove(i.Table)
}

// RemoveStale removes the rules of instances whose process is certainly gone, and
// returns the names of their tables.
func RemoveStale() (removed []string, err error) {
	for _, k := range All() {
		some, someErr := k.RemoveStale()
		removed = append(removed, some...)
		err = errors.Join(err, someErr)
	}
	return removed, err
}
