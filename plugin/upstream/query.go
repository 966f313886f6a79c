package upstream

import (
	"context"
	"errors"
	"net"
	"slices"
	"time"

	"github.com/coredns/coredns/plugin/pkg/proxy"
	"github.com/coredns/coredns/request"
	"github.com/miekg/dns"
)

// query asks addresses in an order, until one of them gives a final answer.
//
// The next try starts at once when a try fails, or is answered with a response code of
// `failover`. If an answer takes longer than usual, the next try runs beside the first,
// and the first answer wins. So a lost packet costs a fraction of a second, and a slow
// answer nothing.
type query struct {
	*Upstream
	state   request.Request
	tries   []*target // in order
	started int       // of tries
	running int
	results chan result
}

// result is the result of a try.
type result struct {
	*target
	answer *dns.Msg
	err    error
}

// Reasons to try again, as the metric names them.
const (
	afterError = "error"
	afterCode  = "rcode"
	afterWait  = "late"
)

const (
	// codeTries bounds the answers with a code of failover: a name that fails
	// everywhere must fail soon.
	codeTries = 3

	// maxExtra bounds the tries of an upstream that run beside others. If no address
	// answers, they would only double the load.
	maxExtra = 64
)

// run returns the answer, or the last error.
func (q *query) run(ctx context.Context) (by *target, answer *dns.Msg, err error) {
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	q.results = make(chan result, len(q.tries))
	wait := time.NewTimer(q.start(ctx, func() {}))
	defer wait.Stop()
	var coded result // an answer with a code of failover
	codes := 0
	err = errNoAnswer
	for q.running > 0 {
		select {
		case <-ctx.Done():
			return coded.target, coded.answer, err
		case <-wait.C:
			q.tries[q.started-1].late.now()
			wait.Reset(q.join(ctx))
			continue
		case r := <-q.results:
			q.running--
			by = r.target
			switch {
			case errors.Is(r.err, proxy.ErrInvalidRequest), errors.Is(r.err, proxy.ErrUnsupportedRequest):
				return by, nil, r.err
			case r.err != nil:
				err = r.err
			case !q.state.Match(r.answer):
				err = errNotAnswer
			case !slices.Contains(q.failover, r.answer.Rcode):
				return by, r.answer, nil
			default:
				coded = r
				codes++
			}
		}
		switch {
		case q.running > 0: // another try is under way
		case coded.answer == nil && q.started < len(q.tries):
			retries.WithLabelValues(q.name.String(), afterError).Inc()
			wait.Reset(q.start(ctx, func() {}))
		case coded.answer != nil && codes < codeTries && q.started < len(q.tries) && !q.wasAsked(q.tries[q.started]):
			retries.WithLabelValues(q.name.String(), afterCode).Inc()
			wait.Reset(q.start(ctx, func() {}))
		}
	}
	if coded.answer != nil {
		return coded.target, coded.answer, nil
	}
	return by, nil, err
}

func (q *query) wasAsked(t *target) bool { return slices.Contains(q.tries[:q.started], t) }

// start begins the next try and returns how long to wait before another one joins. It calls
// ended after the try.
func (q *query) start(ctx context.Context, ended func()) time.Duration {
	t := q.tries[q.started]
	q.started++
	q.running++
	// Every try needs a copy, since it writes its own id. It must not use the client's
	// writer, since it may outlive the query.
	state := request.Request{W: peer{remote: q.state.W.RemoteAddr()}, Req: q.state.Req.Copy()}
	results := q.results
	go func() {
		defer ended()
		began := time.Now()
		answer, err := q.ask(ctx, t, state)
		if err == nil {
			t.answered(time.Since(began))
		} else {
			t.failedToAnswer(err)
		}
		results <- result{t, answer, err}
	}()
	return t.patience()
}

// join begins the next try, if there is one, beside those that run. It returns how long to
// wait before another one joins.
func (q *query) join(ctx context.Context) time.Duration {
	if q.started == len(q.tries) {
		return queryTimeout
	}
	if n := q.extra.Add(1); n > maxExtra {
		q.extra.Add(-1)
		return maxPatience
	}
	retries.WithLabelValues(q.name.String(), afterWait).Inc()
	return q.start(ctx, func() { q.extra.Add(-1) })
}

// ask sends the query to one address.
func (u *Upstream) ask(ctx context.Context, t *target, state request.Request) (*dns.Msg, error) {
	options := u.options
	for {
		answer, _, _, err := t.Connect(ctx, state, options)
		switch {
		case errors.Is(err, proxy.ErrCachedClosed):
			continue // an idle connection that was closed; the next one is open
		case err == nil && answer.Truncated && options.PreferUDP && !options.ForceTCP:
			options.ForceTCP = true
			continue
		}
		return answer, err
	}
}

// peer has the client's address, which is all that a try needs.
type peer struct {
	dns.ResponseWriter
	remote net.Addr
}

func (p peer) RemoteAddr() net.Addr { return p.remote }
