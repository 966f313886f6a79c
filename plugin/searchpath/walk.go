package searchpath

import (
	"strings"

	"github.com/miekg/dns"
)

// walk is a client's walk along its search path, of which the first query is known.
type walk struct {
	namespace string   // the name of the namespace, below svc.ZONE
	others    []string // the names that the client asks for next, on the search path
	absolute  string   // the name that it asks for in the end
}

// walkOf returns the walk that a query for name begins in a cluster with the zone. Names are in
// lower case, and have a final dot. The first name of a walk has the namespace in it:
// api.example.com.NAMESPACE.svc.ZONE. domains are those of the search path after ZONE.
//
// Whether the namespace exists must be asked: the second name of the same walk,
// api.example.com.svc.ZONE, looks like the first one of a pod in a namespace com.
func walkOf(name, zone string, domains []string) (walk, bool) {
	services := "svc." + zone
	path, ok := strings.CutSuffix(name, "."+services)
	if !ok {
		return walk{}, false
	}
	i := strings.LastIndexByte(path, '.')
	if i < 0 || strings.Contains(path, "\\") {
		return walk{}, false
	}
	base, namespace := path[:i], path[i+1:]
	// One label is the name of a Service. A label with an underscore is that of a port.
	if dns.CountLabel(base+".") < 2 || strings.HasPrefix(base, "_") || strings.Contains(base, "._") {
		return walk{}, false
	}
	w := walk{namespace: namespace + "." + services, absolute: base + "."}
	for _, suffix := range append([]string{services, zone}, domains...) {
		other := base + "." + suffix
		if _, ok := dns.IsDomainName(other); !ok {
			return walk{}, false
		}
		w.others = append(w.others, other)
	}
	return w, true
}
