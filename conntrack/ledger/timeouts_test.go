package ledger

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestReadTimeouts(t *testing.T) {
	for _, tt := range []struct {
		name    string
		sysctls map[string]string
		want    Timeouts
		wantErr string
	}{
		{
			name: "conntrack not loaded",
			want: DefaultTimeouts,
		},
		{
			name: "all set",
			sysctls: map[string]string{
				"nf_conntrack_udp_timeout":           "31\n",
				"nf_conntrack_udp_timeout_stream":    "180\n",
				"nf_conntrack_tcp_timeout_time_wait": "60\n",
				"nf_conntrack_tcp_timeout_close":     "11\n",
			},
			want: Timeouts{UDP: 31 * s, UDPStream: 180 * s, TCPTimeWait: 60 * s, TCPClose: 11 * s},
		},
		{
			name:    "zero is not the default",
			sysctls: map[string]string{"nf_conntrack_udp_timeout": "0\n"},
			want:    Timeouts{UDP: 1, UDPStream: 120 * s, TCPTimeWait: 120 * s, TCPClose: 10 * s},
		},
		{
			name: "one not understood",
			sysctls: map[string]string{
				"nf_conntrack_udp_timeout":        "soon\n",
				"nf_conntrack_udp_timeout_stream": "180\n",
			},
			want:    Timeouts{UDP: 30 * s, UDPStream: 180 * s, TCPTimeWait: 120 * s, TCPClose: 10 * s},
			wantErr: "sys/net/netfilter/nf_conntrack_udp_timeout is not a number of seconds",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root := t.TempDir()
			if len(tt.sysctls) > 0 {
				if err := os.MkdirAll(filepath.Join(root, "sys/net/netfilter"), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			for name, value := range tt.sysctls {
				if err := os.WriteFile(filepath.Join(root, "sys/net/netfilter", name), []byte(value), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			got, err := ReadTimeouts(root)
			if got != tt.want {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
			if tt.wantErr == "" && err != nil || err != nil && !strings.Contains(err.Error(), tt.wantErr) || err == nil && tt.wantErr != "" {
				t.Errorf("error %v, want %q", err, tt.wantErr)
			}
		})
	}
}

// A timeout of zero seconds makes entries that are never seen.
func TestZeroTimeout(t *testing.T) {
	clock := newClock()
	l := New(Config{Now: clock.Now, Timeouts: Timeouts{UDP: time.Nanosecond}})
	l.Query(benchFlow(1))
	if got := l.Entries().Total(); got != 0 {
		t.Errorf("%d entries, want 0", got)
	}
	if got := l.Flows().Total(); got != 1 {
		t.Errorf("%d flows, want 1", got)
	}
}
