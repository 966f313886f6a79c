package wire

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

func TestAppendName(t *testing.T) {
	label63 := strings.Repeat("a", 63)
	for _, tc := range []struct {
		name string
		in   string
		want string
		err  error
	}{
		{"root", ".", "\x00", nil},
		{"empty is root", "", "\x00", nil},
		{"lower case", "ExAmple.ORG.", "\x07example\x03org\x00", nil},
		{"no final dot", "example.org", "\x07example\x03org\x00", nil},
		{"escaped dot", `a\.b.org.`, "\x03a.b\x03org\x00", nil},
		{"escaped byte", `a\000\255.org.`, "\x03a\x00\xff\x03org\x00", nil},
		{"escaped upper case", `\065.org.`, "\x01a\x03org\x00", nil},
		{"longest label", label63 + ".", "\x3f" + label63 + "\x00", nil},
		{"label too long", label63 + "a.", "", errLabelTooLong},
		{"empty label", "a..org.", "", errEmptyLabel},
		{"leading dot", ".org.", "", errEmptyLabel},
		{"open escape", `a.org\`, "", errEscape},
		{"name too long", strings.Repeat(label63+".", 4), "", errNameTooLong},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := AppendName(nil, tc.in)
			if !errors.Is(err, tc.err) {
				t.Fatalf("AppendName(%q): error %v, want %v", tc.in, err, tc.err)
			}
			if string(got) != tc.want {
				t.Errorf("AppendName(%q) = %q, want %q", tc.in, got, tc.want)
			}
		})
	}
}

func TestKeyParts(t *testing.T) {
	key, err := AppendKey(nil, "Example.org.", dns.TypeAAAA, dns.ClassCHAOS, DO|NoRD)
	if err != nil {
		t.Fatal(err)
	}
	if string(key.Name()) != "\x07example\x03org\x00" || key.Type() != dns.TypeAAAA || key.Class() != dns.ClassCHAOS || key.Bits() != DO|NoRD {
		t.Errorf("key %q has parts %q %d %d %b", key, key.Name(), key.Type(), key.Class(), key.Bits())
	}
	for _, other := range []struct {
		name          string
		qtype, qclass uint16
		bits          Bits
	}{
		{"example.net.", dns.TypeAAAA, dns.ClassCHAOS, DO | NoRD},
		{"example.org.", dns.TypeA, dns.ClassCHAOS, DO | NoRD},
		{"example.org.", dns.TypeAAAA, dns.ClassINET, DO | NoRD},
		{"example.org.", dns.TypeAAAA, dns.ClassCHAOS, NoRD},
		{"example.org.", dns.TypeAAAA, dns.ClassCHAOS, DO},
		{"example.org.", dns.TypeAAAA, dns.ClassCHAOS, DO | NoRD | CD},
		{"example.org.", dns.TypeAAAA, dns.ClassCHAOS, DO | NoRD | NoSubnet},
		{"example.org.", dns.TypeAAAA, dns.ClassCHAOS, DO | NoRD | Subnet},
	} {
		k, err := AppendKey(nil, other.name, other.qtype, other.qclass, other.bits)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Equal(k, key) {
			t.Errorf("%+v has the key of another question", other)
		}
	}
	plain, _ := AppendKey(nil, "example.org.", dns.TypeAAAA, dns.ClassCHAOS, DO)
	if got := key.AppendWith(nil, DO); !bytes.Equal(got, plain) {
		t.Errorf("key %q with other bits is %q, want %q", key, got, plain)
	}
}

func TestInZone(t *testing.T) {
	for _, tc := range []struct {
		name, zone string
		want       bool
	}{
		{"a.example.org.", ".", true},
		{".", ".", true},
		{"example.org.", "example.org.", true},
		{"a.b.example.org.", "example.org.", true},
		{"badexample.org.", "example.org.", false},
		{"org.", "example.org.", false},
		{"example.org.a.", "example.org.", false},
		{`\007example.org.`, "example.org.", false},
	} {
		name, _ := AppendName(nil, tc.name)
		zone, _ := AppendName(nil, tc.zone)
		if got := InZone(name, zone); got != tc.want {
			t.Errorf("InZone(%q, %q) = %t, want %t", tc.name, tc.zone, got, tc.want)
		}
	}
}
