//go:build privileged

package legacy

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/iptables"
)

// ownLock makes a lock file for the programs and for us.
func ownLock(t *testing.T) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "xtables.lock")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("XTABLES_LOCKFILE", path)
	return path
}

var programs = map[iptables.Family]string{iptables.IPv4: "iptables-legacy", iptables.IPv6: "ip6tables-legacy"}

// save returns a table as the program shows it, with the counters.
func save(t *testing.T, f iptables.Family, table string) string {
	t.Helper()
	var b strings.Builder
	for line := range strings.Lines(testns.Run(t, programs[f]+"-save", "-c", "-t", table)) {
		if !strings.HasPrefix(line, "#") {
			b.WriteString(line)
		}
	}
	return b.String()
}

// isDoomed picks the rules that these tests delete.
func isDoomed(_ string, r Rule) bool { return r.Comment() == "doomed" }

// withoutDoomed returns the lines of the rules that stay.
func withoutDoomed(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		if !strings.Contains(line, "--comment doomed") {
			b.WriteString(line)
		}
	}
	return b.String()
}

// deletes calls Delete for the doomed rules and compares all others, byte for byte.
func deletes(t *testing.T, f iptables.Family, table string) {
	t.Helper()
	before := save(t, f, table)
	want := withoutDoomed(before)
	n, err := Delete(Config{}, f, table, isDoomed)
	if doomed := strings.Count(before, "--comment doomed"); err != nil || n != doomed {
		t.Errorf("%d rules are deleted, %v; want %d", n, err, doomed)
	}
	if got := save(t, f, table); got != want {
		t.Errorf("before:\n%s\nafter:\n%s", before, got)
	}
}

// foreignRules are rules of many kinds. ADDR and NET stand for an address and a prefix
// of the family.
const foreignRules = `*raw
:PREROUTING ACCEPT [17:4711]
:OUTPUT DROP [3:99]
:LONG-NAME-OF-TWENTY-EIGHT-CH - [0:0]
:doomed-first - [0:0]
:doomed-last - [0:0]
:doomed-all - [0:0]
:empty - [0:0]
[1:10] -A PREROUTING -m comment --comment doomed -j CT --notrack
[2:20] -A PREROUTING -s NET -p udp -m udp --dport 53 -m comment --comment "stays, \"quoted\"" -j LONG-NAME-OF-TWENTY-EIGHT-CH
[3:30] -A PREROUTING -i veth+ -g doomed-first
[4:40] -A PREROUTING ! -i lo
[5:50] -A PREROUTING -m comment --comment doomed
[6:60] -A PREROUTING -p tcp -m multiport --dports 1,2,3:9 -j doomed-last
[7:70] -A PREROUTING -p tcp -m tcp --tcp-flags SYN,ACK SYN -j empty
[8:80] -A PREROUTING -m mark --mark 0x4000/0x4000 -j RETURN
[9:90] -A PREROUTING -m recent --set --name HERS --rsource -j DROP
[10:100] -A PREROUTING -m set --match-set hers src -j SET --add-set hers dst
[11:110] -A PREROUTING -m limit --limit 5/sec -j doomed-all
[12:120] -A PREROUTING -m conntrack --ctstate INVALID -j DROP
[13:130] -A PREROUTING -m comment --comment doomed -j doomed-all
[14:140] -A OUTPUT -m comment --comment doomed -j ACCEPT
[18446744073709551:999999999999999] -A OUTPUT -d ADDR -j CT --zone 7
[16:160] -A LONG-NAME-OF-TWENTY-EIGHT-CH -m comment --comment doomed -g empty
[17:170] -A LONG-NAME-OF-TWENTY-EIGHT-CH -j doomed-first
[18:180] -A doomed-first -m comment --comment doomed -j DROP
[19:190] -A doomed-first -m comment --comment doomed -j DROP
[20:200] -A doomed-first -j TRACE
[21:210] -A doomed-last -j ACCEPT
[22:220] -A doomed-last -m comment --comment doomed -j DROP
[23:230] -A doomed-all -m comment --comment doomed -j DROP
COMMIT
`

