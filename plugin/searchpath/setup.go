package searchpath

import (
	"errors"
	"strings"
	"sync/atomic"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

const directive = "searchpath"

var answers = promauto.NewCounterVec(prometheus.CounterOpts{
	Namespace: plugin.Namespace,
	Subsystem: directive,
	Name:      "answers_total",
	Help:      "The count of queries that got the answer of the last name of their search path.",
}, []string{"server"})

// Saved returns how many queries the clients did not have to send.
func Saved() uint64 { return saved.Load() }

// saved counts for all server blocks.
var saved atomic.Uint64

func init() { plugin.Register(directive, setup) }

func setup(c *caddy.Controller) error {
	s, err := parse(c)
	if err != nil {
		return plugin.Error(directive, err)
	}
	config := dnsserver.GetConfig(c)
	c.OnStartup(func() error {
		s.rewrites = config.Handler("rewrite") != nil // known once the server is made
		return nil
	})
	config.AddPlugin(func(next plugin.Handler) plugin.Handler {
		s.Next = next
		return s
	})
	return nil
}

// parse reads searchpath ZONE [DOMAINS...].
func parse(d *caddy.Controller) (*SearchPath, error) {
	s := new(SearchPath)
	for d.Next() {
		if s.zone != "" {
			return nil, d.Errf("%v; remove one of the two", plugin.ErrOnce)
		}
		args := d.RemainingArgs()
		if len(args) == 0 {
			return nil, d.Err("no ZONE is given; name the zone of the cluster, such as cluster.local")
		}
		if d.NextBlock() {
			return nil, d.Err("it has no block; use searchpath ZONE [DOMAINS...]")
		}
		for i, arg := range args {
			name, err := domain(arg)
			if err != nil {
				return nil, d.Errf("%q: %v", arg, err)
			}
			if i == 0 {
				s.zone = name
			} else {
				s.domains = append(s.domains, name)
			}
		}
	}
	return s, nil
}

var errDomain = errors.New("it is no domain of a search path; use a name such as cluster.local")

func domain(text string) (string, error) {
	if _, ok := dns.IsDomainName(text); !ok || strings.Trim(text, ".") == "" {
		return "", errDomain
	}
	return strings.ToLower(dns.Fqdn(text)), nil
}
