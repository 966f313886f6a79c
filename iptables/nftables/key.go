package nftables

import (
	"crypto/rand"

	"github.com/trackless-dns/trackless/iptables/internal/nfnl"
	"github.com/trackless-dns/trackless/iptables/owner"
)

// A table has a key that only CAP_NET_ADMIN can read, as everything in nf_tables. Two
// instances that both know it can trust each other, whatever else shares the network
// namespace with them. Linux before 5.10 keeps no key.

// keyLen is the size of a key in bytes.
const keyLen = 32

func newKey() ([]byte, error) {
	key := make([]byte, keyLen)
	_, err := rand.Read(key)
	return key, err
}

// Key returns the key of this instance. It is a secret.
func (b *Backend) Key() []byte { return b.key }

// Holder is an instance with a table.
type Holder struct {
	Table string
	Key   []byte // nil: it has none
	Mark  owner.Mark
}

// Holders returns the instances of a network namespace with this backend.
func Holders(cfg Config) ([]Holder, error) {
	conn, err := nfnl.Dial(cfg)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	all, err := nfnl.Tables(conn)
	if err != nil {
		return nil, nfnl.Explain("list tables", err)
	}
	var out []Holder
	for _, t := range all {
		if !instanceTable(t) {
			continue
		}
		h := Holder{Table: t.Name}
		h.Mark, _ = owner.Parse(t.Comment)
		if len(t.Key) == keyLen {
			h.Key = t.Key
		}
		out = append(out, h)
	}
	return out, nil
}
