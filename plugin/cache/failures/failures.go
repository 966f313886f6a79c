// Package failures tells apart failures of an upstream from those of a client's own query, and
// bounds how many of them are reported.
package failures

import (
	"errors"
	"fmt"
	"time"

	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/internal/loglimit"
)

// own is an error that concerns the query of one client and brings its reply: the client
// has too many queries under way, for instance. It says nothing about the upstream or the
// name.
type own interface {
	error
	Reply(r *dns.Msg) *dns.Msg
}

// IsOwn reports whether an error concerns the query of one client alone.
func IsOwn(err error) bool {
	var o own
	return err != nil && errors.As(err, &o)
}

// Reply returns the reply to the query if the error brings one, and nil otherwise.
func Reply(err error, r *dns.Msg) *dns.Msg {
	var o own
	if err == nil || !errors.As(err, &o) {
		return nil
	}
	return o.Reply(r)
}

// maxErrors bounds the errors of queries that are reported in a second. While an upstream
// does not respond there is one for each name, and CoreDNS's plugin errors logs each.
const maxErrors = 4

// Limit bounds the reported errors. The zero value is ready.
type Limit struct{ budget loglimit.Budget }

// Reported is shared by all caches: they write to one log.
var Reported Limit

// Pass returns the error if it may be reported, with the number of errors that were not,
// and nil otherwise.
func (l *Limit) Pass(err error) error {
	if err == nil {
		return nil
	}
	held, ok := l.budget.Take(time.Now(), maxErrors, time.Second)
	switch {
	case !ok:
		return nil
	case held > 0:
		return fmt.Errorf("%w (%d more queries failed before this one)", err, held)
	}
	return err
}
