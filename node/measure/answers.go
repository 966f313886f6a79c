package measure

import (
	"cmp"
	"context"
	"errors"
	"net/netip"
	"slices"

	"github.com/trackless-dns/trackless/conntrack"
	"github.com/trackless-dns/trackless/node/probe"
	"github.com/trackless-dns/trackless/node/who"
)

// AskNothing is the Ask of Options that sends no query.
const AskNothing = "off"

// measureAnswers asks the DNS servers of a pod of this node, where one can be found and its
// network namespace be entered.
func (m *Node) measureAnswers(ctx context.Context, o Options, c *conntrack.Conn) {
	if o.Ask == "" || o.Ask == AskNothing {
		return
	}
	pod, err := probe.FindPod(o.Root)
	m.miss(err)
	if pod == nil {
		return
	}
	name := cmp.Or(who.PodsByUID(o.Root)[pod.UID].String(), pod.UID)
	asked, err := pod.Ask(ctx, name, o.Ask)
	m.miss(err)
	for _, a := range asked {
		a.TranslatedTo, err = translatedTo(c, a)
		m.miss(err)
		m.Answers = append(m.Answers, a.Answers)
	}
}

// translatedTo returns the server that the table names instead of the one that was asked.
func translatedTo(c *conntrack.Conn, a probe.Asked) (to netip.Addr, err error) {
	f := conntrack.Filter{
		Dst:      []netip.Prefix{netip.PrefixFrom(a.Server, a.Server.BitLen())},
		DstPorts: []conntrack.PortRange{{First: 53, Last: 53}},
	}
	err = c.Dump(f, func(e *conntrack.Entry) error {
		from := netip.AddrPortFrom(e.Original.Src, e.Original.SrcPort)
		if e.Reply.Src != a.Server && slices.Contains(a.From, from) {
			to = e.Reply.Src
		}
		return nil
	})
	if errors.Is(err, conntrack.ErrInterrupted) {
		err = nil
	}
	return to, err
}
