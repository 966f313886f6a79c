package rules

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/failover"
	"github.com/trackless-dns/trackless/iptables/hostaddr"
	"github.com/trackless-dns/trackless/iptables/hostrules"
	"github.com/trackless-dns/trackless/iptables/owner"
	"github.com/trackless-dns/trackless/node/instance"
)

// What is done with a thing, as the JSON has it.
const (
	removed     = "removed"
	wouldRemove = "would remove"
	left        = "left"
	failed      = "failed"
)

// Removal is one thing that is or was there, and what became of it.
type Removal struct {
	Kind   string `json:"kind"` // table, chains, failover table, failover pair, accept rule, link or address
	Name   string `json:"name"`
	Device string `json:"device,omitempty"` // of an address
	Action string `json:"action"`
	Reason string `json:"reason,omitempty"`

	// Refused: it is ours, and is left all the same.
	Refused bool `json:"-"`
}

func (r Removal) String() string {
	text := fmt.Sprintf("%s: %s %s", r.Action, r.Kind, r.Name)
	if r.Device != "" {
		text += " on " + r.Device
	}
	if r.Reason != "" {
		text += ": " + r.Reason
	}
	return text
}

// A step of a plan removes a thing; where do is nil the thing stays.
type step struct {
	Removal
	do func(Node) error
}

// leave is a step that changes nothing since somebody uses the thing.
func leave(r Removal, user string) step {
	r.Action, r.Reason = left, user+" is in use"
	return step{Removal: r}
}

// planTable plans for the table of an instance: it goes if the instance is dead, or
// if that is not known by force.
func planTable(i iptables.Instance, force bool) step {
	r := Removal{Kind: i.Kind(), Name: i.TableName()}
	name := instance.OwnerName(i.Owner)
	switch {
	case i.Owner.Life == owner.Alive && i.Owner.LocalPID != 0:
		r.Reason = fmt.Sprintf("%s is alive; end it with `kill %d`, or hand DNS back with `trackless rules detach --pid %[2]d`", name, i.Owner.LocalPID)
	case i.Owner.Life == owner.Alive:
		r.Reason = name + " is alive; end it there, or hand DNS back with `trackless rules detach`"
	case i.Owner.Life == owner.Unknown && !force:
		r.Reason = name + " may be alive; run this on the host, or use --force if it is gone for certain"
	default:
		r.Reason = "its owner, " + name + ", is dead"
		if i.Owner.Life == owner.Unknown {
			r.Reason = "by force"
		}
		return step{r, func(n Node) error { return n.RemoveTable(i) }}
	}
	r.Action, r.Refused = left, true
	return step{Removal: r}
}

// planFailover plans for the failover table: it goes, or those of its pairs that no
// instance has a use for.
func planFailover(f failover.State, claims iptables.Claims) []step {
	if !f.Present {
		return nil
	}
	table := Removal{Kind: "failover table", Name: "inet " + owner.FailoverTable}
	used, unused := usedPairs(f, claims)
	switch {
	case len(f.Pairs) == 0 && claims.Any() != "": // changed by somebody
		return []step{leave(table, claims.Any())}
	case len(used) == 0:
		return []step{{table, Node.RemoveFailover}}
	}
	plan := []step{leave(table, claims.Instance(used[0].Listen))}
	for _, p := range unused {
		pair := Removal{Kind: "failover pair", Name: fmt.Sprintf("%s to %s", p.Listen, p.Service)}
		plan = append(plan, step{pair, func(n Node) error { return n.KeepFailover(used, f.Outside) }})
	}
	return plan
}

// usedPairs splits the pairs of the failover table into those whose address an
// instance serves and the others, which stand for pods that were forgotten.
func usedPairs(f failover.State, claims iptables.Claims) (used, unused []failover.Pair) {
	for _, p := range f.Pairs {
		if claims.Instance(p.Listen) != "" {
			used = append(used, p)
		} else {
			unused = append(unused, p)
		}
	}
	return used, unused
}

func planAcceptRules(rules []hostrules.AcceptRule, claims iptables.Claims) []step {
	var plan []step
	for _, rule := range rules {
		r := Removal{Kind: "accept rule", Name: AcceptRuleName(rule)}
		if user := claims.Instance(rule.Endpoint.Addr); user != "" {
			plan = append(plan, leave(r, user))
			continue
		}
		plan = append(plan, step{r, func(n Node) error { return n.RemoveAcceptRule(rule) }})
	}
	return plan
}

// AcceptRuleName gives for example "ip filter INPUT query udp 10.96.0.10:53".
func AcceptRuleName(r hostrules.AcceptRule) string {
	program := ""
	if r.Legacy {
		program = " (iptables-legacy)"
	}
	return fmt.Sprintf("%s filter%s %s %s %s", r.Family, program, r.Chain, r.Direction, r.Endpoint)
}

// planDevice plans for a link that was made for listen addresses, or for the
// addresses on another device.
func planDevice(d hostaddr.Device, claims iptables.Claims, force bool) []step {
	whole, ours, doubtful := d.Leftovers(claims)
	asked := slices.DeleteFunc(slices.Clone(d.Addresses), func(a hostaddr.Address) bool { return claims.Of(a.Addr) == "" })
	link := Removal{Kind: "link", Name: d.Name}
	address := func(a netip.Addr) Removal { return Removal{Kind: "address", Name: a.String(), Device: d.Name} }
	var plan []step
	switch {
	case whole || d.Link && len(asked) == 0 && force:
		return []step{{link, func(n Node) error { return n.RemoveLink(d.Name) }}}
	case d.Link && len(asked) > 0:
		plan = append(plan, leave(link, claims.Of(asked[0].Addr)))
	default:
		for _, a := range asked {
			if a.Marked {
				plan = append(plan, leave(address(a.Addr), claims.Of(a.Addr)))
			}
		}
	}
	if d.Name == "lo" && force {
		// An address of a dead instance's table.
		ours, doubtful = slices.Concat(ours, doubtful), nil
	}
	for _, a := range ours {
		plan = append(plan, step{address(a), func(n Node) error { return n.RemoveAddress(d.Name, a) }})
	}
	if d.Link || d.Name == "lo" {
		for _, a := range doubtful { // not certainly ours
			r := address(a)
			r.Action, r.Reason = left, "it does not carry our mark, so it may be NodeLocal DNSCache's or somebody else's; --force removes it"
			plan = append(plan, step{Removal: r})
		}
	}
	return plan
}
