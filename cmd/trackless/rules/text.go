package rules

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/trackless-dns/trackless/cmd/trackless/cli"
	"github.com/trackless-dns/trackless/iptables/control"
	"github.com/trackless-dns/trackless/iptables/owner"
	"github.com/trackless-dns/trackless/node/advice"
	"github.com/trackless-dns/trackless/node/rules"
)

// Text writes a report for people.
func Text(out io.Writer, r *rules.Report, colour bool) error {
	p := &page{colour: colour}
	if len(r.Instances) == 0 {
		p.title("no instance", withoutInstance(r))
	}
	for _, i := range r.Instances {
		p.instance(i)
	}
	if f := r.Failover; f != nil {
		state := "intact"
		if !f.Intact {
			state = cli.Painted("changed by somebody, or of another version", cli.Yellow, colour)
		}
		p.title("table inet "+f.Table, state)
		for _, pair := range f.Pairs {
			text := fmt.Sprintf("%s to %s, port %s", pair.Listen, pair.Service, cli.Joined(pair.Ports))
			if !pair.InUse {
				text += "; no instance serves it: it stands for pods that ask there still (`trackless rules remove` takes it away)"
			}
			p.line("failover", text)
		}
		p.packets(f.Packets)
	}
	for _, a := range r.Accept {
		p.accept(a)
	}
	for _, d := range r.Devices {
		p.device(d)
	}
	for _, f := range r.Foreign {
		p.foreign(f)
	}
	for _, n := range r.Notes {
		p.title("note", n)
	}
	if slices.ContainsFunc(r.Instances, func(i rules.Instance) bool { return i.Owned }) {
		p.title("to save the rules of others", advice.SaveOthers)
		p.line("why", "nft -f loads nothing of a file that holds the table of a living process")
	}
	_, err := io.WriteString(out, p.String())
	return err
}

// withoutInstance says what becomes of DNS where there is no table of ours.
func withoutInstance(r *rules.Report) string {
	var addrs []string
	for _, f := range r.Foreign {
		if !slices.Contains(f.Effects, "notrack") {
			continue
		}
		for _, e := range f.Endpoints {
			if a := e.Address.String(); !slices.Contains(addrs, a) {
				addrs = append(addrs, a)
			}
		}
	}
	if len(addrs) > 0 {
		return "no table of ours; rules of others untrack DNS to " + strings.Join(addrs, ", ") + ", see below"
	}
	return "no table of ours: DNS is tracked and goes where kube-proxy sends it"
}

// page is text in blocks: a title and lines of a name and a value.
type page struct {
	strings.Builder
	colour bool
}

func (p *page) title(what, state string) {
	if p.Len() > 0 {
		p.WriteByte('\n')
	}
	fmt.Fprintf(p, "%s: %s\n", cli.Painted(what, cli.Bold, p.colour), state)
}

func (p *page) line(name, value string) { fmt.Fprintf(p, "  %-10s %s\n", name, value) }

func (p *page) instance(i rules.Instance) {
	code := map[string]string{"attached": cli.Green, "draining": cli.Yellow, "partly attached": cli.Yellow}[i.State]
	state := cli.Painted(i.State, code, p.colour)
	if i.ByHand {
		state += " by hand"
	}
	what := "table inet " + i.Table
	if i.Backend == "iptables" {
		what = fmt.Sprintf("chains %s-* (iptables %s)", i.Table, i.Variant)
	}
	p.title(what, state)
	if i.Reason != "" {
		p.line("reason", i.Reason)
	}
	p.line("owner", p.owner(i))
	if i.Socket != "" {
		p.line("control", i.Socket)
	}
	var untracked, tracked []string
	for _, e := range i.Endpoints {
		if e.Untracked {
			untracked = append(untracked, e.String())
		} else {
			tracked = append(tracked, e.String())
		}
	}
	if len(untracked) > 0 {
		p.line("untracked", strings.Join(untracked, ", "))
	}
	if len(tracked) > 0 {
		p.line("tracked", strings.Join(tracked, ", "))
	}
	p.packets(i.Packets)
	if i.FastPath != nil {
		p.fastPath(i.FastPath)
	}
}

