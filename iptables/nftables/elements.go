package nftables

import (
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"

	"github.com/trackless-dns/trackless/iptables/internal/nfnl"
)

// elementsPerMessage keeps a list of elements, of 100 bytes at most, within the
// 64 KiB of a netlink attribute.
const elementsPerMessage = 256

// addElements queues elements of a set. All that are ever added come by here.
func addElements(c *nfnl.Encoder, set *nftables.Set, all []nftables.SetElement) error {
	for part := range slices.Chunk(all, elementsPerMessage) {
		if err := c.AddElements(set, part); err != nil {
			return err
		}
	}
	return nil
}

// content is what a set shall hold, and nothing else: of a set into which packets
// put nothing.
type content struct {
	set      *nftables.Set
	elements []nftables.SetElement
}

// replaceAll queues the contents of sets. A set is flushed and filled within one
// transaction, which packets see as one change.
func replaceAll(c *nfnl.Encoder, all []content) error {
	for _, s := range all {
		c.FlushSet(s.set)
		if err := addElements(c, s.set, s.elements); err != nil {
			return err
		}
	}
	return nil
}

// readBack compares what the kernel holds with what it was given.
func readBack(cfg Config, all []content) error {
	conn, err := nfnl.Dial(cfg)
	if err != nil {
		return err
	}
	var errs []error
	for _, s := range all {
		if len(s.elements) > 0 {
			errs = append(errs, s.readBack(conn))
		}
	}
	return errors.Join(append(errs, conn.Close())...)
}

func (s content) readBack(conn *netlink.Conn) error {
	missing := map[string]bool{}
	for _, e := range s.elements {
		missing[elementName(e.Key, e.IntervalEnd)] = true
	}
	want := len(missing)
	_, err := nfnl.Elements(conn, s.set.Table.Family, s.set.Table.Name, s.set.Name, func(e nfnl.Element) bool {
		delete(missing, elementName(e.Key, e.IntervalEnd))
		return false
	})
	if err != nil {
		return nfnl.Explain("read set "+s.set.Name+" back", err)
	}
	if len(missing) > 0 {
		return fmt.Errorf("nftables: set %s of table %s holds %d of the %d elements that it was given, although the kernel refused none", s.set.Name, s.set.Table.Name, want-len(missing), want)
	}
	return nil
}

func elementName(key []byte, intervalEnd bool) string {
	if intervalEnd {
		return string(key) + " end"
	}
	return string(key)
}
