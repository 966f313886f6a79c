//go:build load

package differential

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

var mutate = flag.Bool("mutants", false, "check that mutants of the cache are caught; builds one test binary for each")

// mutant is a fault put into the cache: in the file, from becomes to.
type mutant struct {
	name     string
	file     string // below plugin/cache
	from, to string
}

var mutants = []mutant{
	{"a denial does not hide a positive answer", "engine/engine.go", "negative.Flags().Rcode() == rcodeServerFailure && positive != nil", "positive != nil"},
	{"a failure hides a positive answer", "engine/engine.go", "negative.Flags().Rcode() == rcodeServerFailure && positive != nil", "positive == nil && negative == nil"},
	{"stale one second too long", "engine/engine.go", "-left < e.stale", "-left <= e.stale"},
	{"fresh one second too long", "engine/engine.go", "left > 0 || -left < e.stale", "left >= 0 || -left < e.stale"},
	{"TTLs do not age", "engine/engine.go", "return uint32(max(f.Left, 0))", "return f.TTL"},
	{"keepttl is ignored", "engine/engine.go", "if e.opts.KeepTTL {\n\t\treturn f.TTL", "if false {\n\t\treturn f.TTL"},
	{"prefetch threshold is rounded down", "engine/engine.go", "int64(ttl) + 99) / 100", "int64(ttl)) / 100"},
	{"prefetch one use too late", "engine/engine.go", "f.Hits >= uint32(e.opts.Prefetch)", "f.Hits > uint32(e.opts.Prefetch)"},
	{"prefetch before the threshold", "engine/engine.go", "f.Left <= e.threshold(f.TTL)", "f.Left <= 2*e.threshold(f.TTL)"},
	{"a positive answer leaves the denial", "engine/engine.go", "e.store.Remove(key, store.Negative)", "_ = 0"},
	{"what answered is not retained", "engine/engine.go", "e.store.Retain(key)", "_ = 0"},
	{"a positive answer without answer is preferred", "engine/engine.go", "if positive != nil && positive.Answering() {", "if positive != nil {"},
	{"a second that has begun is not counted", "store/record.go", "return int64(r.ttl) - (int64(now)-r.stored)/int64(time.Second)", "return int64(r.ttl) - (int64(now)-r.stored+int64(time.Second)-1)/int64(time.Second)"},
	{"gaps do not end popularity", "store/record.go", "> gap {", "> 1000*gap {"},
	{"a refresh forgets popularity", "store/shard.go", "hits := e.Hits\n\tif e.Refresh && found[e.Of] != none {", "hits := uint32(0)\n\tif false {"},
	{"DO is not in the key", "handler.go", "bits |= wire.DO", "bits |= 0"},
	{"CD is not in the key", "handler.go", "bits |= wire.CD", "bits |= 0"},
	{"the class is not in the key", "wire/name.go", "byte(qclass>>8), byte(qclass), byte(bits)", "0, 0, byte(bits)"},
	{"names are not compared in lower case", "wire/name.go", "out = append(out, lower(c))", "out = append(out, c)"},
	{"AA is lost", "wire/pack.go", "flags |= flagAA", "flags |= 0"},
	{"RA is lost", "wire/pack.go", "flags |= flagRA", "flags |= 0"},
	{"AD is lost", "wire/pack.go", "flags |= flagAD", "flags |= 0"},
	{"CD is not repeated", "wire/message.go", "m.CheckingDisabled = r.CheckingDisabled", "m.CheckingDisabled = false"},
	{"an unrelated owner is taken for the question", "wire/pack.go", "if strings.EqualFold(p.qname[off:], owner) {", "if strings.EqualFold(p.qname[off:], owner) || len(owner) > 0 {"},
	{"AD for clients that did not ask", "handler.go", "if err == nil && !q.do && !q.ad {", "if false {"},
	{"UPDATE is answered from the cache", "handler.go", "r.Opcode != dns.OpcodeQuery || ", ""},
	{"timeouts are not cached", "responder.go", "w.cache.failttl > 0 && !overTCP", "w.cache.failttl < 0 && !overTCP"},
	{"a response to another question is stored", "responder.go", "storable = storable && mine && !forOne", "storable = storable && !forOne"},
	{"mismatches are not counted", "responder.go", "w.counters.Drops.Inc()", "_ = 0"},
	{"a failure replaces a stale answer", "responder.go", "if res.Rcode != dns.RcodeSuccess && res.Rcode != dns.RcodeNameError {", "if false {"},
	{"a mismatch replaces a stale answer", "responder.go", "if res.Truncated || !classify.AnswersTo(res, w.question) {", "if res.Truncated {"},
	{"the reply that is stored keeps its TTLs", "responder.go", "rr.Header().Ttl = ttl", "_ = ttl"},
	{"disable success disables denials", "responder.go", "if kind == store.Negative {\n\t\texcepted", "if kind != store.Negative {\n\t\texcepted"},
	{"an unresolved alias is stored", "classify/classify.go", "func leavesOpen(m *dns.Msg) bool { return len(m.Answer) > 0 && !Answers(m) }", "func leavesOpen(*dns.Msg) bool { return false }"},
	{"NXDOMAIN without SOA is stored", "classify/classify.go", "!m.Truncated && len(m.Question) > 0 && hasSOA(m)\n", "!m.Truncated && len(m.Question) > 0\n"},
	{"a forked alias is followed", "classify/classify.go", "return \"\", false\n\t\t}\n\t\ttarget = cname.Target", "continue\n\t\t}\n\t\ttarget = cname.Target"},
	{"a truncated answer is stored", "classify/classify.go", "return !m.Truncated && len(m.Question) > 0 && (hasSOA(m) || !leavesOpen(m))", "return len(m.Question) > 0 && (hasSOA(m) || !leavesOpen(m))"},
	{"the smallest TTL of denials is not kept", "responder.go", "min(max(c.allowed(m, t), c.minnttl), c.nttl)", "min(c.allowed(m, t), c.nttl)"},
	{"failures live as long as denials", "responder.go", "return failttl", "return c.nttl"},
	{"failed refreshes are retried at once", "refresh.go", "return c.staleRecheck == 0 || q.found.Retry", "return true"},
	{"stale answers have TTL 0 whatever is configured", "refresh.go", "if c.staleTTL > 0 {", "if false {"},
	{"verify waits without limit", "refresh.go", "timer := time.NewTimer(limit)", "timer := time.NewTimer(100 * limit)"},
	{"verify serves the stale answer", "refresh.go", "if served, code, err := c.verify(ctx, q); served {", "if served, code, err := c.verify(ctx, q); served && err != nil {"},
	{"refreshes of one answer run side by side", "flight/flight.go", "if s.byKey[string(key)] != nil {\n\t\treturn nil\n\t}\n\treturn s.open(key, c).begin(c)", "return s.open(key, c).begin(c)"},
	{"a response for one client is shared", "flight/flight.go", "fl.end(nil)", "fl.end(out)"},
	{"a lost query is waited for", "responses.go", "return min(max(usualTimes*usual, minPatience), maxPatience)", "return time.Hour"},
}

