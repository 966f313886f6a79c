package main

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/trackless-dns/trackless/cmd/trackless/cli"
	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/failover"
	"github.com/trackless-dns/trackless/iptables/hostaddr"
	"github.com/trackless-dns/trackless/iptables/hostrules"
	"github.com/trackless-dns/trackless/iptables/owner"
)

const rulesRemoveHelp = `Take away everything of Trackless that has no living owner: tables that a dead
instance left (kernels before 5.12 do not bind them to their process), and, for
each listen address that no instance on the node asks for any more, its part of
the failover table, our accept rules in filter chains of the host, the address
and, with its last address, the link.

What a running instance uses stays, and the command fails and names its pid: end
the instance first (SIGTERM takes away all that it alone asks for, but for its
part of the failover table and accept rules), or
hand DNS back with "trackless rules detach". No option overrides that. What is
not certainly ours stays too and is named: tables whose owner lives in a
container that cannot be seen from here, and addresses without our mark, which
may be those of NodeLocal DNSCache (kernels before 5.18 keep no mark). --force
removes these two.

Exit status: 0 done or nothing to do, 1 something failed or was refused, 2 wrong
command line. --dry-run changes nothing and has the status that the removal
would have.`

const rulesRemoveExample = `  trackless rules remove --dry-run
  trackless rules remove
  trackless rules remove --interface dns0`

type rulesRemoveOptions struct {
	output string
	link   string
	dryRun bool
	force  bool
}

func rulesRemoveCommand(node func() rulesNode) *cobra.Command {
	var o rulesRemoveOptions
	cmd := &cobra.Command{
		Use:     "remove",
		Short:   "Take away everything of ours that has no living owner",
		Long:    rulesRemoveHelp,
		Example: rulesRemoveExample,
		Args:    cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := cli.CheckOutput("rules remove", o.output); err != nil {
				return err
			}
			if err := checkInterface("remove", o.link); err != nil {
				return err
			}
			return removeRules(node(), o, cmd.OutOrStdout())
		},
	}
	cli.OutputFlag(cmd, &o.output)
	interfaceFlag(cmd, &o.link)
	cmd.Flags().BoolVar(&o.dryRun, "dry-run", false, "list what would be removed, and change nothing")
	cmd.Flags().BoolVar(&o.force, "force", false, "also remove what is not certainly ours or not certainly unused")
	return cmd
}

// What is done with a thing, as the JSON has it.
const (
	removed     = "removed"
	wouldRemove = "would remove"
	left        = "left"
	failed      = "failed"
)

// removal is the JSON of one thing that is or was there.
type removal struct {
	Kind   string `json:"kind"` // table, chains, failover table, failover pair, accept rule, link or address
	Name   string `json:"name"`
	Device string `json:"device,omitempty"` // of an address
	Action string `json:"action"`
	Reason string `json:"reason,omitempty"`

	// refused: it is ours, and is left all the same.
	refused bool
}

func (r removal) String() string {
	text := fmt.Sprintf("%s: %s %s", r.Action, r.Kind, r.Name)
	if r.Device != "" {
		text += " on " + r.Device
	}
	if r.Reason != "" {
		text += ": " + r.Reason
	}
	return text
}

// remover goes through what is there.
type remover struct {
	node rulesNode
	o    rulesRemoveOptions
	done []removal
	errs []error
}

func removeRules(node rulesNode, o rulesRemoveOptions, out io.Writer) error {
	r := &remover{node: node, o: o}
	if err := r.run(); err != nil {
		r.errs = append(r.errs, err)
	}
	if err := r.write(out); err != nil {
		return rulesError("remove", err)
	}
	for _, d := range r.done {
		if d.refused {
			r.errs = append(r.errs, fmt.Errorf("%s %s stays: %s", d.Kind, d.Name, d.Reason))
		}
	}
	if len(r.errs) > 0 {
		return rulesError("remove", joinErrors(r.errs))
	}
	return nil
}

