package chaos

import (
	"fmt"
	"strings"
	"time"

	"github.com/trackless-dns/trackless/lab"
)

// switches are changes of the backend by reload, from each to another.
func switches() []*Case {
	var out []*Case
	for _, change := range []struct{ from, to string }{
		{NFTables, IPTablesNFT}, {IPTablesLegacy, NFTables},
	} {
		out = append(out, &Case{
			Name: "backend-to-" + strings.ReplaceAll(change.to, " ", "-"), Backend: change.from,
			Fault: "backend " + change.to + " by reload", Bar: "0 lost, no answer of another",
			Prime: func(s *Scene) error {
				return firstError(func() error { return s.prime(change.from) }, func() error { return s.prime(change.to) })
			},
			Sabotage: Sabotage{
				What: "the order: the rules of the new one come when those of the old one are gone", Fails: FailResponder,
				At: "switched", Apply: func(s *Scene) error {
					return s.Server.Reload(strings.ReplaceAll(s.corefile(true, metricsAddress), s.directive(), ""))
				},
			},
			Play: func(s *Scene) error {
				to := *s.Case
				to.Backend = change.to
				s.Case = &to
				// It counts as a steady phase: we answer throughout.
				s.begin(Phase{Name: "switching", Want: lab.Trackless})
				if err := s.reach("switched"); err != nil {
					return err
				}
				if !s.sabotaged {
					if err := s.Server.Reload(s.corefile(true, metricsAddress)); err != nil {
						return err
					}
				}
				time.Sleep(3 * time.Second)
				if err := holds(s, change.to); err != nil && !s.sabotaged {
					s.result.fail(FailRun, "%v", err)
				}
				return s.proveTakeover()
			},
		})
	}
	return out
}

// holds returns an error unless the rules of the backend, and of no other, are
// there.
func holds(s *Scene, backend string) error {
	tables, err := run(s.Node.Namespace, "", "nft", "list", "tables")
	if err != nil {
		return err
	}
	table := strings.Contains(strings.ReplaceAll(tables, "trackless-failover", ""), " trackless-")
	chains := map[string]bool{}
	for _, variant := range []string{"legacy", "nft"} {
		out, err := run(s.Node.Namespace, "", "iptables-"+variant+"-save")
		if err != nil {
			return err
		}
		chains["iptables "+variant] = strings.Contains(out, "TRACKLESS-")
	}
	if table != (backend == NFTables) || chains[IPTablesLegacy] != (backend == IPTablesLegacy) || chains[IPTablesNFT] != (backend == IPTablesNFT) {
		return fmt.Errorf("after the change to %s: a table %t, chains %v", backend, table, chains)
	}
	return nil
}