// fastPath says what the kernel answers, and where CoreDNS answers instead.
func (p *page) fastPath(f *control.FastPath) {
	switch {
	case f.Program != 0:
		p.line("kernel", fmt.Sprintf("BPF program %d has %d answers, and has answered %d queries", f.Program, f.Answers, f.Hits))
	case f.Problem != "":
		p.line("kernel", cli.Painted("answers nothing", cli.Yellow, p.colour)+": "+f.Problem)
	default:
		p.line("kernel", "answers nothing: fastpath is off")
	}
	for _, d := range f.Devices {
		state := cmp.Or(d.Attached, "left to CoreDNS")
		if d.Reason != "" {
			state += ": " + d.Reason
		}
		p.line("", d.Device+" "+state)
	}
	for _, b := range f.Blocks {
		if b.Reason != "" {
			p.line("", fmt.Sprintf("block %s is left to CoreDNS: %s", b.Block, b.Reason))
		}
	}
}

func (p *page) owner(i rules.Instance) string {
	o := i.Owner
	text := o.Name()
	if o.Command != "" {
		text += " (" + o.Command + ")"
	}
	switch o.Life {
	case owner.Alive:
		text += ", alive"
	case owner.Dead:
		text += ", " + cli.Painted("dead", cli.Red, p.colour)
	default:
		text += ", " + cli.Painted("perhaps dead", cli.Yellow, p.colour)
	}
	if i.Owner.AgeSeconds > 0 {
		text += ", started " + cli.ShortDuration(time.Duration(i.Owner.AgeSeconds)*time.Second) + " ago"
	}
	if i.Owned {
		return text + "; the kernel removes the table with it"
	}
	return text + "; the table outlives it"
}

func (p *page) packets(counts []rules.Packets) {
	var parts []string
	for _, c := range counts {
		if c.Packets > 0 {
			parts = append(parts, fmt.Sprintf("%s %s %s %d", c.Direction, c.Family, c.Protocol, c.Packets))
		}
	}
	if len(parts) == 0 {
		parts = []string{"none yet"}
	}
	p.line("packets", strings.Join(parts, ", "))
}

func (p *page) device(d rules.Device) {
	kind := d.Kind
	if kind == "" {
		kind = "device"
	}
	what := "carries a listen address"
	if d.Link {
		what = "the link for the listen addresses"
	}
	p.title(kind+" "+d.Name, what)
	var ours, leftOver, others []string
	for _, a := range d.Addresses {
		switch {
		case !a.Ours:
			others = append(others, a.Address.String())
		case a.InUse:
			ours = append(ours, a.Address.String())
		default:
			leftOver = append(leftOver, a.Address.String())
		}
	}
	if len(ours) > 0 {
		p.line("ours", strings.Join(ours, ", "))
	}
	if len(leftOver) > 0 {
		p.line("left over", strings.Join(leftOver, ", ")+": nobody asks for it any more (`trackless rules remove` takes it away)")
	}
	if len(others) > 0 {
		p.line("not marked", strings.Join(others, ", "))
	}
}

func (p *page) accept(a rules.AcceptRule) {
	where := fmt.Sprintf("%s filter %s", a.Family, a.Chain)
	if a.Legacy {
		where += " of iptables-legacy"
	}
	state := "ours"
	if !a.InUse {
		state = "left over: no instance serves the endpoint (`trackless rules remove` takes it away)"
	}
	p.title("accept rule in "+where, state)
	p.line("rule", a.Rule)
	p.line("so", fmt.Sprintf("untracked, a %s is not dropped there: %s", a.Direction, a.Endpoint))
}

func (p *page) foreign(f rules.ConflictingRule) {
	where := fmt.Sprintf("%s %s %s", f.Family, f.Table, f.Chain)
	remedy := fmt.Sprintf("nft delete rule %s handle %d", where, f.Handle)
	if f.Legacy {
		program := map[string]string{"ip": "iptables-legacy", "ip6": "ip6tables-legacy"}[f.Family]
		remedy = fmt.Sprintf("%s -t %s -D %s %d", program, f.Table, f.Chain, f.Handle)
		where += " of iptables-legacy"
	}
	state := cli.Painted(cli.Joined(f.Effects), cli.Yellow, p.colour)
	if !f.Certain {
		state += ", possible"
	}
	p.title("foreign rule in "+where, state)
	p.line("rule", f.Rule)
	at := fmt.Sprintf("hook %s, priority %d", f.Hook, f.Priority)
	if f.Handle != 0 {
		at += fmt.Sprintf("; `%s` removes it", remedy)
	}
	p.line("at", at)
	if len(f.Endpoints) > 0 {
		p.line("meets", fmt.Sprintf("%s: %s", cli.Joined(f.Directions), cli.Joined(f.Endpoints)))
	}
	p.line("so", f.Meaning)
}
