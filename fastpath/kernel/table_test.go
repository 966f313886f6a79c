package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/fastpath"
	"github.com/trackless-dns/trackless/plugin/cache/wire"
)

// aTable is a table in plain memory, whose waits are counted.
func aTable(t *testing.T, units, buckets int) (table *Table, waits *int) {
	t.Helper()
	waits = new(int)
	return newTable(7, make([]byte, buckets*bucketSize), make([]byte, units*unitSize), func() error { *waits++; return nil }), waits
}

// publishTo replaces the record of the question, and makes room where there is none, as a
// publisher does.
func publishTo(t *Table, r *fastpath.Record) error {
	t.Withdraw(r.Listener, r.Key)
	err := t.Publish(r)
	if errors.Is(err, fastpath.ErrNoRoom) {
		if err := t.MakeRoom(func(f func()) { f() }); err != nil {
			return err
		}
		return t.Publish(r)
	}
	return err
}

// lookup is what the program finds for the question: the body, or nil.
func (t *Table) lookup(listener uint8, key wire.Key) []byte {
	slot := t.find(where(t.seed, key.Name(), key.Type(), keyByte(listener, key), t.mask))
	if slot == nil || !t.holds(uint32(*slot), key.Name(), key.Type(), keyByte(listener, key)) {
		return nil
	}
	unit := uint32(*slot)
	b := t.at(unit, t.sizeAt(unit))
	n := binary.LittleEndian.Uint16(b[atBodyLen:])
	body := b[2*unitSize:]
	if len(key.Name()) > headName+moreName {
		body = body[unitSize:]
	}
	return body[:n]
}

// start is when the answers of the tests were stored.
var start = time.Now()

func record(t *testing.T, name string, body byte) *fastpath.Record {
	t.Helper()
	key, err := wire.AppendKey(nil, name, dns.TypeA, dns.ClassINET, 0)
	if err != nil {
		t.Fatal(err)
	}
	return &fastpath.Record{Key: key, Answer: wire.Answer{Body: []byte{body, 2, 3}}, Stored: start, TTL: 30, Serve: 30}
}

func TestTable(t *testing.T) {
	table, _ := aTable(t, 1024, 64)
	one, again := record(t, "one.example.", 1), record(t, "one.example.", 2)
	if err := table.Publish(one); err != nil {
		t.Fatal(err)
	}
	if got := table.lookup(0, one.Key); got == nil || got[0] != 1 {
		t.Errorf("published: %v", got)
	}
	if got := table.lookup(1, one.Key); got != nil {
		t.Errorf("at another listener: %v", got)
	}
	if err := table.Publish(again); err != nil {
		t.Fatal(err)
	}
	if got := table.lookup(0, one.Key); got == nil || got[0] != 1 || table.Len() != 1 {
		t.Errorf("published again: %v, %d records", got, table.Len())
	}
	behind := record(t, "one.example.", 3)
	behind.Stored = one.Stored.Add(-time.Second)
	if err := table.Publish(behind); err != nil {
		t.Fatal(err)
	}
	if got := table.lookup(0, one.Key); got == nil || got[0] != 3 || table.Len() != 1 {
		t.Errorf("published another answer, behind an expired one: %v, %d records", got, table.Len())
	}
	if err := publishTo(table, again); err != nil {
		t.Fatal(err)
	}
	if got := table.lookup(0, one.Key); got == nil || got[0] != 2 || table.Len() != 1 {
		t.Errorf("replaced: %v, %d records", got, table.Len())
	}
	if other := record(t, "other.example.", 0); table.Withdraw(0, other.Key) || table.Withdraw(1, one.Key) {
		t.Error("a record that was never published is withdrawn")
	}
	if !table.Withdraw(0, one.Key) || table.lookup(0, one.Key) != nil || table.Withdraw(0, one.Key) || table.Len() != 0 {
		t.Error("the record is not withdrawn once")
	}
	if err := table.Publish(one); err != nil {
		t.Fatal(err)
	}
	if table.Clear(); table.Len() != 0 || table.lookup(0, one.Key) != nil {
		t.Error("the table is not cleared")
	}
}

