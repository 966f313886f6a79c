package reconcile

import (
	"errors"
	"maps"
	"sync"

	"github.com/trackless-dns/trackless/iptables"
)

// installer makes the rules that backends have in the kernel those of plans. Its
// methods are called under the reconciler's lock, save for counters.
type installer struct {
	cfg       *Config
	withheld  bool // the rules name no leases, since nothing is to be taken
	installed map[iptables.Backend]iptables.Rules

	counting *sync.Mutex
	retired  iptables.Counters // of backends that were given up
}

func newInstaller(cfg *Config) installer {
	return installer{cfg: cfg, installed: map[iptables.Backend]iptables.Rules{}, counting: new(sync.Mutex), retired: iptables.Counters{}}
}

// install makes a backend's static rules those of the given plans together,
// less those of another backend.
func (i *installer) install(b iptables.Backend, plans ...*serving) error {
	r, err := i.rules(b, plans...)
	if err != nil {
		return err
	}
	if err := b.Install(r); err != nil {
		return err
	}
	i.installed[b] = r
	return nil
}

// rules are those of the given plans together; the last one's settings hold. A nil
// plan asks for nothing, and one of another backend for nothing here.
func (i *installer) rules(b iptables.Backend, plans ...*serving) (r iptables.Rules, err error) {
	for _, s := range plans {
		if s == nil || s.backend != b {
			continue
		}
		if r.Plan, err = r.Plan.Merge(s.plan); err != nil {
			return r, err
		}
		r.Checks = append(r.Checks, s.checks...)
		if !i.withheld {
			r.Leases = append(r.Leases, s.leases...)
		}
	}
	if !r.Plan.AnySource {
		r.Uplinks = r.Plan.Uplinks
		if len(r.Uplinks) == 0 {
			if r.Uplinks, err = i.cfg.Kernel.Uplinks(r.Plan); err != nil {
				return r, err
			}
		}
	}
	r.Unowned = i.cfg.Kernel.Unowned(r.Plan.Addresses())
	return r, nil
}

// exempt lets TCP connections be that are tracked already. Those begun after the
// rules were installed are noted by the rules themselves, so the time between
// this check and the attach loses none.
func (i *installer) exempt(s *serving) error {
	conns, err := i.cfg.Kernel.Connections(s.plan.Listen)
	if err != nil {
		return err
	}
	return s.backend.Exempt(conns)
}

// exemptOnly makes a backend forget the connections that began while another
// untracked them: only those that the kernel tracks are exempt.
func (i *installer) exemptOnly(s *serving) error {
	conns, err := i.cfg.Kernel.Connections(s.plan.Listen)
	if err != nil {
		return err
	}
	return s.backend.ExemptOnly(conns)
}

// detach takes a backend's query rules away from the endpoints.
func (i *installer) detach(b iptables.Backend, listen []iptables.Endpoint) error {
	return b.Detach(i.cfg.Kernel.Held(listen))
}

// remove takes the rules away first: from then on nobody takes our addresses for
// asked for.
func (i *installer) remove(b iptables.Backend) error {
	return errors.Join(b.Remove(), i.cfg.Addresses.Remove())
}

// retire removes the rules of a backend after which another has come.
func (i *installer) retire(b iptables.Backend) error {
	err := b.Remove()
	delete(i.installed, b)
	counters, countErr := b.Counters()
	i.counting.Lock()
	defer i.counting.Unlock()
	for key, n := range counters {
		i.retired[key] += n
	}
	return errors.Join(err, countErr)
}

// counters returns those of a backend and of all before it.
func (i *installer) counters(b iptables.Backend) (iptables.Counters, error) {
	counters, err := b.Counters()
	if err != nil {
		return nil, err
	}
	i.counting.Lock()
	defer i.counting.Unlock()
	out := maps.Clone(counters)
	for key, n := range i.retired {
		out[key] += n
	}
	return out, nil
}
