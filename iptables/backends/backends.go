// Package backends lists the ways to keep rules in the kernel. A backend is a
// package beside this one and an entry here: nobody else has to know which there
// are.
package backends

import (
	"errors"
	"fmt"

	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/binaries"
	"github.com/trackless-dns/trackless/iptables/nftables"
)

// Kind is a way to keep rules in the kernel.
type Kind struct {
	// Name is what `backend` in the Corefile calls it, and [iptables.Instance] too.
	Name string
	// Needs is what the kernel must have for it.
	Needs string
	// Open makes the backend of an instance. It changes nothing in the kernel, and
	// fails with an [iptables.UnsupportedError] where the kind cannot be used.
	Open func(Options) (iptables.Backend, error)
	// Instances reads what the kernel holds of all instances of the kind. It changes
	// nothing.
	Instances func() ([]iptables.Instance, error)
	// Remove takes away what the kernel holds of an instance, by the name of its table.
	Remove func(table string) error
	// RemoveStale takes away what the kernel holds of instances whose process is
	// certainly gone, and returns the names of their tables.
	RemoveStale func() ([]string, error)
}

// Options are for backends that run programs; the others have no use for them.
type Options struct {
	Variant binaries.Variant
	// Count is told of each failure, by its kind.
	Count func(errorType string)
}

// All returns the kinds, the best first.
func All() []Kind {
	return []Kind{
		{
			Name:  "nftables",
			Needs: "nf_tables",
			Open: func(Options) (iptables.Backend, error) {
				return opened(nftables.New(nftables.Config{}))
			},
			Instances:   func() ([]iptables.Instance, error) { return nftables.Instances(nftables.Config{}) },
			Remove:      func(table string) error { return nftables.RemoveTable(nftables.Config{}, table) },
			RemoveStale: func() ([]string, error) { return nftables.RemoveStale(nftables.Config{}) },
		},
		{
			Name:  "iptables",
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

// opened makes an interface of a backend. A nil pointer in an interface is none.
func opened[B iptables.Backend](b B, err error) (iptables.Backend, error) {
	if err != nil {
		return nil, err
	}
	return b, nil
}

// Named returns the kind of a name.
func Named(name string) (k Kind, known bool) {
	for _, k := range All() {
		if k.Name == name {
			return k, true
		}
	}
	return Kind{}, false
}

// Instances returns those of all kinds, sorted by kind and name, also where the
// kernel has not what one of them needs: that is an [iptables.UnsupportedError].
func Instances() (all []iptables.Instance, err error) {
	for _, k := range All() {
		some, someErr := k.Instances()
		all = append(all, some...)
		err = errors.Join(err, someErr)
	}
	return all, err
}

// Remove takes away what the kernel holds of an instance.
func Remove(i iptables.Instance) error {
	k, known := Named(i.Backend)
	if !known {
		return fmt.Errorf("remove %s: no backend is called %q", i.Name(), i.Backend)
	}
	return k.Remove(i.Table)
}

// RemoveStale takes away what the kernel holds of instances whose process is certainly
// gone, and returns their names.
func RemoveStale() (removed []string, err error) {
	for _, k := range All() {
		some, someErr := k.RemoveStale()
		removed = append(removed, some...)
		err = errors.Join(err, someErr)
	}
	return removed, err
}
