package hostrules

import (
	"cmp"
	"errors"
	"slices"

	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/hostrules/evaluator"
	"github.com/trackless-dns/trackless/iptables/internal/nfnl"
)

// verdicts are the possible ends of a chain for a packet.
type verdicts uint8

const (
	mayAccept verdicts = 1 << iota
	mayDrop
	mayGoOn
)

// passage runs one probe through one base chain, only to find how it may end.
type passage struct {
	*search
	family chainID // of the table; its name is not used
	probe  evaluator.Probe
	drop   dropped // the last rule that may drop
}

// dropped is a rule that drops.
type dropped struct {
	chain, text string
}

func (p *passage) elements(set string) ([]nfnl.Element, error) {
	if p.cautious {
		// Its elements as they were read say nothing about the next packet.
		if filled, err := p.isFilled(chainID{p.family.family, p.family.table, set}); err != nil || filled {
			return nil, cmp.Or(err, errFilled)
		}
	}
	w := walk{search: p.search, base: nfnl.BaseChain{Family: p.family.family, Table: p.family.table}}
	return w.elements(set)
}

var errFilled = errors.New("packets fill the set")

// isFilled reports whether packets fill a set.
func (s *search) isFilled(set chainID) (filled bool, err error) {
	filled, known := s.filled[set]
	if known {
		return filled, nil
	}
	if filled, err = nfnl.IsFilledByPackets(s.conn, set.family, set.table, set.name); err == nil {
		s.filled[set] = filled
	}
	return filled, err
}

// base returns how the base chain may end. At its end is its policy.
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
		if o.Matches != evaluator.Never && p.cautious && slices.ContainsFunc(o.Effects, diverts) {
			p.note(name, evaluator.RuleText(r, p.probe.Family() == iptables.IPv6))
			found |= mayDrop
		}
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
		case nfnl.VerdictQueue: // a program decides
			if v = mayAccept; p.cautious {
				p.note(name, evaluator.RuleText(r, p.probe.Family() == iptables.IPv6))
				v |= mayDrop
			}
		default:
			v = mayAccept
		}
		found |= v
		if o.Matches == evaluator.Always {
			return found, nil
		}
	}
	return found | mayGoOn, nil
}

// goOn are effects, and targets of iptables, with which a packet over UDP goes on along its way.
// Targets of NAT are not among them: untracked packets do not pass their tables.
var goOn = []string{
	"notrack", evaluator.EffectZone, "ct set", "dup", "synproxy",
	"AUDIT", "CHECKSUM", "CLASSIFY", "CONNMARK", "CONNSECMARK", "DSCP", "ECN", "HL", "HMARK", "IDLETIMER", "LED", "MARK", "RATEEST",
	"SECMARK", "SET", "SYNPROXY", "TCPMSS", "TCPOPTSTRIP", "TEE", "TOS", "TTL",
}

// diverts reports whether a rule with the effect may bring packets to another receiver, or
// drop them. A target that is not known may do either.
func diverts(effect string) bool { return !slices.Contains(goOn, effect) }

func (p *passage) note(chain, text string) { p.drop = dropped{chain, text} }

// relevantKey is a chain and the kind of packet for which its rules were filtered.
type relevantKey struct {
	chainID
	endpoint  iptables.Endpoint
	direction iptables.Direction
	hook      uint32
	local     bool
}

// relevant returns the rules of a chain that the packet matches over any device and from
// any client. So a host with hundreds of devices does not evaluate all rules for each.
func (p *passage) relevant(chain string) ([]nfnl.Rule, error) {
	at := p.probe.Path
	id := chainID{p.family.family, p.family.table, chain}
	key := relevantKey{id, p.probe.Endpoint, p.probe.Direction, at.Hook, at.Local}
	if rules, ok := p.filtered[key]; ok {
		return rules, nil
	}
	rules, err := p.rulesOf(id)
	if err != nil {
		return nil, err
	}
	fromAny := p.probe
	fromAny.Path = &evaluator.Path{Hook: at.Hook, Local: at.Local, AnyClient: true, Cautious: at.Cautious}
	rules = slices.DeleteFunc(slices.Clone(rules), func(r nfnl.Rule) bool {
		return evaluator.Evaluate(r, fromAny, p.elements).Matches == evaluator.Never
	})
	p.filtered[key] = rules
	return rules, nil
}
