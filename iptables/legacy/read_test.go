package legacy

import (
	"encoding/binary"
	"slices"
	"testing"

	"github.com/trackless-dns/trackless/iptables"
)

func TestParseRefuses(t *testing.T) {
	h, blob := sample()
	if _, err := parse(iptables.IPv4, "filter", h, layout4.entries(blob), nil); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name   string
		change func([]byte) []byte
	}{
		{"an entry that is cut off", func(b []byte) []byte { return b[:len(b)-8] }},
		{"an end before its target", func(b []byte) []byte { binary.NativeEndian.PutUint16(b[layout4.target+2:], 8); return b }},
		{"a target behind its end", func(b []byte) []byte { binary.NativeEndian.PutUint16(b[layout4.target:], 4096); return b }},
		{"a jump into a rule", func(b []byte) []byte { binary.NativeEndian.PutUint32(b[layout4.size+extensionHeader:], 8); return b }},
		{"an extension without an end", func(b []byte) []byte { binary.NativeEndian.PutUint16(b[layout4.size:], 1); return b }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got, err := parse(iptables.IPv4, "filter", h, layout4.entries(tc.change(slices.Clone(blob))), nil); err == nil {
				t.Errorf("%+v", got)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	h, blob := sample()
	f.Add(false, h.validHooks, h.hookEntry[1], h.underflow[1], blob)
	f.Add(true, uint32(2), uint32(0), uint32(0), make([]byte, 512))
	f.Fuzz(func(t *testing.T, v6 bool, hooks, first, policy uint32, blob []byte) {
		h := header{validHooks: hooks}
		h.hookEntry[1], h.underflow[1] = first, policy
		family := iptables.IPv4
		if v6 {
			family = iptables.IPv6
		}
		entries := layoutOf(family).entries(blob)
		table, err := parse(family, "filter", h, entries, nil)
		if err != nil {
			return
		}
		for _, c := range table.Chains {
			for _, r := range c.Rules {
				_ = r.Comment()
				if v := r.Verdict; v != nil && (v.Code == Jump || v.Code == Goto) && table.Chain(v.Chain) == nil {
					t.Errorf("a jump to %q, which is not there", v.Chain)
				}
			}
		}
	})
}

// sample is a table with one base chain, INPUT, one rule that jumps, and one
// user-defined chain.
func sample() (header, []byte) {
	var blob []byte
	standard := func(verdict int32) int {
		at := len(blob)
		e := make([]byte, layout4.size+extensionHeader+8)
		binary.NativeEndian.PutUint16(e[layout4.target:], uint16(layout4.size))
		binary.NativeEndian.PutUint16(e[layout4.target+2:], uint16(len(e)))
		binary.NativeEndian.PutUint16(e[layout4.size:], extensionHeader+8)
		binary.NativeEndian.PutUint32(e[layout4.size+extensionHeader:], uint32(verdict))
		blob = append(blob, e...)
		return at
	}
	marker := func(name string) {
		e := make([]byte, layout4.size+extensionHeader+32)
		binary.NativeEndian.PutUint16(e[layout4.target:], uint16(layout4.size))
		binary.NativeEndian.PutUint16(e[layout4.target+2:], uint16(len(e)))
		binary.NativeEndian.PutUint16(e[layout4.size:], extensionHeader+32)
		copy(e[layout4.size+2:], errorTarget)
		copy(e[layout4.size+extensionHeader:], name)
		blob = append(blob, e...)
	}
	h := header{validHooks: 1 << 1}
	h.hookEntry[1] = uint32(standard(0))
	h.underflow[1] = uint32(standard(-1)) // DROP
	marker("deep")
	deep := standard(-2) // ACCEPT
	standard(-5)         // RETURN
	marker(errorTarget)
	binary.NativeEndian.PutUint32(blob[layout4.size+extensionHeader:], uint32(deep))
	return h, blob
}
