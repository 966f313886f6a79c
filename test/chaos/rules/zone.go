package rules

import (
	"context"
	"fmt"
	"time"

	"github.com/trackless-dns/trackless/lab"
	"github.com/trackless-dns/trackless/test/chaos/scene"
)

// zoneBar is what a zone may cost: the lease runs out, since our own checks are
// answered by kube-dns then, and a TCP connection that was not tracked is reset when
// its client uses it next.
const zoneBar = 2 * time.Second

// foreignZone is the case of somebody who puts DNS into a conntrack zone, which
// undoes NOTRACK: every query is tracked from then on, and kube-proxy and the
// failover table rewrite it. What trackless says of itself has to be true meanwhile.
func foreignZone() *scene.Case {
	return &scene.Case{
		Name: "foreign-zone", Fault: "DNS put into a conntrack zone behind our rules", Bar: "at most 2 s of queries, then kube-dns, and not said to be untracked",
		Undo: func(s *scene.Scene) error {
			if !s.Sabotaged {
				return nil
			}
			return scene.RunAll(s.Node.Namespace, "nft delete table inet zone")
		},
		Sabotage: scene.Sabotage{What: "the look at the effect", Fails: scene.FailClaim, Server: scene.WithoutReconciler(scene.LeaveRules), Instead: lab.Trackless},
		Play: func(s *scene.Scene) error {
			if err := s.Fault("zoned", zoneBar); err != nil {
				return err
			}
			if _, err := scene.RunProgram(s.Node.Namespace, zoneTable, "nft", "-f", "-"); err != nil {
				return err
			}
			s.Let(zoneBar)
			s.Begin(scene.Phase{Name: "tracked in a zone", Want: lab.KubeDNS}) // whoever serves in the case
			time.Sleep(scene.Outage)
			claimsNothing(s)
			if s.Sabotaged {
				return nil
			}
			if err := s.Fault("gone", zoneBar); err != nil {
				return err
			}
			if err := scene.RunAll(s.Node.Namespace, "nft delete table inet zone"); err != nil {
				return err
			}
			s.Await(lab.Trackless)
			s.Steady("attached again", lab.Trackless, time.Second)
			return nil
		},
	}
}

// claimsNothing fails unless the metrics say within some looks at the effect that
// no address is untracked.
func claimsNothing(s *scene.Scene) {
	const attached = "coredns_notrack_attached"
	ctx, cancel := context.WithTimeout(context.Background(), scene.Patience)
	defer cancel()
	said := "no answer"
	for ctx.Err() == nil {
		metrics, err := s.Server.Metrics(ctx, scene.MetricsAddress)
		switch sum, there := metrics.Sum(attached); {
		case err != nil:
			said = err.Error()
		case !there:
			s.Result.Fail(scene.FailClaim, "nothing says that DNS is tracked: there is no metric %s", attached)
			return
		case sum == 0:
			return
		default:
			said = fmt.Sprintf("%g addresses are said to be untracked", sum)
		}
		time.Sleep(100 * time.Millisecond)
	}
	s.Result.Fail(scene.FailClaim, "every query is tracked, and %s", said)
}

// zoneTable stands behind raw, and before conntrack.
const zoneTable = `table inet zone {
	chain prerouting {
		type filter hook prerouting priority -250; policy accept;
		meta l4proto { tcp, udp } th dport 53 ct original zone set 7
	}
	chain output {
		type filter hook output priority -250; policy accept;
		meta l4proto { tcp, udp } th dport 53 ct original zone set 7
	}
}
`
