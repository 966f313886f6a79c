//go:build load

package differential

import (
	"context"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// world is an upstream whose names come and go. What it says depends on the question and the
// time only, so that it can be asked afterwards what it would have said.
type world struct {
	seed  uint64
	start time.Time
	mu    sync.Mutex
	calls []worldCall
}

// worldCall is a query that reached the upstream.
type worldCall struct {
	at    time.Duration
	name  string // lower case
	key   string
	flags string // DO and CD
	reply *dns.Msg
}

// domain is a zone of the world. The smallest that has a name answers for it.
type domain struct {
	zone       string
	soa        string
	kubernetes bool // it answers as CoreDNS's plugin kubernetes
	denyEmpty  bool // it denies empty non-terminals, which it must not (RFC 8020 section 3)
	signed     bool
	names      []string
}

var domains = []domain{
	{zone: "cluster.local.", kubernetes: true, soa: "cluster.local. 5 IN SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5", names: []string{
		"kubernetes.default.svc", "web.default.svc", "com.default.svc", "api.team.svc", "web.team.svc", "api.com.svc", "example.com.svc", "ns.dns", "dns-version",
		"_https._tcp.kubernetes.default.svc", "_http._tcp.web.default.svc", "1-2-3-4.default.pod", "0.web.default.svc",
	}},
	{zone: "10.in-addr.arpa.", kubernetes: true, soa: "10.in-addr.arpa. 5 IN SOA ns.dns.10.in-addr.arpa. hostmaster.10.in-addr.arpa. 1 2 3 4 5", names: []string{"1.0.96", "10.0.96", "7.1.2"}},
	{zone: "corp.example.com.", soa: "corp.example.com. 30 IN SOA ns1.example.com. root.example.com. 1 2 3 4 20", names: []string{
		"www", "api.com", "a.b.c", "host.ent", "*.wild", "x.wild", "web.com", "alias", "_sip._udp", "example.com", "far.dn",
	}},
	{zone: "sub.corp.example.com.", soa: "sub.corp.example.com. 3 IN SOA ns.other.example. root.other.example. 1 2 3 4 60", names: []string{"www", "api.com", "com.com"}},
	{zone: "broken.example.net.", denyEmpty: true, soa: "broken.example.net. 60 IN SOA ns1.example.net. root.example.net. 1 2 3 4 60", names: []string{"a.b", "api.com", "web.com", "x.y.z"}},
	{zone: "signed.example.org.", signed: true, soa: "signed.example.org. 30 IN SOA ns1.example.org. root.example.org. 1 2 3 4 30", names: []string{"www", "api.com"}},
	// The root denies local, and the resolver has names of its own there.
	{zone: ".", denyEmpty: true, soa: ". 60 IN SOA a.root-servers.net. nstld.verisign-grs.com. 1 2 3 4 60", names: []string{"www.acme.local", "api.example.com", "web.example.com"}},
}

// labels are those of which names that may not exist are made.
var worldLabels = []string{"com", "com", "org", "example", "api", "web", "www", "default", "team", "svc", "svc", "pod", "dns", "_tcp", "_https", "ent", "wild", "b", "c", "dn", "local", "96", "0"}

func domainOf(name string) *domain {
	best := -1
	for i := range domains {
		if dns.IsSubDomain(domains[i].zone, name) && (best < 0 || len(domains[i].zone) > len(domains[best].zone)) {
			best = i
		}
	}
	return &domains[best]
}

// present lists the names of a domain that exist at a time. Each comes and goes at its own pace.
func (w *world) present(d *domain, at time.Duration) []string {
	var names []string
	for _, n := range d.names {
		full := n + "." + strings.TrimPrefix(d.zone, ".")
		h := fnv.New64a()
		period := []time.Duration{3 * time.Second, 20 * time.Second, 5 * time.Minute, time.Hour}[hashOf(w.seed, full)%4]
		_, _ = fmt.Fprint(h, w.seed, full, int64(at/period))
		if h.Sum64()%3 != 0 {
			names = append(names, full)
		}
	}
	if d.kubernetes {
		return slices.DeleteFunc(names, func(n string) bool { s := serviceOf(n); return s != n && !slices.Contains(names, s) })
	}
	return names
}

// serviceOf returns the Service of a name below it, of an endpoint or a port. They exist no longer
// than the Service has addresses.
func serviceOf(name string) string {
	path, services, ok := strings.Cut(name, ".svc.")
	labels := strings.Split(path, ".")
	if !ok || len(labels) <= 2 {
		return name
	}
	return strings.Join(labels[len(labels)-2:], ".") + ".svc." + services
}

func hashOf(words ...any) uint64 {
	h := fnv.New64a()
	_, _ = fmt.Fprint(h, words...)
	return h.Sum64()
}

// says returns the response to a question at a time.
func (w *world) says(r *dns.Msg, at time.Duration) *dns.Msg {
	q := r.Question[0]
	name := strings.ToLower(q.Name)
	d := domainOf(name)
	present := w.present(d, at)
	m := new(dns.Msg).SetReply(r)
	m.RecursionAvailable = true
	if alias := dnameIn(d, name, q.Qtype); alias != nil {
		m.Answer = alias
		m.Rcode = dns.RcodeNameError
		m.Ns = []dns.RR{worldRR(domains[len(domains)-1].soa)}
		return m
	}
	own := slices.Contains(present, name)
	below := own || name == d.zone || name == dnameOwner || slices.ContainsFunc(present, func(n string) bool { return dns.IsSubDomain(name, n) }) ||
		slices.ContainsFunc(domains, func(c domain) bool { return c.zone != "." && dns.IsSubDomain(name, c.zone) && d.zone != "." })
	if !below {
		if _, parent, ok := strings.Cut(name, "."); ok && slices.Contains(present, "*."+parent) {
			own, below = true, true
		}
	}
	if own && w.has(name, q.Qtype) {
		m.Answer = w.records(q, name)
		return m
	}
	exists := below && (own || !d.denyEmpty)
	if d.kubernetes {
		exists = kubernetesHas(d, name, q.Qtype, own, below)
	}
	if !exists {
		m.Rcode = dns.RcodeNameError
	}
	m.Ns = []dns.RR{worldRR(d.soa)}
	if opt := r.IsEdns0(); d.signed && opt != nil && opt.Do() {
		m.Ns = append(m.Ns, worldRR(d.zone+" 30 IN RRSIG SOA 8 3 30 20300101000000 19990101000000 1 "+d.zone+" AAAA"))
	}
	return m
}

// kubernetesHas reports whether a question without an answer is NODATA: for the types that
// the plugin kubernetes knows, of names that it knows.
func kubernetesHas(d *domain, name string, qtype uint16, own, below bool) bool {
	if strings.HasSuffix(d.zone, "arpa.") {
		return own || name == d.zone
	}
	first, _, _ := strings.Cut(name, ".")
	path := strings.TrimSuffix(name, d.zone)
	switch {
	case own:
		return true
	case qtype == dns.TypeTXT || strings.HasPrefix(first, "_") || path == "dns.":
		return false
	case path == "" || path == "svc." || path == "pod.":
		return true
	case strings.HasSuffix(path, ".pod.") && dns.CountLabel(path) == 2:
		return true
	case strings.HasSuffix(path, ".svc.") && dns.CountLabel(path) == 2:
		return below // a namespace with Services
	}
	return false
}

// dnameOwner has the one DNAME record of the world.
const dnameOwner = "dn.corp.example.com."

// dnameIn returns the aliases of a name below the one DNAME record of the world. Its target
// does not exist.
func dnameIn(d *domain, name string, qtype uint16) []dns.RR {
	if d.zone != "corp.example.com." || name == dnameOwner || !dns.IsSubDomain(dnameOwner, name) || qtype == dns.TypeCNAME {
		return nil
	}
	return []dns.RR{worldRR(dnameOwner + " 20 IN DNAME nowhere."), worldRR(name + " 20 IN CNAME " + strings.TrimSuffix(name, dnameOwner) + "nowhere.")}
}

// has reports whether a name has records of the type.
func (w *world) has(name string, qtype uint16) bool {
	switch {
	case strings.HasPrefix(name, "alias."):
		return true
	case strings.HasPrefix(name, "_"):
		return qtype == dns.TypeSRV
	case strings.HasSuffix(name, "arpa."):
		return qtype == dns.TypePTR
	case strings.HasPrefix(name, "dns-version."):
		return qtype == dns.TypeTXT
	}
	return qtype == dns.TypeA || hashOf(w.seed, name, qtype)%2 == 0 && (qtype == dns.TypeAAAA || qtype == dns.TypeTXT)
}

func (w *world) records(q dns.Question, name string) []dns.RR {
	if strings.HasPrefix(name, "alias.") {
		if q.Qtype == dns.TypeCNAME {
			return []dns.RR{worldRR(name + " 8 IN CNAME www.example.net.")}
		}
		return []dns.RR{worldRR(name + " 8 IN CNAME www.example.net."), worldRR("www.example.net. 8 IN A 192.0.2.1")}
	}
	data := map[uint16]string{dns.TypeA: "A 192.0.2.1", dns.TypeAAAA: "AAAA 2001:db8::1", dns.TypeTXT: "TXT x", dns.TypeSRV: "SRV 1 2 3 x.", dns.TypePTR: "PTR x."}[q.Qtype]
	return []dns.RR{worldRR(fmt.Sprintf("%s %d IN %s", name, 3+hashOf(w.seed, name)%20, data))}
}

var parsed sync.Map // of records, by text

func worldRR(text string) dns.RR {
	if rr, ok := parsed.Load(text); ok {
		return dns.Copy(rr.(dns.RR))
	}
	rr, err := dns.NewRR(text)
	if err != nil {
		panic(err)
	}
	parsed.Store(text, rr)
	return dns.Copy(rr)
}

func (w *world) Name() string { return "world" }

// ServeDNS implements plugin.Handler.
func (w *world) ServeDNS(_ context.Context, rw dns.ResponseWriter, r *dns.Msg) (int, error) {
	at := time.Since(w.start)
	m := w.says(r, at)
	w.mu.Lock()
	w.calls = append(w.calls, worldCall{at: at, name: strings.ToLower(r.Question[0].Name), key: worldKey(r), flags: worldFlags(r), reply: m.Copy()})
	w.mu.Unlock()
	return dns.RcodeSuccess, rw.WriteMsg(m)
}

func worldKey(r *dns.Msg) string {
	q := r.Question[0]
	return strings.ToLower(q.Name) + " " + dns.TypeToString[q.Qtype] + worldFlags(r)
}

func worldFlags(r *dns.Msg) string {
	opt := r.IsEdns0()
	return fmt.Sprintf(" do=%t cd=%t", opt != nil && opt.Do(), r.CheckingDisabled)
}

// near draws a question near another one: the other type of address, or a name beside it.
func (w *world) near(r *rand.Rand, q *dns.Msg) *dns.Msg {
	q = q.Copy()
	if r.IntN(2) == 0 {
		q.Question[0].Qtype = []uint16{dns.TypeA, dns.TypeAAAA}[r.IntN(2)]
		return q
	}
	if _, parent, ok := strings.Cut(q.Question[0].Name, "."); ok && parent != "" {
		q.Question[0].Name = worldLabels[r.IntN(len(worldLabels))] + "." + parent
	}
	return q
}

// question draws a question: for a name of a domain, for one near it, or for a made-up one.
func (w *world) question(r *rand.Rand) *dns.Msg {
	d := &domains[r.IntN(len(domains))]
	if r.IntN(3) == 0 {
		d = &domains[0]
	}
	var labels []string
	if r.IntN(2) == 0 {
		labels = dns.SplitDomainName(strings.Replace(d.names[r.IntN(len(d.names))], "*", "any", 1))
		labels = labels[r.IntN(len(labels)):]
	}
	for range r.IntN(3) {
		labels = slices.Insert(labels, 0, worldLabels[r.IntN(len(worldLabels))])
	}
	if d.kubernetes && r.IntN(3) == 0 { // the path of a client's search
		labels = []string{worldLabels[r.IntN(len(worldLabels))], "example", "com"}
		labels = append(labels, [][]string{{"default", "svc"}, {"svc"}, {}}[r.IntN(3)]...)
	}
	name := dns.Fqdn(strings.Join(append(labels, dns.SplitDomainName(d.zone)...), "."))
	types := []uint16{dns.TypeA, dns.TypeA, dns.TypeA, dns.TypeAAAA, dns.TypeAAAA, dns.TypeTXT, dns.TypeSRV, dns.TypePTR, dns.TypeCNAME}
	m := new(dns.Msg).SetQuestion(name, types[r.IntN(len(types))])
	if r.IntN(8) == 0 {
		m.SetEdns0(1232, true)
	}
	m.CheckingDisabled = r.IntN(16) == 0
	return m
}
