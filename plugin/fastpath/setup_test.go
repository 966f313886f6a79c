package fastpath

import (
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"

	"github.com/trackless-dns/trackless/internal/testgolden"
)

func TestParse(t *testing.T) {
	byDefault := min(runtime.GOMAXPROCS(0), 8)
	for _, row := range []struct {
		corefile string
		want     options
	}{
		{"fastpath", options{settings: settings{kernel: off}, sockets: byDefault}},
		{"fastpath {\n}", options{settings: settings{kernel: off}, sockets: byDefault}},
		{"fastpath {\nkernel off\n}", options{settings: settings{kernel: off}, sockets: byDefault}},
		{"fastpath {\nkernel on\n}", options{settings: settings{kernel: on}, sockets: byDefault}},
		{"fastpath {\nkernel force 8Mi\n}", options{settings: settings{kernel: force, size: 8 << 20}, sockets: byDefault}},
		{"fastpath {\nsockets 4\n}", options{settings: settings{kernel: off}, sockets: 4}},
		{"fastpath {\nsockets off\nkernel on\n}", options{settings: settings{kernel: on}}},
	} {
		s, err := parse(caddy.NewTestController("dns", row.corefile))
		if err != nil || s != row.want {
			t.Errorf("%q: %+v, %v", row.corefile, s, err)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	var out strings.Builder
	for _, corefile := range []string{
		"fastpath on", "fastpath {\nkernel\n}", "fastpath {\nkernel yes\n}", "fastpath {\nkernel on 8Mi 9\n}",
		"fastpath {\nkernel on many\n}", "fastpath {\nplugs 4\n}", "fastpath {\nsockets\n}", "fastpath {\nsockets 0\n}", "fastpath {\nsockets 65\n}", "fastpath {\nsockets many\n}",
		"fastpath {\nsockets 2\nsockets 2\n}", "fastpath {\nkernel on\nkernel off\n}", "fastpath {\n}\nfastpath",
	} {
		_, err := parse(caddy.NewTestController("dns", corefile))
		if err == nil {
			t.Errorf("%q is accepted", corefile)
		}
		fmt.Fprintf(&out, "%q\n\t%v\n", corefile, err)
	}
	testgolden.Compare(t, "refused.txt", out.String())
}

// Blocks share one program, and so its settings.
func TestBlocksAgree(t *testing.T) {
	c := caddy.NewTestController("dns", "fastpath {\nkernel on\n}")
	if err := setup(c); err != nil {
		t.Fatal(err)
	}
	config := parsed.Load()
	if config == nil || config.kernel != on || len(config.blocks) != 1 {
		t.Fatalf("configuration %+v", config)
	}
	other := &configuration{options: options{settings: settings{kernel: off}}, line: 7}
	c = caddy.NewTestController("dns", "fastpath {\nkernel on\n}")
	c.Set(configurationKey{}, other)
	if err := setup(c); err == nil {
		t.Error("two blocks with other values are accepted")
	}
}

func TestListeners(t *testing.T) {
	for _, row := range []struct {
		name, port, transport string
		hosts                 []string
		want                  []string
	}{
		{"addresses", "53", "dns", []string{"169.254.20.10", "fd00::a", "10.96.0.10", "10.96.0.10"}, []string{"10.96.0.10:53", "169.254.20.10:53", "[fd00::a]:53"}},
		{"with a zone", "53", "dns", []string{"fe80::1%nodelocaldns"}, []string{"[fe80::1]:53"}},
		{"all addresses", "53", "dns", []string{"", "0.0.0.0", "::"}, nil},
		{"TLS", "853", "tls", []string{"10.96.0.10"}, nil},
	} {
		t.Run(row.name, func(t *testing.T) {
			var want []netip.AddrPort
			for _, w := range row.want {
				want = append(want, netip.MustParseAddrPort(w))
			}
			got := listenersOf(&dnsserver.Config{ListenHosts: row.hosts, Port: row.port, Transport: row.transport})
			if !slices.Equal(got, want) {
				t.Errorf("listeners %v, want %v", got, want)
			}
		})
	}
}