// cutMutants are faults of what a denial denies. TestCut must find them.
var cutMutants = []mutant{
	{"a denial of TXT denies addresses in a zone of CoreDNS", "cut/cut.go", "\t\tif !address {\n\t\t\treturn Question\n\t\t}\n\t\tif d.holds", "\t\tif d.holds"},
	{"a name with an underscore makes a cut", "cut/cut.go", "\tif hasUnderscore(d.Name) {\n\t\treturn false\n\t}\n", ""},
	{"dns makes a cut", "cut/cut.go", "\"dns\", \"dns-version\", \"pod\"", "\"dns-version\", \"pod\""},
	{"dns-version denies TXT", "cut/cut.go", "\"dns\", \"dns-version\", \"pod\"", "\"dns\", \"pod\""},
	{"names below pod make cuts", "cut/cut.go", "return label == \"svc\"", "return label == \"svc\" || label == \"pod\""},
	{"reverse zones are cut", "cut/cut.go", "!wire.InZone(d.Name, d.Zone) || isReverse(d.Name) {\n\t\treturn Question", "!wire.InZone(d.Name, d.Zone) {\n\t\treturn Question"},
	{"the root makes cuts", "cut/cut.go", "case wire.Labels(d.Zone) >= 2 && isChild(d.Name, d.Zone):", "case isChild(d.Name, d.Zone):\n\t\treturn Below"},
	{"an alias of a denied name is denied", "cut/cut.go", "m.Rcode != dns.RcodeNameError || len(m.Answer) > 0 ||", "m.Rcode != dns.RcodeNameError ||"},
	{"signatures are left out", "cut/cut.go", "if key.Bits()&wire.DO != 0 {", "if false {"},
	{"a level is for all zones", "cut/levels.go", "if len(z.zone) >= len(of) && wire.InZone(name, z.zone) {", "if false {"},
	{"TTLs of denials of others do not age", "engine/denied.go", "Left: left, Stored", "Left: int64(r.TTL()), Stored"},
	{"a denial of another question lives as long as its own", "engine/denied.go", "left := r.Left(l.now) - raised", "left := r.Left(l.now)"},
	{"a denial above is used when it is over", "engine/denied.go", "if left <= 0 {", "if left < -20 {"},
	{"names above are denied", "wire/denial.go", "!InZone(denied, zone) || !InZone(name, denied)", "!InZone(denied, zone)"},
	{"any denial denies all types", "engine/denied.go", "cut.Scope(r.Mark()>>scopeShift) < need", "need == cut.Below && cut.Scope(r.Mark()>>scopeShift) < need"},
	{"any denial denies the names below", "engine/denied.go", "cut.Scope(r.Mark()>>scopeShift) < need", "need != cut.Below && cut.Scope(r.Mark()>>scopeShift) < need"},
	{"NODATA denies the name", "wire/denial.go", "if a.Flags.Rcode() != rcodeName || a.Counts[0] > 0 {", "a.Flags |= rcodeName\n\tif a.Counts[0] > 0 {"},
	{"DO and CD are one", "engine/denied.go", "ok := l.among(append(wire.Key(buf[:0]), key...))", "ok := l.among(key.AppendWith(buf[:0], 0))"},
}

