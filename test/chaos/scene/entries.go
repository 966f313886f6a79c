package scene

import (
	"errors"
	"net/netip"
	"slices"

	"github.com/trackless-dns/trackless/conntrack"
	"github.com/trackless-dns/trackless/lab"
	"github.com/trackless-dns/trackless/lab/clients"
)

// Connection tracking entries of DNS may be there afterwards for flows that
// were tracked rightly, until the kernel's timeouts are over:
//
//   - those that kube-dns answered, or should have answered;
//   - those whose queries were under way while one responder took over from
//     the other;
//   - the upstream flows of the cache, which have no listen address in them.
//
// All others with port 53 of a listen address in them are ours to answer for:
// a flow that should have been untracked, a check of our own, or a response
// that was taken for a new flow.

// flowKey identifies the flow of a client. Clients never share a port, so that
// the target does not matter.
type flowKey struct {
	protocol conntrack.Protocol
	from     netip.Addr // the zero Addr for the node, whose address varies
	port     uint16
	ipv6     bool
}

// trackedFlows are those of the load that may have an entry.
func (t *Timeline) trackedFlows(podOf func(*lab.Namespace) *lab.Pod) map[flowKey]bool {
	flows := map[flowKey]bool{}
	for s, stream := range t.Streams {
		for i, phase := range t.Phases {
			if phase.Want != "" || !t.takeover(i) && !t.RulesGone {
				continue
			}
			// What was open when it began: a connection of which no more comes
			// than its end.
			for q := range t.Queries[s] {
				sent := &t.Queries[s][len(t.Queries[s])-1-q]
				if sent.At.Before(phase.From) {
					flows[keyOf(stream, sent.Port, podOf)] = true
					break
				}
			}
		}
		for q := range t.Queries[s] {
			sent := &t.Queries[s][q]
			index := t.phaseOf(sent)
			if sent.By == lab.KubeDNS || index < 0 || t.Phases[index].Want == lab.KubeDNS ||
				t.Phases[index].Want == "" && (t.takeover(index) || t.RulesGone) {
				flows[keyOf(stream, sent.Port, podOf)] = true
			}
		}
	}
	return flows
}

func keyOf(stream clients.Stream, port uint16, podOf func(*lab.Namespace) *lab.Pod) flowKey {
	key := flowKey{protocol: conntrack.UDP, port: port, ipv6: stream.Target.Is6()}
	if stream.Kind.Protocol() == lab.TCP {
		key.protocol = conntrack.TCP
	}
	if pod := podOf(stream.From); pod != nil {
		key.from = pod.Addrs[0]
		if key.ipv6 {
			key.from = pod.Addrs[1]
		}
	}
	return key
}

// leftEntries returns the entries of the node that should not be there. Where a
// fault takes rules away, checks of our own, which come from a listen address,
// are tracked until they are back.
func leftEntries(node *lab.Node, tracked map[flowKey]bool, rulesGone bool) (left []conntrack.Entry, err error) {
	conn, err := conntrack.Dial(&conntrack.Config{NetNS: node.Namespace.FD()})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	var pods []netip.Addr
	for _, pod := range node.Pods {
		pods = append(pods, pod.Addrs...)
	}
	err = conn.Dump(conntrack.Filter{}, func(entry *conntrack.Entry) error {
		o := entry.Original
		toUs := slices.Contains(ListenAddresses, o.Dst) && o.DstPort == 53
		fromUs := slices.Contains(ListenAddresses, o.Src) && o.SrcPort == 53
		if !toUs && !fromUs {
			return nil
		}
		if rulesGone && !fromUs && slices.Contains(ListenAddresses, o.Src) {
			return nil
		}
		key := flowKey{protocol: o.Proto, port: o.SrcPort, ipv6: o.Src.Is6()}
		if slices.Contains(pods, o.Src) {
			key.from = o.Src
		}
		if fromUs || !tracked[key] {
			left = append(left, *entry)
		}
		return nil
	})
	return left, err
}
