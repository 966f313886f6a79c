package tracetest

import (
	"fmt"
	"maps"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/trackless-dns/trackless/iptables"
)

// Backend is a backend to which packets can be sent: a simulator, or the kernel.
type Backend interface {
	iptables.Backend
	// Send returns the verdict on one packet.
	Send(t *testing.T, h iptables.Hook, p Packet) string
	// Watch reads the sets that packets fill. The function that it returns lists the
	// changes since, sorted, one for each element: a plus and the name of the set for
	// an element that was added or renewed, a minus and the name for an element that
	// was deleted. It may read the sets again while there are fewer than wanted.
	Watch(t *testing.T) func(wanted int) []string
}

// ReadPacket parses the words of a step that is a packet.
func ReadPacket(f iptables.Family, words []string) (iptables.Hook, Packet) {
	hook := map[string]iptables.Hook{"prerouting": iptables.Prerouting, "output": iptables.Output}[words[0]]
	proto, flags, _ := strings.Cut(words[2], "[")
	return hook, Packet{
		Proto:  map[string]iptables.Proto{"udp": iptables.UDP, "tcp": iptables.TCP}[proto],
		SYN:    strings.Contains(flags, "S"),
		ACK:    strings.Contains(flags, "A"),
		FIN:    strings.Contains(flags, "F"),
		RST:    strings.Contains(flags, "R"),
		Device: words[1],
		Src:    AddrPort(f, words[3]),
		Dst:    AddrPort(f, words[5]),
	}
}

// Row runs one row and returns the result of each step, in order. The result of a step
// that is no packet is empty.
func Row(t *testing.T, f iptables.Family, tc Case, b Backend, afterInstall func()) []string {
	t.Helper()
	rules := Rules(f)
	if tc.Rules != nil {
		tc.Rules(&rules)
	}
	out := make([]string, 0, len(tc.Steps))
	connection := func(words []string) []iptables.Connection {
		if len(words) < 4 {
			return nil
		}
		return []iptables.Connection{{Client: AddrPort(f, words[1]), Listen: AddrPort(f, words[3])}}
	}
	for _, step := range tc.Steps {
		words, got := strings.Fields(step.Do), ""
		var err error
		switch words[0] {
		case "install":
			err = b.Install(rules)
			if afterInstall != nil {
				afterInstall()
			}
		case "attach":
			err = b.Attach()
		case "detach":
			err = b.Detach(connection(words))
		case "remove":
			err = b.Remove()
		case "quarantine":
			var can iptables.Capabilities
			if can, err = b.Capabilities(); err != nil || can.Devices == nil {
				t.Fatalf("%s: the backend has no capability for devices: %v", step.Do, err)
			}
			err = can.Devices.Quarantine(words[1], Long)
		case "end":
			err = b.EndLease([]netip.Addr{Addr(f, words[1])})
		case "exempt":
			err = b.Exempt(connection(words))
		case "expire":
			Await(t, "no address is live", func() bool {
				live, liveErr := b.Live()
				return liveErr == nil && len(live) == 0
			})
		default:
			hook, packet := ReadPacket(f, words)
			got = observe(t, f, b, hook, packet, step.Want)
		}
		if err != nil {
			t.Fatalf("%s: %v", step.Do, err)
		}
		out = append(out, got)
	}
	return out
}

// observe sends a packet and describes its effects.
func observe(t *testing.T, f iptables.Family, b Backend, h iptables.Hook, p Packet, want string) string {
	t.Helper()
	changes := b.Watch(t)
	countersBefore, err := b.Counters()
	if err != nil {
		t.Fatal(err)
	}
	countersBefore = maps.Clone(countersBefore)
	verdict := b.Send(t, h, p)
	countersAfter, err := b.Counters()
	if err != nil {
		t.Fatal(err)
	}
	out := []string{verdict}
	for _, k := range iptables.CounterKeys() {
		switch n := countersAfter[k] - countersBefore[k]; {
		case n == 0:
		case n == 1 && k.Family == f && k.Proto == p.Proto:
			out = append(out, k.Direction.String())
		default:
			out = append(out, fmt.Sprintf("%d times %s-%s-%s", n, k.Direction, k.Family, k.Proto))
		}
	}
	wanted := strings.Count(want, " +") + strings.Count(want, " -")
	return strings.Join(append(out, changes(wanted)...), " ")
}

// Await polls until something holds.
func Await(t *testing.T, what string, holds func() bool) {
	t.Helper()
	deadline := time.Now().Add(5 * time.Second)
	for !holds() {
		if time.Now().After(deadline) {
			t.Fatalf("not within 5s: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

// Differing returns the steps whose result is not the wanted one.
func Differing(tc Case, got []string) []string {
	var out []string
	for i, step := range tc.Steps {
		if got[i] != step.Want {
			out = append(out, fmt.Sprintf("step %d, %s: %s, want %s", i+1, step.Do, got[i], step.Want))
		}
	}
	return out
}
