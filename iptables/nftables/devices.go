package nftables

import (
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"

	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/internal/nfnl"
)

var _ iptables.Devices = (*Backend)(nil)

// Lost returns the devices from which queries were untracked a moment ago, of
// which none arrived behind the filter rules of the node: whatever drops them
// there would not drop them tracked.
func (b *Backend) Lost() ([]string, error) {
	if !b.installed() {
		return nil, nil
	}
	conn, err := nfnl.Dial(b.cfg)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	// In this order: what asked before the first reading has arrived, or not,
	// by the second.
	began := time.Now()
	asked, err := nfnl.Elements(conn, nftables.TableFamilyINet, b.Table(), askedSet.name, nil)
	if err != nil {
		return nil, nfnl.Explain("read set "+askedSet.name, err)
	}
	arrived, err := nfnl.Elements(conn, nftables.TableFamilyINet, b.Table(), arrivedSet.name, nil)
	if err != nil {
		return nil, nfnl.Explain("read set "+arrivedSet.name, err)
	}
	return lostOf(asked, arrived, time.Since(began)), nil
}

// lostOf returns those that asked and did not arrive, if the readings of both
// took so short that nothing can have been forgotten in between that is later
// than what asked: we may have been stopped.
func lostOf(asked, arrived []nfnl.Element, took time.Duration) (lost []string) {
	if took > (arrivedFor-askedFor)/2 {
		return nil
	}
	for _, e := range asked {
		there := slices.ContainsFunc(arrived, func(a nfnl.Element) bool { return slices.Equal(a.Key, e.Key) })
		if name := strings.TrimRight(string(e.Key), "\x00"); !there && name != "lo" {
			lost = append(lost, name)
		}
	}
	slices.Sort(lost)
	return lost
}

// Quarantine leaves the queries that a device brings tracked for a time.
func (b *Backend) Quarantine(device string, d time.Duration) error {
	return b.change("set "+device+" aside", func(c *nfnl.Encoder) error {
		return addElements(c, b.rs.sets[asideSet.name], []nftables.SetElement{{Key: nfnl.DeviceKey(device), Timeout: d}})
	})
}
