// Package advice turns measurements of a connection tracking table into
// findings and recommended settings. It is pure: it reads nothing, and the same
// measurements always give the same advice.
//
// The reader is an operator with one of five complaints ([Symptoms]), none of
// which names the table. A finding says how bad it is, what was seen, what to
// do, and what that costs in memory and in risk.
package advice

import (
	"cmp"
	"fmt"
	"slices"
)

// Severity says how urgent a finding is.
type Severity uint8

// The severities.
const (
	// Info is worth knowing; nothing is wrong.
	Info Severity = iota
	// Warning will hurt, or hurts now and then.
	Warning
	// Critical loses packets now, or is about to.
	Critical
)

var severityNames = [...]string{"info", "warning", "critical"}

// String returns "info", "warning" or "critical".
func (s Severity) String() string { return severityNames[min(int(s), len(severityNames)-1)] }

// MarshalText implements encoding.TextMarshaler.
func (s Severity) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Severity) UnmarshalText(b []byte) error {
	i := slices.Index(severityNames[:], string(b))
	if i < 0 {
		return fmt.Errorf("no severity %q", b)
	}
	*s = Severity(i)
	return nil
}

// A Symptom is what people report when the table is at fault.
type Symptom string

// The five symptoms of an exhausted or mistuned table.
const (
	Timeouts        Symptom = "timeouts"
	IntermittentDNS Symptom = "intermittent-dns"
	APIErrors       Symptom = "api-errors"
	WorksSometimes  Symptom = "works-sometimes"
	HealthyDropping Symptom = "healthy-but-dropping"
)

// Symptoms describes each symptom in the words in which it is reported.
var Symptoms = []struct {
	Symptom     Symptom
	Description string
}{
	{Timeouts, "connections time out at random, from some pods or to some Services"},
	{IntermittentDNS, "DNS lookups fail or take 5 seconds now and then"},
	{APIErrors, "calls to the API server or between services fail without a cause in any log"},
	{WorksSometimes, "the same request works on one try and hangs on the next"},
	{HealthyDropping, "all pods are ready, CPU and memory are fine, and traffic is lost"},
}

// A Finding is one thing that an operator should know.
type Finding struct {
	ID       string   `json:"id"`
	Severity Severity `json:"severity"`
	Title    string   `json:"title"`
	// Evidence are the numbers that were seen.
	Evidence []string `json:"evidence"`
	// Remedy are the things to do, best first.
	Remedy []string `json:"remedy"`
	// Memory is what the remedy costs, Risk what may go wrong with it.
	Memory   string    `json:"memory,omitempty"`
	Risk     string    `json:"risk,omitempty"`
	Symptoms []Symptom `json:"symptoms,omitempty"`
}

// A Rule looks for one finding.
type Rule struct {
	ID string
	// About says what the rule looks for.
	About    string
	Symptoms []Symptom

	check func(*Measurements) []Finding
}

// Check applies every rule and returns what they find, the worst first.
func Check(m *Measurements) []Finding {
	findings := []Finding{}
	for _, r := range Rules {
		for _, f := range r.check(m) {
			f.ID, f.Symptoms = r.ID, r.Symptoms
			findings = append(findings, f)
		}
	}
	slices.SortStableFunc(findings, func(a, b Finding) int { return cmp.Compare(b.Severity, a.Severity) })
	return findings
}

// Worst returns the highest severity among the findings, Info if there are none.
func Worst(findings []Finding) Severity {
	worst := Info
	for _, f := range findings {
		worst = max(worst, f.Severity)
	}
	return worst
}

// Explaining returns the IDs of the rules that can explain a symptom.
func Explaining(s Symptom) []string {
	var ids []string
	for _, r := range Rules {
		if slices.Contains(r.Symptoms, s) {
			ids = append(ids, r.ID)
		}
	}
	return ids
}

