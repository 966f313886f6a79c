package hostrules

import (
	"slices"

	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/hostrules/evaluator"
	"github.com/trackless-dns/trackless/iptables/internal/nfnl"
)

// verdicts are the ways in which a chain may end for a packet.
type verdicts uint8

const (
	mayAccept verdicts = 1 << iota
	mayDrop
	mayGoOn
)

// passage is the way of one probe through one base chain, which is looked at for
// how it ends only.
type passage struct {
	*search
	family chainID // of the table; its name is not used
	probe  evaluator.Probe
	drop   dropped // the last rule that may drop
}

// dropped names a rule that drops.
type dropped struct {
	chain, text string
}

func (p *passage) elements(set string) ([]nfnl.Element, error) {
	w := walk{search: p.search, base: nfnl.BaseChain{Family: p.family.family, Table: p.family.table}}
	return w.elements(set)
}

// base returns how the base chain may end: not by going on.
func (p *passage) base(c nfnl.BaseChain) (verdicts, error) {
	v, err := p.chain(c.Name, 0)
	if err != nil || v&mayGoOn == 0 {
		return v, err
	}
	v &^= mayGoOn
	if c.Policy == nfnl.VerdictDrop {
		p.note(c.Name, "policy drop")
		return v | mayDrop, nil
	}
	return v | mayAccept, nil
}

func (p *passage) chain(name string, depth int) (verdicts, error) {
	if depth > maxJumps {
		return mayGoOn, nil
	}
	rules, err := p.relevant(name)
	if err != nil {
		return 0, err
	}
	var found verdicts
	for _, r := range rules {
		o := evaluator.Evaluate(r, p.probe, p.elements)
		if o.Matches == evaluator.Never || o.Verdict == nil {
			continue
		}
		var v verdicts
		switch o.Verdict.Code {
		case nfnl.VerdictJump, nfnl.VerdictGoto:
			if v, err = p.chain(o.Verdict.Chain, depth+1); err != nil {
				return 0, err
			}
			if o.Verdict.Code == nfnl.VerdictJump && v&mayGoOn != 0 {
				found |= v &^ mayGoOn
				continue
			}
		case nfnl.VerdictReturn:
			v = mayGoOn
		case nfnl.VerdictDrop:
			p.note(name, evaluator.RuleText(r, p.probe.Family() == iptables.IPv6))
			v = mayDrop
		default: // accepted, or decided by a program
			v = mayAccept
		}
		found |= v
		if o.Matches == evaluator.Always {
			return found, nil
		}
	}
	return found | mayGoOn, nil
}

func (p *passage) note(chain, text string) { p.drop = dropped{chain, text} }

// relevantKey names what a chain's rules were sifted for.
type relevantKey struct {
	chainID
	endpoint  iptables.Endpoint
	direction iptables.Direction
	hook      uint32
	local     bool
}

// relevant returns the rules of a chain that meet the packet by some device and
// from some client, so that a host with hundreds of devices does not pay for
// every rule with each of them.
func (p *passage) relevant(chain string) ([]nfnl.Rule, error) {
	w := p.probe.Way
	id := chainID{p.family.family, p.family.table, chain}
	key := relevantKey{id, p.probe.Endpoint, p.probe.Direction, w.Hook, w.Local}
	if rules, ok := p.sifted[key]; ok {
		return rules, nil
	}
	rules, err := p.rulesOf(id)
	if err != nil {
		return nil, err
	}
	anybody := p.probe
	anybody.Way = &evaluator.Way{Hook: w.Hook, Local: w.Local, AnyClient: true}
	rules = slices.DeleteFunc(slices.Clone(rules), func(r nfnl.Rule) bool {
		return evaluator.Evaluate(r, anybody, p.elements).Matches == evaluator.Never
	})
	p.sifted[key] = rules
	return rules, nil
}