// TestMutants puts each fault into the cache and expects TestSameAsStock or TestCut to
// find it, or the cache's own tests where random steps hardly ever meet the case. It checks
// the tests, not the cache.
func TestMutants(t *testing.T) {
	if !*mutate {
		t.Skip("run with -mutants: builds a test binary for each mutant")
	}
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	const seed = 20
	episodes := max(*steps/250, 1)
	stock := playStock(t, seed, episodes)
	play := func(t *testing.T, test, overlay string) ([]byte, error) {
		binary := filepath.Join(t.TempDir(), "ours.test")
		build := exec.Command("go", "test", "-tags", "load", "-c", "-overlay", overlay, "-o", binary, ".")
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return exec.Command(binary, "-test.run", "^"+test+"$", "-stock", stock, fmt.Sprint("-seed=", seed), fmt.Sprint("-steps=", episodes*250)).CombinedOutput()
	}
	none := writeOverlay(t, nil)
	for test, faults := range map[string][]mutant{"TestSameAsStock": mutants, "TestCut": cutMutants} {
		if out, err := play(t, test, none); err != nil {
			t.Fatalf("without a fault %s must pass: %v\n%s", test, err, out)
		}
		for _, m := range faults {
			t.Run(m.name, func(t *testing.T) { catch(t, root, m, test, play) })
		}
	}
}

// catch puts a fault into the cache and expects the test to find it.
func catch(t *testing.T, root string, m mutant, test string, play func(t *testing.T, test, overlay string) ([]byte, error)) {
	file := filepath.Join(root, "plugin/cache", m.file)
	source, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(source), m.from); n != 1 {
		t.Fatalf("%s has %q %d times", m.file, m.from, n)
	}
	mutated := filepath.Join(t.TempDir(), "mutated.go")
	if err := os.WriteFile(mutated, []byte(strings.Replace(string(source), m.from, m.to, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	overlay := writeOverlay(t, map[string]string{file: mutated})
	out, err := play(t, test, overlay)
	if err == nil {
		own := exec.Command("go", "test", "-count", "1", "-overlay", overlay, "./plugin/cache/...")
		own.Dir = root
		if out, err = own.CombinedOutput(); err == nil {
			t.Error("not caught")
			return
		}
		test = "Test"
	}
	if !strings.Contains(string(out), "FAIL: "+test) && !strings.Contains(string(out), "panic:") {
		t.Errorf("the test did not run: %v\n%s", err, out)
	}
}

// writeOverlay writes what go build's -overlay reads.
func writeOverlay(t *testing.T, replace map[string]string) string {
	t.Helper()
	b, err := json.Marshal(struct{ Replace map[string]string }{replace})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "overlay.json")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
