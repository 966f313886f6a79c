//go:build load

package upstream

import (
	"testing"
)

func TestFailingOver(t *testing.T) {
	sources := fakeSources(t)
	one, two, other := newServer(t, "127.0.0.1"), newServer(t, "127.0.0.2"), newServer(t, "127.0.0.3")
	u := started(t, "upstream endpoints kube-system/kube-dns {\n fallback "+other.addr.String()+"\n read_timeout 100ms\n max_fails 1\n}")
	sources.tell(t, kubeDNS, one, two)
	one.be(func() { one.silent = true })
	answered(t, u, 20)
	eventually(t, "the silent one is left alone", func() bool {
		before := one.got("udp")
		answered(t, u, 20)
		return one.got("udp") == before
	})
	eventually(t, "the fallback is not asked, since an endpoint answers", func() bool {
		before := other.got("udp")
		answered(t, u, 20)
		return other.got("udp") == before
	})
	two.be(func() { two.silent = true })
	eventually(t, "the fallback is asked first", func() bool {
		before, endpoints := other.got("udp"), one.got("udp")+two.got("udp")
		answered(t, u, 10)
		return other.got("udp") == before+10 && one.got("udp")+two.got("udp") == endpoints
	})
	one.be(func() { one.silent = false })
	eventually(t, "the endpoint is back", func() bool {
		before := other.got("udp")
		answered(t, u, 10)
		return other.got("udp") == before
	})
}