// makeSet makes a set of ip_set for addresses, as the program ipset does
// (include/uapi/linux/netfilter/ipset/ip_set.h).
func makeSet(t *testing.T, name string, family byte) {
	t.Helper()
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	data, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: 1, Data: []byte{6}},                    // IPSET_ATTR_PROTOCOL
		{Type: 2, Data: append([]byte(name), 0)},      // IPSET_ATTR_SETNAME
		{Type: 3, Data: append([]byte("hash:ip"), 0)}, // IPSET_ATTR_TYPENAME
		{Type: 4, Data: []byte{0}},                    // IPSET_ATTR_REVISION
		{Type: 5, Data: []byte{family}},               // IPSET_ATTR_FAMILY
		{Type: netlink.Nested | 7},                    // IPSET_ATTR_DATA
	})
	if err != nil {
		t.Fatal(err)
	}
	_, err = conn.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.NFNL_SUBSYS_IPSET<<8 | 2, Flags: netlink.Request | netlink.Acknowledge | netlink.Create}, // IPSET_CMD_CREATE
		Data:   append([]byte{unix.AF_INET, unix.NFNETLINK_V0, 0, 0}, data...),
	})
	if err != nil {
		t.Fatalf("make the set %s: %v", name, err)
	}
}

func TestDelete(t *testing.T) {
	for f, program := range programs {
		t.Run(f.String(), func(t *testing.T) {
			testns.Enter(t)
			testns.Program(t, program)
			ownLock(t)
			family, words := byte(unix.NFPROTO_IPV4), strings.NewReplacer("NET", "10.0.0.0/8", "ADDR", "10.96.0.10/32")
			if f == iptables.IPv6 {
				family, words = unix.NFPROTO_IPV6, strings.NewReplacer("NET", "fd00::/8", "ADDR", "fd00::a/128")
			}
			makeSet(t, "hers", family)
			cmd := exec.Command(program+"-restore", "-c")
			cmd.Stdin = strings.NewReader(words.Replace(foreignRules))
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			deletes(t, f, "raw")
			// The programs can read and change the table that we wrote.
			testns.Run(t, program, "-w", "-t", "raw", "-I", "doomed-all", "-m", "comment", "--comment", "doomed")
			deletes(t, f, "raw")
			if n, err := Delete(Config{}, f, "raw", isDoomed); n != 0 || err != nil {
				t.Errorf("a second time %d rules are deleted, %v", n, err)
			}
		})
	}
}

