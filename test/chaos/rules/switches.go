package rules

import (
	"fmt"
	"strings"
	"time"

	"github.com/trackless-dns/trackless/lab"
	"github.com/trackless-dns/trackless/test/chaos/scene"
)

// Switches are changes of the backend by reload, from each to another.
func Switches() []*scene.Case {
	var out []*scene.Case
	for _, change := range []struct{ from, to string }{
		{scene.NFTables, scene.IPTablesNFT}, {scene.IPTablesLegacy, scene.NFTables},
	} {
		out = append(out, &scene.Case{
			Name: "backend-to-" + strings.ReplaceAll(change.to, " ", "-"), Backend: change.from,
			Fault: "backend " + change.to + " by reload", Bar: "0 lost, no answer of another",
			Prime: func(s *scene.Scene) error {
				return scene.FirstError(func() error { return s.PrimeTables(change.from) }, func() error { return s.PrimeTables(change.to) })
			},
			Sabotage: scene.Sabotage{
				What: "the order: the rules of the new one come when those of the old one are gone", Fails: scene.FailResponder,
				At: "switched", Apply: func(s *scene.Scene) error {
					return s.Server.Reload(strings.ReplaceAll(s.Corefile(true, scene.MetricsAddress), s.Directive(), ""))
				},
			},
			Play: func(s *scene.Scene) error {
				to := *s.Case
				to.Backend = change.to
				s.Case = &to
				// It counts as a steady phase: we answer throughout.
				s.Begin(scene.Phase{Name: "switching", Want: lab.Trackless})
				if err := s.Reach("switched"); err != nil {
					return err
				}
				if !s.Sabotaged {
					if err := s.Server.Reload(s.Corefile(true, scene.MetricsAddress)); err != nil {
						return err
					}
				}
				time.Sleep(3 * time.Second)
				if err := holds(s, change.to); err != nil && !s.Sabotaged {
					s.Result.Fail(scene.FailRun, "%v", err)
				}
				return s.ProveTakeover()
			},
		})
	}
	return out
}

// holds returns an error unless the rules of the backend, and of no other, are
// there.
func holds(s *scene.Scene, backend string) error {
	tables, err := scene.RunProgram(s.Node.Namespace, "", "nft", "list", "tables")
	if err != nil {
		return err
	}
	table := strings.Contains(strings.ReplaceAll(tables, "trackless-failover", ""), " trackless-")
	chains := map[string]bool{}
	for _, variant := range []string{"legacy", "nft"} {
		out, err := scene.RunProgram(s.Node.Namespace, "", "iptables-"+variant+"-save")
		if err != nil {
			return err
		}
		chains["iptables "+variant] = strings.Contains(out, "TRACKLESS-")
	}
	if table != (backend == scene.NFTables) || chains[scene.IPTablesLegacy] != (backend == scene.IPTablesLegacy) || chains[scene.IPTablesNFT] != (backend == scene.IPTablesNFT) {
		return fmt.Errorf("after the change to %s: a table %t, chains %v", backend, table, chains)
	}
	return nil
}
