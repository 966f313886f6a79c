package recall

import (
	"bytes"
	"cmp"
	"math/bits"
	"slices"
	"strings"
	"time"

	"github.com/trackless-dns/trackless/plugin/cache/engine"
	"github.com/trackless-dns/trackless/plugin/cache/store"
	"github.com/trackless-dns/trackless/plugin/cache/wire"
)

// hot is a question that is answered often.
type hot struct {
	key   wire.Key
	heat  int
	block string
}

// hottest returns the questions of an engine that were answered most, hottest first, at most
// so many.
func hottest(e *engine.Engine, now time.Time, limit int) []hot {
	at := e.Store().Time(now)
	var all []hot
	floor := 0 // colder questions do not matter
	e.Store().Range(func(key wire.Key, r *store.Record) {
		if heat := heatOf(key, r); heat > floor && e.Servable(r, at) {
			all = append(all, hot{key: bytes.Clone(key), heat: heat})
		}
		if len(all) >= 4*limit {
			all = first(all, limit)
			floor = all[limit-1].heat
		}
	})
	return first(all, limit)
}

// first returns the hottest, at most so many.
func first(all []hot, limit int) []hot {
	slices.SortFunc(all, compare)
	return all[:min(len(all), limit)]
}

// compare orders questions by their heat, hottest first. Among equals the order is that of
// the keys, so that it stays the same.
func compare(a, b hot) int {
	return cmp.Or(b.heat-a.heat, bytes.Compare(a.key, b.key), strings.Compare(a.block, b.block))
}

// heatOf returns how hot a question is, in steps that change seldom; 0 if another process
// need not ask it.
//
// A denial counts when it was used again and again. Most names that do not exist are asked
// once, and some of them are private.
func heatOf(key wire.Key, r *store.Record) int {
	uses := r.Uses()
	switch r.Kind() {
	case store.Positive:
		if uses == 0 {
			return 0
		}
	case store.Negative:
		if rcode := r.Flags().Rcode(); uses < store.MaxUses || rcode != rcodeSuccess && rcode != rcodeNameError {
			return 0
		}
	default:
		return 0
	}
	// Only whoever asks for a network, or without recursion, knows why. Types from 128 on
	// are no types of records (RFC 6895 section 3.1).
	if key.Class() != classINET || key.Bits()&^(wire.DO|wire.CD) != 0 || key.Type() >= 128 && key.Type() < 256 {
		return 0
	}
	return bits.Len32(r.Hits())*(store.MaxUses+1) + int(uses)
}

const (
	classINET      = 1
	rcodeSuccess   = 0
	rcodeNameError = 3
)
