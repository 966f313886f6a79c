package cut

import (
	"bytes"
	"slices"

	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/plugin/cache/wire"
)

// maxShown bounds the names of a response: chains of aliases are short.
const maxShown = 8

// Shown returns the names that a response other than a denial shows to exist: that of the question, the
// key's, and those that an alias leads to and that have records.
func Shown(m *dns.Msg, key wire.Key) [][]byte {
	names := [][]byte{key.Name()}
	last := ""
	for _, rr := range m.Answer {
		owner := rr.Header().Name
		if owner == last || len(names) == maxShown {
			continue
		}
		last = owner
		name, err := wire.AppendName(nil, owner)
		if err == nil && !slices.ContainsFunc(names, func(n []byte) bool { return bytes.Equal(n, name) }) {
			names = append(names, name)
		}
	}
	return names
}
