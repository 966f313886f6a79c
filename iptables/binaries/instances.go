package binaries

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/owner"
)

// instance is an instance and the mark of its chains.
type instance struct {
	iptables.Instance
	mark owner.Mark
}

// dead reports whether the process is certainly gone, as [owner.Mark.Dead] does.
func (i instance) dead() bool { return i.Owner.PID != 0 && i.mark.Dead() }

// Instances reads the chains of all instances with the programs of both variants, sorted
// by name. Without programs it finds none. It changes nothing, and makes no tables.
func Instances() ([]iptables.Instance, error) {
	all, err := instances()
	out := make([]iptables.Instance, 0, len(all))
	for _, i := range all {
		out = append(out, i.Instance)
	}
	return out, err
}

func instances() ([]instance, error) {
	byTable := map[string]*instance{}
	err := eachRawTable(func(p *program, table savedTable) error {
		for _, id := range table.ids() {
			i := byTable[chainPrefix+id]
			if i == nil {
				i = &instance{Instance: iptables.Instance{Backend: iptables.BackendBinaries, Variant: string(p.variant), Table: chainPrefix + id, Packets: iptables.Counters{}}}
				for _, k := range iptables.CounterKeys() {
					i.Packets[k] = 0
				}
				byTable[i.Table] = i
			}
			if m, ok := table.mark(id); ok {
				i.mark = m
				i.Owner = m.Find()
			}
			if err := i.read(p.family, id, table); err != nil {
				return err
			}
		}
		return nil
	})
	out := make([]instance, 0, len(byTable))
	for _, i := range byTable {
		if i.Owner.Life == "" {
			i.Owner.Life = owner.Unknown
		}
		slices.SortFunc(i.Listen, iptables.Endpoint.Compare)
		slices.SortFunc(i.Live, iptables.Endpoint.Compare)
		out = append(out, *i)
	}
	slices.SortFunc(out, func(a, b instance) int { return cmp.Compare(a.Table, b.Table) })
	return out, err
}

// RemoveInstance deletes the chains and sets of an instance.
func RemoveInstance(table string) error {
	id, ok := strings.CutPrefix(table, chainPrefix)
	if !ok {
		return fmt.Errorf("iptables: chains %s are not ours", table)
	}
	var errs []error
	err := eachRawTable(func(p *program, table savedTable) error {
		if slices.Contains(table.ids(), id) {
			errs = append(errs, p.removeInstance(id, lastWait))
		}
		return nil
	})
	if errs = append(errs, err); errors.Join(errs...) != nil {
		return fmt.Errorf("iptables: %w", errors.Join(errs...))
	}
	return withSets(func(s *sets) error { return ifAny(s.destroyAll(id)) })
}

// RemoveStale deletes the chains and sets of all instances whose process is
// certainly gone, and returns their names.
func RemoveStale() (removed []string, err error) {
	all, err := instances()
	for _, i := range all {
		if !i.dead() {
			continue
		}
		if removeErr := RemoveInstance(i.Table); removeErr != nil {
			err = errors.Join(err, removeErr)
			continue
		}
		removed = append(removed, i.Table)
	}
	return removed, err
}

// eachRawTable reads the raw tables that have chains of ours, of both variants and
// families. It runs a program only if there are such chains: iptables-nft-save reads all
// rules of all programs, 100 MB for 85,000 of them.
func eachRawTable(f func(*program, savedTable) error) error {
	var errs []error
	for _, p := range everyProgram() {
		ours := func(chain string) bool { return strings.HasPrefix(chain, chainPrefix) }
		if some, err := hasChain(p.variant, p.family, "raw", ours); err != nil || !some {
			errs = append(errs, err)
			continue
		}
		table, err := p.table()
		if isUnsupported(err) {
			continue // the kernel has no tables of this variant
		}
		if err == nil {
			err = f(p, table)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// everyProgram finds the programs of both variants.
func everyProgram() (out []*program) {
	for _, v := range []Variant{NFT, Legacy} {
		for _, f := range families {
			if p, err := findProgram(f, v); err == nil {
				out = append(out, p)
			}
		}
	}
	return out
}

// read reads the rules of an instance from the table of a family.
func (i *instance) read(f iptables.Family, id string, table savedTable) error {
	table.count(id, f, i.Packets)
	rs := ruleset{id: id}
	var live []netip.Addr
	static, recent := true, false
	for _, r := range table.rules[rs.chain(queryingChain)] {
		recent = recent || strings.Contains(r.text, "--name "+rs.liveSet(f)+" ")
		static = static && !strings.Contains(r.text, rs.liveSet(f))
	}
	if !static {
		var err error
		if live, err = liveIn(rs.liveSet(f), f, recent, Lease); err != nil {
			return err
		}
	}
	// Without a lease, a rule of the chain untracks all queries.
	always := static && slices.ContainsFunc(table.rules[rs.chain(queryingChain)], func(r savedRule) bool {
		return r.text == rs.to(takeChain)
	})
	for _, r := range table.rules[rs.chain(inChain)] {
		e, ok := parseEndpoint(r.text)
		if !ok || !strings.HasSuffix(r.text, rs.to(arrivingChain)) {
			continue
		}
		i.Listen = append(i.Listen, e)
		if always || slices.Contains(live, e.Addr) {
			i.Live = append(i.Live, e)
		}
	}
	return nil
}

// parseEndpoint reads the destination that a rule matches.
func parseEndpoint(text string) (e iptables.Endpoint, ok bool) {
	words := strings.Fields(text)
	for i := range len(words) - 1 {
		switch value := words[i+1]; words[i] {
		case "-d":
			prefix, err := netip.ParsePrefix(value)
			if err != nil || !prefix.IsSingleIP() {
				return e, false
			}
			e.Addr = prefix.Addr()
		case "-p":
			e.Proto = map[string]iptables.Proto{"udp": iptables.UDP, "tcp": iptables.TCP}[value]
		case "--dport":
			port, err := strconv.ParseUint(value, 10, 16)
			if err != nil {
				return e, false
			}
			e.Port = uint16(port)
		}
	}
	return e, e.Addr.IsValid() && e.Proto != 0 && e.Port != 0
}

// ifAny drops the error of a kernel without ip_set: it has no sets.
func ifAny(err error) error {
	if isMissing(err) {
		return nil
	}
	return err
}
