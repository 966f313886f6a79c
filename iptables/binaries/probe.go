package binaries

import (
	"errors"

	"github.com/trackless-dns/trackless/iptables"
)

// probe finds out which matches and targets the kernel has. It makes a chain with them
// and deletes it in the same transaction. The programs ask the kernel for each match by
// name and revision, which also loads its module.
func (p *program) probe(id string) (has features, err error) {
	try := func(rules ...string) (bool, error) {
		chain := chainPrefix + id + "-" + untrackChain
		lines := []string{":" + chain + " - [0:0]"}
		for _, r := range rules {
			lines = append(lines, "-A "+chain+" "+r)
		}
		err := p.restore(append(lines, "-F "+chain, "-X "+chain), quickWait)
		if errors.Is(err, iptables.ErrBusy) || errors.Is(err, iptables.ErrPermission) || isUnsupported(err) {
			return false, err
		}
		return err == nil, nil
	}
	// First without them: this fails if there is no raw table or no NOTRACK.
	if err := p.restore(basicProbe(id), quickWait); err != nil {
		return has, err
	}
	if has.recent, err = try("-m recent --name " + setPrefix + id + "-probe --rdest --rcheck --seconds 1 " + notrack); err != nil {
		return has, err
	}
	set := setPrefix + id + "-probe"
	err = withSets(func(s *sets) error {
		if err := s.create(set, setOfTuples, p.family, connectionTimeout, setSize); err != nil {
			return nil //nolint:nilerr // a kernel without ip_set: has.ipset stays false
		}
		has.ipset, err = try(
			"-p tcp -m set --match-set "+set+" src,src,dst -j SET --add-set "+set+" src,src,dst --exist --timeout 1",
			"-p tcp -m conntrack ! --ctstate UNTRACKED",
		)
		return errors.Join(err, s.destroy(set))
	})
	return has, err
}

func basicProbe(id string) []string {
	chain := chainPrefix + id + "-" + untrackChain
	return []string{
		":" + chain + " - [0:0]", "-A " + chain + " -p udp -m multiport --sports 1,2 " + notrack, "-F " + chain, "-X " + chain,
	}
}
