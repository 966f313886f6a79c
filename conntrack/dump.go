package conntrack

import (
	"os"
	"path/filepath"

	"github.com/mdlayher/netlink"

	"github.com/trackless-dns/trackless/conntrack/internal/nfnetlink"
)

// Dump calls fn with every entry that f selects, as the kernel sends them: in
// the order of its hash, expired entries left out. The Entry is reused for the
// next one when fn returns; the whole table is never held.
//
// If fn returns an error no further entry is delivered, and Dump returns it.
//
// The table changes while it is read: an entry made or destroyed
// meanwhile may or may not appear, and one in a bucket that changed may appear
// twice. If the table as a whole was rebuilt Dump delivers what it gets and
// then returns an error for which errors.Is(err, ErrInterrupted) holds.
func (c *Conn) Dump(f Filter, fn func(*Entry) error) error {
	requests, err := f.requests()
	if err != nil {
		return opError("dump", err)
	}
	c.dumpMu.Lock()
	defer c.dumpMu.Unlock()

	match := f.matcher()
	var fnErr error // not from the kernel: returned as it is
	handle := func(m nfnetlink.Message) error {
		if len(m.Data) < nfnetlink.GenHeaderLen {
			return nfnetlink.ErrMalformed
		}
		if err := c.decoder.entry(m.Data[nfnetlink.GenHeaderLen:], &c.entry); err != nil {
			return err
		}
		if !match(&c.entry) {
			return nil
		}
		fnErr = fn(&c.entry)
		return fnErr
	}

	before := c.buckets()
	var interrupted bool
	for _, attributes := range requests {
		req, err := request(msgGet, attributes.family, netlink.Dump, attributes.attributes...)
		if err != nil {
			return opError("dump", err)
		}
		broken, err := nfnetlink.Exchange(c.dump, c.dumpBuf, req, handle)
		if fnErr != nil {
			return fnErr
		}
		if err != nil {
			return opError("dump", err)
		}
		interrupted = interrupted || broken
	}
	// ctnetlink continues a dump at a bucket number and does not notice that
	// the buckets were renumbered.
	if interrupted || before != c.buckets() {
		return opError("dump", ErrInterrupted)
	}
	return nil
}

// buckets returns the size of the kernel's hash as text, "" if not readable.
func (c *Conn) buckets() string {
	b, _ := os.ReadFile(filepath.Join(c.proc, "sys/net/netfilter/nf_conntrack_buckets"))
	return string(b)
}
