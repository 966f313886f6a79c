package sockets

import (
	"os"
	"path/filepath"
	"testing"
)

func TestDropped(t *testing.T) {
	const (
		snmp  = "Ip: Forwarding\nIp: 1\nUdp: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors SndbufErrors\nUdp: 1 2 3 4 50 6\nUdpLite: InDatagrams RcvbufErrors\nUdpLite: 1 700\n"
		snmp6 = "Udp6InDatagrams                 	1\nUdp6RcvbufErrors                	5\nUdpLite6RcvbufErrors            	8\n"
	)
	for _, tc := range []struct {
		name  string
		files map[string]string
		want  uint64
	}{
		{"both families", map[string]string{"snmp": snmp, "snmp6": snmp6}, 55},
		{"without IPv6", map[string]string{"snmp": snmp}, 50},
		{"a kernel that says nothing", nil, 0},
		{"cut short", map[string]string{"snmp": "Udp: InDatagrams RcvbufErrors\nUdp: 1"}, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			root := t.TempDir()
			net := filepath.Join(root, "thread-self/net")
			if err := os.MkdirAll(net, 0o700); err != nil {
				t.Fatal(err)
			}
			for name, text := range tc.files {
				if err := os.WriteFile(filepath.Join(net, name), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if got := (&Dropped{Proc: root}).Count(); got != tc.want {
				t.Errorf("%d, want %d", got, tc.want)
			}
		})
	}
}
