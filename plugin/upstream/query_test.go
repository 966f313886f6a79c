package upstream

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/pkg/dnstest"
	"github.com/coredns/coredns/plugin/test"
	"github.com/miekg/dns"
)

// A lost packet costs neither the timeout of a try nor the answer.
func TestLostPacket(t *testing.T) {
	sources := fakeSources(t)
	one := newServer(t, "127.0.0.1")
	u := started(t, "upstream endpoints kube-system/kube-dns {\n read_timeout 5s\n}")
	sources.tell(t, kubeDNS, one)
	answered(t, u, 3)
	one.be(func() { one.lose = 1 })
	began := time.Now()
	answered(t, u, 1)
	if took := time.Since(began); took >= 5*time.Second {
		t.Errorf("it took %s", took)
	}
	if n := one.got("udp"); n != 5 {
		t.Errorf("%d queries, want 5", n)
	}
}

// A slow answer counts although another try has begun.
func TestSlowAnswerCounts(t *testing.T) {
	sources := fakeSources(t)
	slow, hold := newServer(t, "127.0.0.1"), make(chan struct{})
	slow.be(func() { slow.hold = hold })
	u := started(t, "upstream endpoints kube-system/kube-dns {\n read_timeout 5s\n}")
	sources.tell(t, kubeDNS, slow)
	result := make(chan error, 1)
	go func() {
		_, err := ask(u)
		result <- err
	}()
	eventually(t, "it is asked", func() bool { return slow.got("udp") == 1 })
	slow.be(func() { slow.lose = 1 })
	eventually(t, "it is asked again, which is lost", func() bool { return slow.got("udp") == 2 })
	close(hold)
	if err := <-result; err != nil {
		t.Error(err)
	}
}

func TestCodesOfFailover(t *testing.T) {
	for _, tc := range []struct {
		name, options      string
		first, second      int
		want, asked, again int // queries to the first and to the second
	}{
		{"SERVFAIL is asked elsewhere", "", dns.RcodeServerFailure, dns.RcodeSuccess, dns.RcodeSuccess, 1, 1},
		{"REFUSED is asked elsewhere", "", dns.RcodeRefused, dns.RcodeSuccess, dns.RcodeSuccess, 1, 1},
		{"the last code is the answer", "", dns.RcodeRefused, dns.RcodeServerFailure, dns.RcodeServerFailure, 1, 1},
		{"NXDOMAIN is an answer", "", dns.RcodeNameError, dns.RcodeSuccess, dns.RcodeNameError, 1, 0},
		{"unless it is named", "failover NXDOMAIN", dns.RcodeNameError, dns.RcodeSuccess, dns.RcodeSuccess, 1, 1},
		{"those named are all", "failover NXDOMAIN", dns.RcodeServerFailure, dns.RcodeSuccess, dns.RcodeServerFailure, 1, 0},
		{"none", "failover none", dns.RcodeServerFailure, dns.RcodeSuccess, dns.RcodeServerFailure, 1, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			fakeSources(t)
			one, two := newServer(t, "127.0.0.1"), newServer(t, "127.0.0.2")
			one.be(func() { one.rcode = tc.first })
			two.be(func() { two.rcode = tc.second })
			u := started(t, "upstream service kube-system/kube-dns {\n fallback "+one.addr.String()+" "+two.addr.String()+"\n"+tc.options+"\n}")
			w := dnstest.NewRecorder(&test.ResponseWriter{})
			_, err := u.ServeDNS(context.Background(), w, new(dns.Msg).SetQuestion("svc.cluster.local.", dns.TypeA))
			if err != nil || w.Msg == nil || w.Msg.Rcode != tc.want || one.got("udp") != tc.asked || two.got("udp") != tc.again {
				t.Errorf("%v, error %v; asked %d and %d times", w.Msg, err, one.got("udp"), two.got("udp"))
			}
		})
	}
}

// A name that fails everywhere is asked at few addresses.
func TestCodesEnd(t *testing.T) {
	sources := fakeSources(t)
	var all []*server
	for _, ip := range []string{"127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.5"} {
		s := newServer(t, ip)
		s.be(func() { s.rcode = dns.RcodeServerFailure })
		all = append(all, s)
	}
	u := started(t, "upstream endpoints kube-system/kube-dns")
	sources.tell(t, kubeDNS, all...)
	w := dnstest.NewRecorder(&test.ResponseWriter{})
	if _, err := u.ServeDNS(context.Background(), w, new(dns.Msg).SetQuestion("svc.cluster.local.", dns.TypeA)); err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, s := range all {
		n += s.got("udp")
	}
	if n != codeTries {
		t.Errorf("asked %d times, want %d", n, codeTries)
	}
}

func TestPolicies(t *testing.T) {
	for _, tc := range []struct {
		policy string
		want   func(one, two int) bool
	}{
		{"random", func(one, two int) bool { return one > 20 && two > 20 }},
		{"round_robin", func(one, two int) bool { return one == 50 && two == 50 }},
		{"sequential", func(one, two int) bool { return one == 100 && two == 0 }},
	} {
		t.Run(tc.policy, func(t *testing.T) {
			u := newUpstream()
			u.policy = policy(tc.policy)
			one, two := u.open(netip.MustParseAddrPort("127.0.0.1:53")), u.open(netip.MustParseAddrPort("127.0.0.2:53"))
			defer one.close()
			defer two.close()
			u.targets.Store(&targets{first: []*target{one, two}})
			first := map[*target]int{}
			for range 100 {
				first[u.order()[0]]++
			}
			if !tc.want(first[one], first[two]) {
				t.Errorf("%d and %d of 100", first[one], first[two])
			}
		})
	}
}

