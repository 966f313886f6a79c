package compare

import (
	"fmt"
	"strings"
	"time"

	"github.com/trackless-dns/trackless/node/snapshot"
)

const (
	// shortWindow is the window below which a rate says little: DNS comes in
	// bursts, and a loss now and then is not seen.
	shortWindow = 5.0
	// Loads that differ by more than this factor are not the same load.
	likeLoad = 1.25
	// littleDNS is the number of entries below which chance decides.
	littleDNS = 100.0
)

// warnings finds what makes the comparison worth less, the gravest first.
func (p pair) warnings() []Warning {
	list := []Warning{}
	for _, undermines := range []bool{true, false} {
		for _, find := range []func() []Warning{p.aboutTime, p.aboutNodes, p.aboutSettings, p.aboutEntries, p.aboutLoad, p.aboutTrackless, p.aboutMissing} {
			for _, w := range find() {
				if w.Undermines == undermines {
					list = append(list, w)
				}
			}
		}
	}
	return list
}

func (p pair) aboutTime() []Warning {
	switch p.after.Time.Compare(p.before.Time) {
	case 0:
		return []Warning{{"same-time", "both were taken at the same time, as if one snapshot was given twice", true}}
	case -1:
		return []Warning{{"order", fmt.Sprintf("the second was taken %s before the first, as if the files were swapped", roughly(p.before.Time.Sub(p.after.Time))), true}}
	}
	return nil
}

func (p pair) aboutNodes() []Warning {
	b, a := p.before.Node, p.after.Node
	sameBoot := b.BootID != "" && b.BootID == a.BootID
	var list []Warning
	switch {
	case sameBoot && b.NetworkNamespace != a.NetworkNamespace:
		list = append(list, Warning{"different-namespace", "they are of different network namespaces, which have tables of their own", true})
	case !sameBoot && b.Name != a.Name:
		list = append(list, Warning{"different-node", fmt.Sprintf("they are of different nodes, %s and %s", b.Name, a.Name), true})
	case !sameBoot && b.BootID != "" && a.BootID != "":
		list = append(list, Warning{"rebooted", "the node was started anew in between: the kernel's counters began at 0, and their totals are not compared", false})
	}
	if b.Kernel != a.Kernel && b.Kernel != "" && a.Kernel != "" {
		list = append(list, Warning{"different-kernel", fmt.Sprintf("the kernels differ: %s and %s", b.Kernel, a.Kernel), false})
	}
	return list
}

func limitText(limit uint64) string {
	if limit == 0 {
		return NoLimit
	}
	return Format(Entries, count(limit)) + " entries"
}

func (p pair) aboutSettings() []Warning {
	var list []Warning
	b, a := p.before.Table, p.after.Table
	if b.Limit != a.Limit || b.Buckets != a.Buckets {
		list = append(list, Warning{"different-limits", fmt.Sprintf("the limits differ: %s in %s buckets and %s in %s; how full the table is cannot be compared",
			limitText(b.Limit), Format(Entries, count(b.Buckets)), limitText(a.Limit), Format(Entries, count(a.Buckets))), false})
	}
	var udp, other []string
	for _, s := range p.settings() {
		name := strings.TrimPrefix(s.Name, "net.netfilter.nf_conntrack_")
		if !strings.Contains(name, "_timeout") || s.Before == nil || s.After == nil {
			continue
		}
		text := fmt.Sprintf("%s (%d s and %d s)", name, *s.Before, *s.After)
		if strings.HasPrefix(name, "udp_timeout") {
			udp = append(udp, text)
		} else {
			other = append(other, text)
		}
	}
	if len(udp) > 0 {
		list = append(list, Warning{"different-udp-timeouts", "entries of UDP live for different times: " + strings.Join(udp, ", "), true})
	}
	if len(other) > 0 {
		list = append(list, Warning{"different-timeouts", "timeouts differ: " + strings.Join(other, ", "), false})
	}
	return list
}

