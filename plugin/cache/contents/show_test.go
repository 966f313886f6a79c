package contents

import (
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/plugin/cache/engine"
	"github.com/trackless-dns/trackless/plugin/cache/store"
	"github.com/trackless-dns/trackless/plugin/cache/wire"
)

func TestTypeOf(t *testing.T) {
	if n, err := typeOf("type65"); n != dns.TypeHTTPS || err != nil {
		t.Errorf("type65 is %d, %v", n, err)
	}
}

// TestShowBounds: answers beyond the limit are counted.
func TestShowBounds(t *testing.T) {
	e, err := engine.New(engine.Options{Store: store.Options{Bytes: store.MinBytes}})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	now := time.Now()
	for _, bits := range []wire.Bits{0, wire.DO} {
		key, err := wire.AppendKey(nil, "www.example.org.", dns.TypeA, dns.ClassINET, bits)
		if err != nil {
			t.Fatal(err)
		}
		e.Put(key, store.Positive, &store.Entry{Stored: e.Store().Time(now), TTL: 100}, engine.Asked{})
	}
	if found, more := (Cache{Engine: e, Now: now}).find(engine.Scope{}, dns.TypeNone, 1, nil); len(found) != 1 || more != 1 {
		t.Errorf("%d shown, %d more", len(found), more)
	}
}
