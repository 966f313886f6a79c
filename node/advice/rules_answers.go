package advice

import (
	"fmt"
	"strings"
	"time"
)

// slowAnswer is how long a resolver waits at most without a user who notices.
const slowAnswer = time.Second

// fromPod says from where a server was asked.
func (a *Answers) fromPod() string {
	return fmt.Sprintf("asked from the network namespace of pod %s", a.Pod)
}

// eachAnswers applies a rule to each server that was asked.
func eachAnswers(judge func(*Measurements, *Answers) *Finding) func(*Measurements) []Finding {
	return func(m *Measurements) []Finding {
		var findings []Finding
		for i := range m.Answers {
			if f := judge(m, &m.Answers[i]); f != nil {
				findings = append(findings, *f)
			}
		}
		return findings
	}
}

func dnsUnanswered(_ *Measurements, a *Answers) *Finding {
	if !a.Inside.asked() || a.Inside.answered() {
		return nil
	}
	f := &Finding{
		Severity: Critical,
		Title:    fmt.Sprintf("pods get no answer from their DNS server %s", a.Server),
		Evidence: []string{fmt.Sprintf("%s over UDP: %s; %s", a.Inside.Name, a.Inside.outcome(), a.fromPod())},
		Remedy: []string{
			"see whether the pods of kube-dns run and are ready: kubectl -n kube-system get pods -l k8s-app=kube-dns",
			"look for rules that untrack one direction or drop DNS: trackless rules show; and for network policies of this pod",
		},
		Risk: "none in looking",
	}
	if a.InsideTCP.answered() {
		f.Evidence = append(f.Evidence, "over TCP it answers: UDP alone is lost on the way")
	}
	return f
}

func dnsHalfLookups(_ *Measurements, a *Answers) *Finding {
	if a.HalfPairs == 0 {
		return nil
	}
	return &Finding{
		Severity: Warning,
		Title:    fmt.Sprintf("one of two queries from one socket to %s is lost: the lookup waits 5 s", a.Server),
		Evidence: []string{
			fmt.Sprintf("A and AAAA of %s were asked at once, %d times; %d times one of the two was not answered within a second", a.Inside.Name, a.Pairs, a.HalfPairs),
			a.fromPod(),
		},
		Remedy: []string{
			"keep DNS out of the table: Trackless on this node; the two queries then have no entry over which they collide",
			"until then `options single-request-reopen` in the pod's dnsConfig, for glibc; musl has no such option",
		},
		Risk: "single-request-reopen makes each lookup slower",
	}
}

func dnsUpstream(_ *Measurements, a *Answers) *Finding {
	if !a.Inside.answered() || !a.Outside.asked() {
		return nil
	}
	f := &Finding{
		Severity: Warning,
		Evidence: []string{
			fmt.Sprintf("%s: %s after %s", a.Inside.Name, a.Inside.Rcode, a.Inside.Took.Round(time.Millisecond)),
			fmt.Sprintf("%s: %s after %s; %s", a.Outside.Name, a.Outside.outcome(), a.Outside.Took.Round(time.Millisecond), a.fromPod()),
		},
		Remedy: []string{
			"ask the servers behind `forward` in the Corefile of kube-dns from this node: dig @SERVER " + a.Outside.Name,
			"where the cluster has no way to the internet, judge by a name of your own: --ask NAME",
		},
		Risk: "none in looking",
	}
	switch {
	case !a.Outside.answered():
		f.Title = fmt.Sprintf("%s answers names of the cluster, and none outside of it: its upstream is dead", a.Server)
	case a.Outside.Took > slowAnswer:
		f.Title = fmt.Sprintf("%s answers names outside of the cluster slowly: its upstream is slow, or dead and another one takes over", a.Server)
	default:
		return nil
	}
	return f
}

// longSearchPath is from how many domains on a search path is worth a finding.
const longSearchPath = 3

func dnsSearchPath(_ *Measurements, a *Answers) *Finding {
	name := strings.TrimSuffix(a.Outside.Name, ".")
	if a.Expanded.Rcode != "NXDOMAIN" || len(a.Search) < longSearchPath || strings.Count(name, ".") >= a.NDots {
		return nil
	}
	return &Finding{
		Severity: Info,
		Title:    fmt.Sprintf("a lookup of %s first asks %d other names", name, len(a.Search)),
		Evidence: []string{
			fmt.Sprintf("the search path of pod %s: %s, with ndots:%d", a.Pod, strings.Join(a.Search, " "), a.NDots),
			fmt.Sprintf("%s is NXDOMAIN; with A and AAAA a lookup is %d queries, of which 2 are of use", a.Expanded.Name, 2*(len(a.Search)+1)),
		},
		Remedy: []string{
			"run Trackless with the directive `searchpath`, which answers the walk in one reply",
			fmt.Sprintf("write names outside of the cluster with a dot at the end: %s.", name),
			"`ndots: 2` in the pod's dnsConfig, where its names of the cluster have two dots or a namespace of their own",
		},
		Risk: "with a lower ndots, names such as api.shop.svc ask outside of the cluster first",
	}
}

func dnsTCPBlocked(_ *Measurements, a *Answers) *Finding {
	if !a.Inside.answered() || !a.InsideTCP.asked() || a.InsideTCP.Rcode != "" {
		return nil
	}
	f := &Finding{
		Severity: Warning,
		Title:    fmt.Sprintf("%s answers over UDP and not over TCP: long answers cannot be fetched", a.Server),
		Evidence: []string{
			fmt.Sprintf("%s over UDP: %s; over TCP: %s", a.Inside.Name, a.Inside.Rcode, a.InsideTCP.Error),
			a.fromPod(),
		},
		Remedy: []string{
			"let TCP port 53 pass where UDP port 53 passes: network policies, security groups, rules of the host's firewall",
			"see whether the Service has a port for TCP: kubectl -n kube-system get service kube-dns",
		},
		Risk: "none",
	}
	for _, answer := range []*Answer{&a.Inside, &a.Outside} {
		if answer.Truncated {
			f.Severity = Critical
			f.Evidence = append(f.Evidence, fmt.Sprintf("the answer for %s was truncated: a client that asks again over TCP gets none", answer.Name))
		}
	}
	return f
}

func dnsPastCache(m *Measurements, a *Answers) *Finding {
	if !a.TranslatedTo.IsValid() || !m.local(a.Server) || m.local(a.TranslatedTo) || m.detached(a.Server) {
		return nil
	}
	return &Finding{
		Severity: Warning,
		Title:    fmt.Sprintf("queries to %s are redirected past the cache on this node", a.Server),
		Evidence: []string{
			fmt.Sprintf("a DNS server of this node listens on %s, and %s answered instead, by destination NAT", a.Server, a.TranslatedTo),
			a.fromPod(),
		},
		Remedy: m.zoneFirst(a.Server,
			"look for a rule that redirects port 53 before ours, such as that of a service mesh or of a DNS policy: nft list ruleset, iptables-save -t nat",
			"see whether Trackless is attached: trackless rules show",
		),
		Risk: "none in looking",
	}
}