func (p pair) aboutEntries() []Warning {
	b, a := dnsEntries(p.before), dnsEntries(p.after)
	switch {
	case b == nil && a == nil:
		return []Warning{{"no-entries", "the entries of neither table could be read; take the snapshots with CAP_NET_ADMIN", true}}
	case b == nil:
		return []Warning{{"no-entries", "the entries of the first table could not be read; take it with CAP_NET_ADMIN", true}}
	case a == nil:
		return []Warning{{"no-entries", "the entries of the second table could not be read; take it with CAP_NET_ADMIN", true}}
	}
	if *b+valueOf(avoided(p.before)) < littleDNS && *a+valueOf(avoided(p.after)) < littleDNS {
		return []Warning{{"little-dns", fmt.Sprintf("there was hardly any DNS, fewer than %.0f entries on either side: chance decides", littleDNS), true}}
	}
	return nil
}

func (p pair) aboutLoad() []Warning {
	var list []Warning
	for _, s := range []struct {
		which string
		*snapshot.Snapshot
	}{{"first", p.before}, {"second", p.after}} {
		switch {
		case s.SentPerSecond != nil: // it is known what came, and all of it was seen
		case s.WindowSeconds == 0:
			list = append(list, Warning{"no-window", "the " + s.which + " was read once, so it has no rates", false})
		case s.WindowSeconds < shortWindow:
			list = append(list, Warning{"short-window", fmt.Sprintf("the %s watched for %.1f s only: its rates say little; 10 s or more do", s.which, s.WindowSeconds), true})
		}
		if s.NewFlows != nil && s.NewFlows.Lost {
			list = append(list, Warning{"events-lost", "new entries came faster than they were read in the " + s.which + ": its rates are too low", false})
		}
	}
	b, a := load(p.before), load(p.after)
	switch {
	case b == nil || a == nil:
		// What an instance keeps out of the table says what the same load
		// would have put there: the other side is not needed for that.
		list = append(list, Warning{"unknown-load", "how much DNS there was is not known on both sides, so it may have been different", p.after.Ledger == nil})
	case *b == 0 && *a == 0:
		list = append(list, Warning{"no-load", "no DNS came while they were taken: what they show is left from earlier", true})
	case *b == 0 || *a == 0 || *a / *b > likeLoad || *b / *a > likeLoad:
		list = append(list, Warning{"different-load", fmt.Sprintf("the load differs: %s and %s DNS flows a second",
			Format(PerSecond, b), Format(PerSecond, a)), *b == 0 || *a == 0})
	}
	return list
}

func (p pair) aboutTrackless() []Warning {
	var list []Warning
	if len(p.before.Attached()) > 0 {
		list = append(list, Warning{"attached-before", "Trackless was attached in the first already", false})
	}
	attached := p.after.Attached()
	if len(attached) == 0 && len(p.before.Attached()) == 0 {
		list = append(list, Warning{"not-attached", "Trackless is attached in neither, so what changed is not its doing", false})
	}
	for _, i := range attached {
		lives := time.Duration(p.after.Settings["net.netfilter.nf_conntrack_udp_timeout_stream"]) * time.Second
		if age := p.after.Time.Sub(i.Since); !i.Since.IsZero() && age >= 0 && age < lives && len(p.before.Attached()) == 0 {
			list = append(list, Warning{"settling", fmt.Sprintf("Trackless was attached for %s in the second: entries from before that live for up to %s", roughly(age), roughly(lives)), false})
		}
	}
	return list
}

func (p pair) aboutMissing() []Warning {
	n := len(p.before.Missing) + len(p.after.Missing)
	if n == 0 {
		return nil
	}
	return []Warning{{"missing", fmt.Sprintf("%d things could not be read; they are named in the field missing of the snapshots", n), false}}
}

func valueOf(n *float64) float64 {
	if n == nil {
		return 0
	}
	return *n
}
