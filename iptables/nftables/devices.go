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

// Lost implements [iptables.Devices]. It reads one set, which is empty on a healthy
// node, over a socket that is kept.
func (b *Backend) Lost(after time.Time) ([]string, error) {
	if !b.installed() {
		return nil, nil
	}
	b.readerMu.Lock()
	defer b.readerMu.Unlock()
	if b.reader == nil {
		conn, err := nfnl.Dial(b.cfg)
		if err != nil {
			return nil, err
		}
		b.reader = conn
	}
	asked, err := nfnl.Elements(b.reader, nftables.TableFamilyINet, b.Table(), askedSet.name, nil)
	if err != nil {
		b.dropReader()
		return nil, nfnl.Explain("read set "+askedSet.name, err)
	}
	return lostOf(asked, time.Now(), after), nil
}

// closeReader gives the socket of Lost back.
func (b *Backend) closeReader() {
	b.readerMu.Lock()
	defer b.readerMu.Unlock()
	b.dropReader()
}

func (b *Backend) dropReader() {
	if b.reader != nil {
		_ = b.reader.Close()
		b.reader = nil
	}
}

// lostOf returns those that asked after the given time. Whatever drops the queries of
// this node to itself would not drop them tracked.
func lostOf(asked []nfnl.Element, now, after time.Time) (lost []string) {
	for _, e := range asked {
		at := now.Add(e.Expires - askedFor)
		if name := strings.TrimRight(string(e.Key), "\x00"); name != "lo" && !at.Before(after) {
			lost = append(lost, name)
		}
	}
	slices.Sort(lost)
	return lost
}

// Quarantine leaves the queries that a device brings tracked for a time.
func (b *Backend) Quarantine(device string, d time.Duration) error {
	return b.change("quarantine "+device, func(c *nfnl.Encoder) error {
		return addElements(c, b.rs.sets[asideSet.name], []nftables.SetElement{{Key: nfnl.DeviceKey(device), Timeout: d}})
	})
}
