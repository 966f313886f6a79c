package advice

import (
	"net/netip"
	"time"
)

// Answers are what a DNS server answered when it was asked as a pod asks it.
type Answers struct {
	// Pod is the pod from whose network namespace it was asked, Server the server in the
	// pod's resolv.conf, Search and NDots what that says of names with few dots.
	Pod    string
	Server netip.Addr
	Search []string
	NDots  int

	// Inside is about a name of the cluster, over UDP; InsideTCP the same over TCP; Outside
	// about a name outside of the cluster, Expanded about that below the first of Search.
	Inside, InsideTCP, Outside, Expanded Answer

	// Pairs is how often A and AAAA were asked at once from one socket, as resolvers do;
	// HalfPairs how often one of the two was not answered.
	Pairs, HalfPairs int

	// TranslatedTo is the server that got these queries by destination NAT, the zero address
	// where there was none.
	TranslatedTo netip.Addr
}

// An Answer is what became of a query, the zero value for one that was not sent.
type Answer struct {
	Name string
	// Rcode is empty without a response; Error then says why there is none.
	Rcode, Error string
	Took         time.Duration
	Truncated    bool
}

// asked reports whether the query was sent, answered whether there is a response with an
// answer or a denial.
func (a *Answer) asked() bool { return a.Name != "" }

func (a *Answer) answered() bool { return a.Rcode == "NOERROR" || a.Rcode == "NXDOMAIN" }

// outcome says what became of a query without an answer.
func (a *Answer) outcome() string {
	if a.Rcode != "" {
		return a.Rcode
	}
	return a.Error
}
