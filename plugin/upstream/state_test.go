package upstream

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/trackless-dns/trackless/handover"
)

// written returns what the only upstream of this process gives to another one.
func written(t *testing.T, asked time.Time) (section handover.Section, piece []byte) {
	t.Helper()
	offers := Handed.Offers()
	if len(offers) != 1 {
		t.Fatalf("%d sections", len(offers))
	}
	if err := offers[0].Send(asked, func(p []byte) error { piece = slices.Clone(p); return nil }); err != nil {
		t.Fatal(err)
	}
	return offers[0].Section, piece
}

// received gives a piece to the only upstream of this process.
func received(t *testing.T, asked time.Time, section handover.Section, piece []byte) (taken int, err error) {
	t.Helper()
	wants := Handed.Wants()
	if len(wants) != 1 {
		t.Fatalf("%d sections", len(wants))
	}
	if wants[0].Section != section {
		return 0, errForeign
	}
	return wants[0].Receive(asked, piece)
}

var errForeign = errors.New("another section")

// givenWithDead has an upstream with the first address dead, and returns what it gives to another process.
func givenWithDead(t *testing.T, sources *fakes, dead, well *server) (handover.Section, []byte) {
	t.Helper()
	u := started(t, inOrder)
	sources.tell(t, kubeDNS, dead, well)
	answered(t, u, 1)
	eventually(t, "the failure is known", func() bool { return len(u.failing(time.Now())) == 1 })
	section, piece := written(t, time.Now())
	end(t, sources, u)
	return section, piece
}

// end stops the only upstream of this process, so that the next one has a source of its own.
func end(t *testing.T, sources *fakes, u *Upstream) {
	t.Helper()
	if err := u.stop(); err != nil {
		t.Fatal(err)
	}
	sources.mu.Lock()
	defer sources.mu.Unlock()
	delete(sources.found, kubeDNS)
}

// inOrder asks the first address first. A try takes long enough for tests to notice it.
const inOrder = "upstream endpoints kube-system/kube-dns {\n policy sequential\n read_timeout 1s\n}"

// TestSuccessorAsksDeadAddressesLast: it knows addresses before its own source does, and none
// of its queries goes to an address that is dead.
func TestSuccessorAsksDeadAddressesLast(t *testing.T) {
	sources := fakeSources(t)
	dead, well := newServer(t, "127.0.0.1"), newServer(t, "127.0.0.2")
	dead.be(func() { dead.silent = true })
	section, piece := givenWithDead(t, sources, dead, well)
	before := dead.got("udp")

	u := started(t, inOrder)
	if taken, err := received(t, time.Now(), section, piece); taken != 2 || err != nil {
		t.Fatalf("%d addresses, %v", taken, err)
	}
	answered(t, u, 5)
	if got := dead.got("udp") - before; got != 0 || well.got("udp") < 6 {
		t.Errorf("%d queries to the dead address", got)
	}
	// Its own source wins, and what fails is still known.
	sources.tell(t, kubeDNS, dead, well)
	answered(t, u, 5)
	if got := dead.got("udp") - before; got != 0 {
		t.Errorf("%d queries to the dead address", got)
	}
	// Its own health check finds out when that answers again.
	dead.be(func() { dead.silent = false })
	eventually(t, "the address is well again", func() bool { return len(u.failing(time.Now())) == 0 })
	answered(t, u, 1)
	if dead.got("udp") == before {
		t.Error("it is not asked again")
	}
}

// TestAgeOfAFailure: an address of which no health check is made is doubted for a second after
// its failure, in whichever process.
func TestAgeOfAFailure(t *testing.T) {
	for _, tc := range []struct {
		age   time.Duration
		doubt doubt
	}{{0, failed}, {1100 * time.Millisecond, none}, {-time.Hour, failed}} {
		sources := fakeSources(t)
		one := newServer(t, "127.0.0.1")
		u := started(t, "upstream endpoints kube-system/kube-dns {\n max_fails 0\n}")
		sources.tell(t, kubeDNS, one)
		piece, err := json.Marshal(handed{Failing: []failure{{one.addr, tc.age.Milliseconds()}}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := received(t, time.Now(), kubeDNS.section(), piece); err != nil {
			t.Fatal(err)
		}
		if got := u.targets.Load().first[0].doubt(u.maxFails); got != tc.doubt {
			t.Errorf("%v ago: doubt %d, want %d", tc.age, got, tc.doubt)
		}
		if err := u.stop(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestOwnAddressesWin: addresses of the instance before are not taken if there are others.
func TestOwnAddressesWin(t *testing.T) {
	sources := fakeSources(t)
	one, two := newServer(t, "127.0.0.1"), newServer(t, "127.0.0.2")
	first := started(t, "upstream endpoints kube-system/kube-dns")
	sources.tell(t, kubeDNS, one)
	section, piece := written(t, time.Now())
	end(t, sources, first)
	u := started(t, "upstream endpoints kube-system/kube-dns")
	sources.tell(t, kubeDNS, two)
	if taken, err := received(t, time.Now(), section, piece); taken != 0 || err != nil {
		t.Errorf("%d taken, %v", taken, err)
	}
	answered(t, u, 3)
	if one.got("udp") != 0 {
		t.Error("the old address is asked")
	}
}

// TestOtherUpstream: what is known of another name does not fit.
func TestOtherUpstream(t *testing.T) {
	fakeSources(t)
	started(t, "upstream service kube-system/kube-dns")
	if _, err := received(t, time.Now(), kubeDNS.section(), []byte("{}")); !errors.Is(err, errForeign) {
		t.Errorf("the endpoints fit the Service: %v", err)
	}
}

// TestHostileState: content that no instance writes is refused as a whole.
func TestHostileState(t *testing.T) {
	fakeSources(t)
	u := started(t, "upstream endpoints kube-system/kube-dns")
	many := `"127.0.0.1:53"` + strings.Repeat(`,"127.0.0.1:53"`, maxAddresses)
	for _, piece := range []string{
		"", "[]", "7", `{"addresses":7}`, `{"addresses":["127.0.0.1"]}`, `{"addresses":["127.0.0.1:0"]}`, `{"addresses":[""]}`,
		`{"addresses":["0.0.0.0:53"]}`, `{"addresses":["127.0.0.1:53","[::]:53"]}`, `{"addresses":[` + many + `]}`,
		`{"addresses":["127.0.0.1:53"],"failing":[{"address":"x"}]}`, `{"addresses":["127.0.0.1:53"],"failing":[{"age":1e99}]}`,
	} {
		if taken, err := received(t, time.Now(), kubeDNS.section(), []byte(piece)); !errors.Is(err, errState) || taken != 0 {
			t.Errorf("%.60s: %d taken, %v", piece, taken, err)
		}
	}
	// Failures of addresses that are not asked do nothing, however old they are.
	for _, age := range []string{"0", "-9223372036854775808", "9223372036854775807"} {
		piece := `{"addresses":[],"failing":[{"address":"192.0.2.1:53","age":` + age + `},{"address":"","age":` + age + `}]}`
		if taken, err := received(t, time.Now(), kubeDNS.section(), []byte(piece)); err != nil || taken != 0 {
			t.Errorf("%s: %d taken, %v", piece, taken, err)
		}
	}
	if len(u.targets.Load().all()) != 0 {
		t.Error("addresses were taken")
	}
}