func TestOrderByHealth(t *testing.T) {
	u := newUpstream()
	u.policy, u.maxFails = sequential, 0
	list := map[string]*target{}
	get := func(names ...string) (out []*target) {
		for i, name := range names {
			list[name] = u.open(netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, byte(len(name)), byte(i)}), 53))
			t.Cleanup(list[name].close)
			out = append(out, list[name])
		}
		return out
	}
	u.targets.Store(&targets{first: get("a", "b", "c"), last: get("x", "y")})
	order := func() string {
		var names []string
		for _, o := range u.order() {
			for name, t := range list {
				if t == o {
					names = append(names, name)
				}
			}
		}
		return strings.Join(names, " ")
	}
	for _, step := range []struct {
		what string
		do   func()
		want string
	}{
		{"all are well", func() {}, "a b c x y"},
		{"an answer is late", func() { list["a"].late.now() }, "b c a x y"},
		{"and came", func() { list["a"].answered(time.Millisecond) }, "a b c x y"},
		{"a try failed", func() { list["a"].failedToAnswer(errNoAnswer) }, "b c x y a"},
		{"one of the fallback too", func() { list["x"].failedToAnswer(errNoAnswer) }, "b c y a x"},
		{"one that was given up says nothing", func() { list["b"].failedToAnswer(context.Canceled) }, "b c y a x"},
		{"without health checks doubt ends by itself", func() {
			long := time.Now().Add(-2 * doubtFor)
			list["a"].failed.Store(&long)
			list["x"].failed.Store(&long)
		}, "a b c x y"},
	} {
		step.do()
		if got := order(); got != step.want {
			t.Errorf("%s: %s, want %s", step.what, got, step.want)
		}
	}
}

func TestRepeat(t *testing.T) {
	u := newUpstream()
	u.maxFails = 0
	var list []*target
	for i := range 4 {
		a := u.open(netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, byte(i)}), 53))
		t.Cleanup(a.close)
		list = append(list, a)
	}
	for _, tc := range []struct {
		name     string
		n        int
		failed   []int
		attempts int
		want     []int
	}{
		{"one", 1, nil, 0, []int{0, 0}},
		{"some", 4, nil, 0, []int{0, 1, 2, 3, 0, 1}},
		{"one of two has failed", 2, []int{1}, 0, []int{0, 0, 1}},
		{"some have failed", 4, []int{2, 3}, 0, []int{0, 1, 0, 1, 2, 3}},
		{"all have failed", 3, []int{0, 1, 2}, 0, []int{0, 1, 2, 0, 1}},
		{"fewer attempts", 4, nil, 2, []int{0, 1}},
		{"more attempts", 2, []int{1}, 5, []int{0, 1, 0, 1, 0}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for i, a := range list {
				if a.failed.clear(); slices.Contains(tc.failed, i) {
					a.failed.now()
				}
			}
			u.attempts = tc.attempts
			var got []int
			for _, a := range u.repeat(list[:tc.n]) {
				got = append(got, slices.Index(list, a))
			}
			if !slices.Equal(got, tc.want) {
				t.Errorf("%v, want %v", got, tc.want)
			}
		})
	}
}

func TestPatience(t *testing.T) {
	for _, tc := range []struct {
		name    string
		answers []time.Duration
		want    func(time.Duration) bool
	}{
		{"nothing is known", nil, func(d time.Duration) bool { return d == firstPatience }},
		{"fast answers", slices.Repeat([]time.Duration{time.Millisecond}, 20), func(d time.Duration) bool { return d == minPatience }},
		{"slow answers", slices.Repeat([]time.Duration{200 * time.Millisecond}, 40), func(d time.Duration) bool {
			return d >= 200*time.Millisecond && d < 300*time.Millisecond
		}},
		{"answers of all kinds", []time.Duration{time.Millisecond, time.Second, time.Millisecond, 2 * time.Second, time.Millisecond}, func(d time.Duration) bool { return d == maxPatience }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var a target
			for _, took := range tc.answers {
				a.answered(took)
			}
			if got := a.patience(); !tc.want(got) {
				t.Errorf("%s", got)
			}
		})
	}
}

// The server passes all classes and types to upstream, as to forward.
func TestClassesAndTypes(t *testing.T) {
	fakeSources(t)
	one := newServer(t, "127.0.0.1")
	u := started(t, "upstream service kube-system/kube-dns {\n fallback "+one.addr.String()+"\n}")
	config := &dnsserver.Config{Zone: ".", Transport: "dns", Port: "0", ListenHosts: []string{"127.0.0.1"}}
	config.AddPlugin(func(plugin.Handler) plugin.Handler { return u })
	s, err := dnsserver.NewServer("dns://127.0.0.1:0", []*dnsserver.Config{config})
	if err != nil {
		t.Fatal(err)
	}
	for _, q := range []dns.Question{
		{Name: "version.bind.", Qtype: dns.TypeTXT, Qclass: dns.ClassCHAOS},
		{Name: "svc.cluster.local.", Qtype: dns.TypeANY, Qclass: dns.ClassINET},
		{Name: "svc.cluster.local.", Qtype: dns.TypeA, Qclass: dns.ClassANY},
	} {
		w := dnstest.NewRecorder(&test.ResponseWriter{})
		m := &dns.Msg{MsgHdr: dns.MsgHdr{Id: dns.Id()}, Question: []dns.Question{q}}
		s.ServeDNS(context.Background(), w, m)
		if w.Msg == nil || w.Msg.Rcode != dns.RcodeSuccess || len(w.Msg.Answer) != 1 {
			t.Errorf("%s: %v", q.String(), w.Msg)
		}
	}
}
