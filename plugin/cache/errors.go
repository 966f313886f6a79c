package cache

import (
	"errors"
	"fmt"
	"time"

	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/internal/loglimit"
)

// ownError is an error that concerns the query of one client and brings its reply: the client
// has too many queries under way, for instance. It says nothing about the upstream or the
// name.
type ownError interface {
	error
	Reply(r *dns.Msg) *dns.Msg
}

// isOwn reports whether an error is an ownError.
func isOwn(err error) bool {
	var own ownError
	return err != nil && errors.As(err, &own)
}

// answerOwn answers a client with the reply that the error brings.
func (q *query) answerOwn(code int, err error) (int, error) {
	var own ownError
	if err == nil || !errors.As(err, &own) {
		return code, err
	}
	_ = q.w.WriteMsg(own.Reply(q.r)) // as in CoreDNS, a failed write to a client is no error
	return dns.RcodeSuccess, nil
}

// maxErrors bounds the errors of queries that are reported in a second. While an upstream
// does not respond there is one for each name, and CoreDNS's plugin errors logs each.
const maxErrors = 4

// errorLimit bounds the reported errors. The zero value is ready.
type errorLimit struct{ budget loglimit.Budget }

// reported is shared by all caches: they write to one log.
var reported errorLimit

// pass returns the error if it may be reported, with the number of errors that were not,
// and nil otherwise.
func (l *errorLimit) pass(err error) error {
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