func TestRecordsThatDoNotFit(t *testing.T) {
	for name, change := range map[string]func(*fastpath.Record){
		"body":         func(r *fastpath.Record) { r.Answer.Body = make([]byte, MaxBody+1) },
		"TTLs":         func(r *fastpath.Record) { r.Answer.TTLs = make([]byte, 2*MaxRecords+2) },
		"name":         func(r *fastpath.Record) { r.Key = append(make([]byte, MaxName+1), r.Key[len(r.Key)-5:]...) },
		"other bits":   func(r *fastpath.Record) { r.Key[len(r.Key)-1] = byte(wire.CD) },
		"class of DNS": func(r *fastpath.Record) { r.Key[len(r.Key)-2] = 3 },
		"listener":     func(r *fastpath.Record) { r.Listener = Listeners },
		"class":        func(r *fastpath.Record) { r.Class = Classes },
		"serve":        func(r *fastpath.Record) { r.Serve = r.TTL + 1 },
	} {
		t.Run(name, func(t *testing.T) {
			table, _ := aTable(t, 1024, 64)
			r := record(t, "a.example.", 1)
			change(r)
			if err := publishTo(table, r); !errors.Is(err, fastpath.ErrTooLarge) || table.Len() != 0 {
				t.Errorf("Publish: %v, %d records", err, table.Len())
			}
		})
	}
}

// Memory is written again only after a wait, used records outlive the others, and
// no lookup ever gets another record's answer.
func TestTurnover(t *testing.T) {
	table, waits := aTable(t, 1024, 256)
	hot := record(t, "hot.example.", 77)
	if err := table.Publish(hot); err != nil {
		t.Fatal(err)
	}
	written := func(unit uint32) int { return int(unit / table.size) }
	was, waited := written(table.ends[table.current]), *waits
	for i := range 5000 {
		r := record(t, fmt.Sprintf("n%d.example.", i), byte(i))
		if err := publishTo(table, r); err != nil && !errors.Is(err, fastpath.ErrFull) {
			t.Fatal(err)
		} else if err == nil {
			if got := table.lookup(0, r.Key); got == nil || got[0] != byte(i) {
				t.Fatalf("record %d: %v", i, got)
			}
		}
		if now := table.current; now != was {
			if *waits != waited+1 {
				t.Fatalf("%d waits before segment %d is written again", *waits-waited, now)
			}
			was, waited = now, *waits
		}
		slot := table.find(where(table.seed, hot.Key.Name(), dns.TypeA, 0, table.mask))
		if slot == nil || table.lookup(0, hot.Key)[0] != 77 {
			t.Fatalf("the record in use is gone after %d others", i)
		}
		*table.hits(uint32(*slot))++
	}
	if n := table.Len(); n < 200 || n > 341 {
		t.Errorf("%d records in 1024 units, 3 each", n)
	}
	count := 0
	for i := range uint32(len(table.buckets) / 8) {
		if slot := *table.slot(i); slot != 0 {
			count++
			if table.slotOf(uint32(slot)) == nil {
				t.Errorf("slot %d names a unit with another record", i)
			}
		}
	}
	if count != table.Len() {
		t.Errorf("%d slots, %d records", count, table.Len())
	}
}

func TestAFailedWaitPublishesNothing(t *testing.T) {
	table, _ := aTable(t, 1024, 256)
	fault := errors.New("no")
	table.wait = func() error { return fault }
	for i := range 400 {
		if err := publishTo(table, record(t, fmt.Sprintf("n%d.example.", i), 1)); err != nil {
			if !errors.Is(err, fault) {
				t.Fatal(err)
			}
			return
		}
	}
	t.Error("400 records were published into memory that may be read")
}