// Rules are all rules, in the order in which findings of equal severity are shown.
var Rules = []Rule{
	{"table-full", "the table is over 80 % of its limit",
		[]Symptom{Timeouts, IntermittentDNS, APIErrors, WorksSometimes, HealthyDropping}, tableFull},
	{"table-filling", "at the present rate the table is full within the hour",
		[]Symptom{Timeouts, IntermittentDNS, WorksSometimes}, tableFilling},
	{"drop", "the kernel drops packets of new flows because the table is full",
		[]Symptom{Timeouts, IntermittentDNS, APIErrors, WorksSometimes, HealthyDropping}, dropped},
	{"early-drop", "the kernel evicts entries to make room",
		[]Symptom{IntermittentDNS, WorksSometimes, HealthyDropping}, earlyDropped},
	{"insert-failed", "packets are lost because their entry collides with another",
		[]Symptom{IntermittentDNS, WorksSometimes}, insertFailed},
	{"chain-toolong", "packets are lost because a hash bucket is full",
		[]Symptom{Timeouts, WorksSometimes, HealthyDropping}, chainTooLong},
	{"kernel-log", "the kernel's log says that the table was full",
		[]Symptom{Timeouts, IntermittentDNS, APIErrors, WorksSometimes, HealthyDropping}, kernelLog},
	{"dns-share", "how much of the table is DNS, and what keeping it out saves",
		[]Symptom{IntermittentDNS}, dnsShare},
	{"search-path", "how many of the DNS queries are those of search paths",
		nil, searchPath},
	{"idle-established", "idle TCP connections fill the table because their timeout is days",
		[]Symptom{Timeouts, HealthyDropping}, idleEstablished},
	{"established-short", "the timeout of established connections is below the idle time of connection pools",
		[]Symptom{Timeouts, APIErrors, WorksSometimes}, establishedShort},
	{"time-wait", "closed connections fill the table",
		[]Symptom{Timeouts}, timeWait},
	{"few-buckets", "the hash has too few buckets for the entries",
		[]Symptom{Timeouts, HealthyDropping}, fewBuckets},
	{"udp-unreplied", "UDP flows without an answer fill the table",
		[]Symptom{IntermittentDNS, HealthyDropping}, udpUnreplied},
	{"dead-dns-endpoint", "DNS entries point to a server that does not answer",
		[]Symptom{IntermittentDNS, WorksSometimes}, deadDNSEndpoint},
	{"notrack-missing", "DNS to the cache on this node is tracked",
		[]Symptom{IntermittentDNS}, notrackMissing},
	{"notrack-one-sided", "one direction of the DNS to the cache on this node is tracked, the other is not",
		[]Symptom{Timeouts, IntermittentDNS, WorksSometimes}, notrackOneSided},
	{"dns-unanswered", "a pod's DNS server does not answer names of the cluster",
		[]Symptom{Timeouts, IntermittentDNS, APIErrors}, eachAnswers(dnsUnanswered)},
	{"dns-half-lookups", "one of the two queries of a lookup is lost",
		[]Symptom{IntermittentDNS, WorksSometimes}, eachAnswers(dnsHalfLookups)},
	{"dns-upstream", "names outside of the cluster are answered slowly or not at all",
		[]Symptom{Timeouts, IntermittentDNS}, eachAnswers(dnsUpstream)},
	{"dns-search-path", "a lookup asks many names that do not exist",
		[]Symptom{IntermittentDNS}, eachAnswers(dnsSearchPath)},
	{"dns-tcp-blocked", "a pod's DNS server answers over UDP and not over TCP",
		[]Symptom{IntermittentDNS, WorksSometimes}, eachAnswers(dnsTCPBlocked)},
	{"dns-past-cache", "a pod's queries are redirected past the cache on this node",
		[]Symptom{IntermittentDNS}, eachAnswers(dnsPastCache)},
	{"saved-ruleset", "a file of nft that is loaded at boot holds a table of Trackless",
		nil, savedRuleset},
	{"inactive", "connection tracking is loaded, but no packet passes it",
		nil, inactive},
	{"datapath", "pods' packets do not pass the hooks of iptables and nftables",
		[]Symptom{IntermittentDNS}, datapath},
	{"kube-proxy", "kube-proxy sets limits and timeouts by itself",
		[]Symptom{APIErrors}, kubeProxy},
}

// bytesText writes a number of bytes in MiB or GiB.
func bytesText(n uint64) string {
	const mib, gib = 1 << 20, 1 << 30
	if n >= gib {
		return fmt.Sprintf("%.1f GiB", float64(n)/gib)
	}
	return fmt.Sprintf("%.1f MiB", float64(n)/mib)
}
