package failures

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
)

var errTest = errors.New("the upstream does not respond")

func TestLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l Limit
		var got []string
		for range 20 {
			if err := l.Pass(errTest); err != nil {
				got = append(got, err.Error())
			}
			time.Sleep(100 * time.Millisecond)
		}
		want := []string{errTest.Error(), errTest.Error(), errTest.Error(), errTest.Error(),
			errTest.Error() + " (6 more queries failed before this one)", errTest.Error(), errTest.Error(), errTest.Error()}
		if !slices.Equal(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
		if err := l.Pass(nil); err != nil {
			t.Errorf("no error is %v", err)
		}
	})
}

// overShare is an error with a reply.
type overShare struct{ error }

func (overShare) Reply(r *dns.Msg) *dns.Msg { return new(dns.Msg).SetRcode(r, dns.RcodeServerFailure) }

func TestOwn(t *testing.T) {
	r := new(dns.Msg).SetQuestion("www.example.org.", dns.TypeA)
	for _, tc := range []struct {
		name string
		err  error
		own  bool
	}{
		{"none", nil, false},
		{"of the upstream", errTest, false},
		{"of the client", fmt.Errorf("plugin: %w", overShare{errTest}), true},
	} {
		m := Reply(tc.err, r)
		if IsOwn(tc.err) != tc.own || (m != nil) != tc.own || m != nil && m.Id != r.Id {
			t.Errorf("%s: own %v, reply %v", tc.name, IsOwn(tc.err), m)
		}
	}
}
