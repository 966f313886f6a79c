package conntrack_test

import (
	"time"

	"github.com/trackless-dns/trackless/conntrack"
)

// entry returns an entry without NAT that lives long enough for any test.
func entry(t conntrack.Tuple, change ...func(*conntrack.Entry)) *conntrack.Entry {
	e := &conntrack.Entry{Original: t, Reply: t.Mirror(), Timeout: 10 * time.Minute}
	for _, c := range change {
		c(e)
	}
	return e
}
