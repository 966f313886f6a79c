package rules

import (
	"errors"
	"fmt"

	"github.com/trackless-dns/trackless/iptables"
)

// RemoveOptions say what is removed.
type RemoveOptions struct {
	Link   string // the link that was made for the listen addresses
	DryRun bool   // nothing is changed
	Force  bool   // also what is not certainly ours or not certainly unused
}

// Remove takes away everything of ours that has no living owner, and returns what
// was there. It goes on after a failure; the error has all of them, also what was
// refused.
func Remove(node Node, o RemoveOptions) ([]Removal, error) {
	r := &remover{node: node, o: o}
	if err := r.run(); err != nil {
		r.errs = append(r.errs, err)
	}
	for _, d := range r.done {
		if d.Refused {
			r.errs = append(r.errs, fmt.Errorf("%s %s was not removed: %s", d.Kind, d.Name, d.Reason))
		}
	}
	return r.done, joinErrors(r.errs)
}

// remover goes through what is there.
type remover struct {
	node Node
	o    RemoveOptions
	done []Removal
	errs []error
}

func (r *remover) run() error {
	instances, err := r.instances()
	if err != nil {
		return err
	}
	var gone, stay []iptables.Instance
	for _, i := range instances {
		s := planTable(i, r.o.Force)
		r.carryOut(s)
		if s.do != nil {
			gone = append(gone, i)
		} else {
			stay = append(stay, i)
		}
	}
	if len(stay) == 0 && !r.o.DryRun {
		// One may have started meanwhile.
		if stay, err = r.instances(); err != nil {
			return err
		}
	}
	servers, err := r.node.OtherListeners()
	if err != nil {
		return err
	}
	claims := iptables.NewClaims(stay, servers)
	failover, err := r.node.Failover()
	if err != nil {
		return err
	}
	r.carryOut(planFailover(failover, claims)...)
	accept, err := r.node.AcceptRules()
	if err != nil {
		return err
	}
	r.carryOut(planAcceptRules(accept, claims)...)
	var listen []iptables.Endpoint
	for _, i := range gone {
		listen = append(listen, i.Listen...)
	}
	devices, err := r.node.Devices(r.o.Link, addressesOf(listen))
	if err != nil {
		return err
	}
	for _, d := range devices {
		r.carryOut(planDevice(d, claims, r.o.Force)...)
	}
	return nil
}

// instances are the instances of all backends. A kernel that lacks the feature that a
// backend needs has no instances of it.
func (r *remover) instances() ([]iptables.Instance, error) {
	all, err := r.node.Instances()
	var unsupported *iptables.UnsupportedError
	if errors.As(err, &unsupported) {
		err = nil
	}
	return all, err
}

func (r *remover) carryOut(plan ...step) {
	for _, s := range plan {
		switch {
		case s.do == nil:
		case r.o.DryRun:
			s.Action = wouldRemove
		default:
			s.Action = removed
			if err := s.do(r.node); err != nil {
				s.Action, s.Reason = failed, err.Error()
				r.errs = append(r.errs, err)
			}
		}
		r.done = append(r.done, s.Removal)
	}
}

// joinErrors puts all of them on one line, nil if there is none.
func joinErrors(errs []error) error {
	if len(errs) == 0 {
		return nil
	}
	joined := errs[0]
	for _, err := range errs[1:] {
		joined = fmt.Errorf("%w; %w", joined, err)
	}
	return joined
}
