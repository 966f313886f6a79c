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

// Holder is an instance with a key.
type Holder struct {
	Table string
	Key   []byte
	Mark  owner.Mark
}

// Holders returns the instances of a network namespace whose tables have keys.
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
		if !instanceTable(t) || len(t.Key) != keyLen {
			continue
		}
		mark, _ := owner.Parse(t.Comment)
		out = append(out, Holder{t.Name, t.Key, mark})
	}
	return out, nil
}