func (r *remover) run() error {
	instances, err := r.instances()
	if err != nil {
		return err
	}
	var gone, stay []iptables.Instance
	for _, i := range instances {
		if r.table(i) {
			gone = append(gone, i)
		} else {
			stay = append(stay, i)
		}
	}
	if len(stay) == 0 && !r.o.dryRun {
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
	if err := r.failover(claims); err != nil {
		return err
	}
	if err := r.acceptRules(claims); err != nil {
		return err
	}
	var listen []iptables.Endpoint
	for _, i := range gone {
		listen = append(listen, i.Listen...)
	}
	devices, err := r.node.Devices(r.o.link, addressesOf(listen))
	if err != nil {
		return err
	}
	for _, d := range devices {
		r.device(d, claims)
	}
	return nil
}

// instances are those of both backends. A kernel without nf_tables has none of one.
func (r *remover) instances() ([]iptables.Instance, error) {
	all, err := r.node.Instances()
	var unsupported *iptables.UnsupportedError
	if errors.As(err, &unsupported) {
		err = nil
	}
	return all, err
}

// table removes the table of an instance that is dead, and reports whether it
// is out of the way.
func (r *remover) table(i iptables.Instance) bool {
	t := removal{}
	t.Kind, t.Name, _ = strings.Cut(i.Name(), " ")
	switch {
	case i.Owner.Life == owner.Alive && i.Owner.LocalPID != 0:
		t.Reason = fmt.Sprintf("%s is alive; end it with `kill %d`, or hand DNS back with `trackless rules detach --pid %[2]d`", ownerName(i.Owner), i.Owner.LocalPID)
	case i.Owner.Life == owner.Alive:
		t.Reason = ownerName(i.Owner) + " is alive; end it there, or hand DNS back with `trackless rules detach`"
	case i.Owner.Life == owner.Unknown && !r.o.force:
		t.Reason = ownerName(i.Owner) + " may be alive; run this on the host, or use --force if it is gone for certain"
	default:
		t.Reason = "its owner, " + ownerName(i.Owner) + ", is dead"
		if i.Owner.Life == owner.Unknown {
			t.Reason = "by force"
		}
		r.remove(t, func() error { return r.node.RemoveTable(i) })
		return true
	}
	t.Action, t.refused = left, true
	r.done = append(r.done, t)
	return false
}

// failover removes the table, or those of its pairs that no instance has a use for.
func (r *remover) failover(claims iptables.Claims) error {
	f, err := r.node.Failover()
	if err != nil || !f.Present {
		return err
	}
	t := removal{Kind: "failover table", Name: "inet " + owner.FailoverTable}
	used, unused := usedPairs(f, claims)
	switch {
	case len(used) > 0:
		r.inUse(t, claims.Instance(used[0].Listen))
	case len(f.Pairs) == 0 && claims.Any() != "": // changed by somebody
		r.inUse(t, claims.Any())
		return nil
	default:
		r.remove(t, r.node.RemoveFailover)
		return nil
	}
	for _, p := range unused {
		pair := removal{Kind: "failover pair", Name: fmt.Sprintf("%s to %s", p.Listen, p.Service)}
		r.remove(pair, func() error { return r.node.KeepFailover(used, f.Outside) })
	}
	return nil
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

func (r *remover) acceptRules(claims iptables.Claims) error {
	rules, err := r.node.AcceptRules()
	if err != nil {
		return err
	}
	for _, rule := range rules {
		t := removal{Kind: "accept rule", Name: acceptRuleName(rule)}
		if user := claims.Instance(rule.Endpoint.Addr); user != "" {
			r.inUse(t, user)
			continue
		}
		r.remove(t, func() error { return r.node.RemoveAcceptRule(rule) })
	}
	return nil
}

// acceptRuleName gives for example "ip filter INPUT query udp 10.96.0.10:53".
func acceptRuleName(r hostrules.AcceptRule) string {
	program := ""
	if r.Legacy {
		program = " (iptables-legacy)"
	}
	return fmt.Sprintf("%s filter%s %s %s %s", r.Family, program, r.Chain, r.Direction, r.Endpoint)
}

func (r *remover) device(d hostaddr.Device, claims iptables.Claims) {
	whole, ours, doubtful := d.Leftovers(claims)
	asked := slices.DeleteFunc(slices.Clone(d.Addresses), func(a hostaddr.Address) bool { return claims.Of(a.Addr) == "" })
	link := removal{Kind: "link", Name: d.Name}
	switch {
	case whole || d.Link && len(asked) == 0 && r.o.force:
		r.remove(link, func() error { return r.node.RemoveLink(d.Name) })
		return
	case d.Link && len(asked) > 0:
		r.inUse(link, claims.Of(asked[0].Addr))
	default:
		for _, a := range asked {
			if a.Marked {
				r.inUse(removal{Kind: "address", Name: a.Addr.String(), Device: d.Name}, claims.Of(a.Addr))
			}
		}
	}
	if d.Name == "lo" && r.o.force {
		// An address of a dead instance's table.
		ours, doubtful = slices.Concat(ours, doubtful), nil
	}
	for _, a := range ours {
		r.remove(removal{Kind: "address", Name: a.String(), Device: d.Name}, func() error { return r.node.RemoveAddress(d.Name, a) })
	}
	if d.Link || d.Name == "lo" {
		r.doubtful(d, doubtful)
	}
}

// doubtful leaves what is not certainly ours.
func (r *remover) doubtful(d hostaddr.Device, addrs []netip.Addr) {
	for _, a := range addrs {
		r.done = append(r.done, removal{Kind: "address", Name: a.String(), Device: d.Name, Action: left,
			Reason: "it does not carry our mark, so it may be NodeLocal DNSCache's or somebody else's; --force removes it"})
	}
}

func (r *remover) inUse(t removal, user string) {
	t.Action, t.Reason = left, user+" is in use"
	r.done = append(r.done, t)
}

func (r *remover) remove(t removal, do func() error) {
	t.Action = removed
	if r.o.dryRun {
		t.Action = wouldRemove
	} else if err := do(); err != nil {
		t.Action, t.Reason = failed, err.Error()
		r.errs = append(r.errs, err)
	}
	r.done = append(r.done, t)
}

func (r *remover) write(out io.Writer) error {
	if r.o.output == "json" {
		return cli.WriteJSON(out, struct {
			DryRun bool      `json:"dry_run"`
			Items  []removal `json:"items"`
		}{r.o.dryRun, append([]removal{}, r.done...)})
	}
	for _, d := range r.done {
		if _, err := fmt.Fprintln(out, d); err != nil {
			return err
		}
	}
	if len(r.done) == 0 && len(r.errs) == 0 {
		_, err := fmt.Fprintln(out, "nothing of ours is on this node")
		return err
	}
	return nil
}

// joinErrors puts all of them on one line.
func joinErrors(errs []error) error {
	joined := errs[0]
	for _, err := range errs[1:] {
		joined = fmt.Errorf("%w; %w", joined, err)
	}
	return joined
}