// Tables of all kinds lose only the doomed rules.
func TestDeleteFromAnyTable(t *testing.T) {
	testns.Enter(t)
	testns.Program(t, "iptables-legacy")
	ownLock(t)
	for seed := range uint64(25) {
		r := rand.New(rand.NewPCG(seed, 4))
		var chains []string
		var b strings.Builder
		fmt.Fprintf(&b, "*filter\n:INPUT %s [%d:%d]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [1:1]\n",
			[]string{"ACCEPT", "DROP"}[r.IntN(2)], r.IntN(1000), r.IntN(1000000))
		for i := range r.IntN(6) {
			chains = append(chains, fmt.Sprintf("chain-%d", i))
			fmt.Fprintf(&b, ":chain-%d - [0:0]\n", i)
		}
		for i, chain := range append([]string{"INPUT", "OUTPUT", "FORWARD"}, chains...) {
			for range r.IntN(9) {
				fmt.Fprintf(&b, "[%d:%d] -A %s", r.IntN(1000), r.IntN(1000000), chain)
				if r.IntN(2) == 0 {
					fmt.Fprintf(&b, " -s 10.%d.0.0/16", r.IntN(256))
				}
				if r.IntN(2) == 0 {
					b.WriteString(" -p tcp -m tcp --dport 53")
				}
				if r.IntN(2) == 0 {
					b.WriteString(" -m comment --comment doomed")
				}
				// Only to later chains: the kernel refuses a loop.
				switch later := chains[max(0, i-2):]; {
				case r.IntN(2) == 0 && len(later) > 0:
					fmt.Fprintf(&b, " -%s %s", []string{"j", "g"}[r.IntN(2)], later[r.IntN(len(later))])
				case r.IntN(3) > 0:
					b.WriteString(" -j " + []string{"ACCEPT", "DROP", "RETURN", "REJECT"}[r.IntN(4)])
				}
				b.WriteString("\n")
			}
		}
		b.WriteString("COMMIT\n")
		cmd := exec.Command("iptables-legacy-restore", "-c")
		cmd.Stdin = strings.NewReader(b.String())
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("seed %d: %v\n%s\n%s", seed, err, out, b.String())
		}
		if deletes(t, iptables.IPv4, "filter"); t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

func TestDeleteNeedsTheLock(t *testing.T) {
	testns.Enter(t)
	testns.Program(t, "iptables-legacy")
	lock := ownLock(t)
	restore(t, "iptables-legacy-restore", "*raw\n-A OUTPUT -m comment --comment doomed\n-A OUTPUT -j ACCEPT\nCOMMIT\n")
	before := save(t, iptables.IPv4, "raw")
	held, err := os.Open(lock)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(held.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if n, err := Delete(Config{}, iptables.IPv4, "raw", isDoomed); n != 0 || !errors.Is(err, iptables.ErrBusy) {
		t.Errorf("held by another: %d rules are deleted, %v", n, err)
	}
	if err := held.Close(); err != nil {
		t.Fatal(err)
	}
	t.Setenv("XTABLES_LOCKFILE", filepath.Join(t.TempDir(), "none"))
	if err := CanLock(); !errors.Is(err, ErrNoLock) {
		t.Errorf("without a file: %v", err)
	}
	if n, err := Delete(Config{}, iptables.IPv4, "raw", isDoomed); n != 0 || !errors.Is(err, ErrNoLock) {
		t.Errorf("without a file: %d rules are deleted, %v", n, err)
	}
	if n, err := Delete(Config{}, iptables.IPv4, "raw", func(string, Rule) bool { return false }); n != 0 || err != nil {
		t.Errorf("nothing is to be deleted, and that needs the lock: %v", err)
	}
	if got := save(t, iptables.IPv4, "raw"); got != before {
		t.Errorf("something has changed:\n%s", got)
	}
	t.Setenv("XTABLES_LOCKFILE", lock)
	if err := CanLock(); err != nil {
		t.Error(err)
	}
	deletes(t, iptables.IPv4, "raw")
}

// Other programs that change the table at the same time lose no change.
func TestDeleteBesideOthers(t *testing.T) {
	testns.Enter(t)
	testns.Program(t, "iptables-legacy")
	ownLock(t)
	restore(t, "iptables-legacy-restore", "*raw\nCOMMIT\n")
	const rules = 40
	for i := range rules {
		// Each replaces the rule of the one before. The number of rules stays, and
		// the kernel checks only that.
		change := fmt.Sprintf("*raw\n-I PREROUTING -m comment --comment doomed\n-A OUTPUT -s 10.0.0.%d/32\n", i)
		if i > 0 {
			change += fmt.Sprintf("-D OUTPUT -s 10.0.0.%d/32\n", i-1)
		}
		cmd := exec.Command("iptables-legacy-restore", "--noflush", "-w", "30")
		cmd.Stdin = strings.NewReader(change + "COMMIT\n")
		var said strings.Builder
		cmd.Stdout, cmd.Stderr = &said, &said
		// Started on this thread: only it is in the namespace of the test.
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		for running := true; running; {
			select {
			case err := <-ended:
				if running = false; err != nil {
					t.Fatalf("%v\n%s", err, said.String())
				}
			default:
			}
			if _, err := Delete(Config{}, iptables.IPv4, "raw", isDoomed); err != nil && !errors.Is(err, iptables.ErrBusy) {
				t.Fatal(err)
			}
		}
	}
	deletes(t, iptables.IPv4, "raw")
	want := fmt.Sprintf("-A OUTPUT -s 10.0.0.%d/32\n", rules-1)
	if got := save(t, iptables.IPv4, "raw"); strings.Count(got, "-A ") != 1 || !strings.Contains(got, want) {
		t.Errorf("want only %s, have\n%s", want, got)
	}
}
