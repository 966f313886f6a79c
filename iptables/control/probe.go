package control

import (
	"context"
	"net/http"
	"net/url"
)

// Prober is an instance that answers probes. A [Controlled] may be a Prober, too. Its
// methods are called from several goroutines.
type Prober interface {
	// Ready returns nil if the listeners of the instance answer the name, and its
	// rules are in place or are absent on purpose. The detail says in one sentence
	// which of these holds.
	Ready(ctx context.Context, name string) (detail string, err error)
	// Live returns nil if the instance answers at all. It depends on nothing
	// outside of the instance.
	Live(ctx context.Context) error
}

// Health is the answer to a probe.
type Health struct {
	OK bool `json:"ok"`
	// Detail says what was found, or what is wrong.
	Detail  string  `json:"detail"`
	Process Process `json:"process"`
}

func probes(mux *http.ServeMux, p Prober) {
	answer := func(w http.ResponseWriter, detail string, err error) {
		h := Health{OK: err == nil, Detail: detail, Process: Self()}
		if err != nil {
			h.Detail = err.Error()
		}
		reply(w, http.StatusOK, h)
	}
	mux.HandleFunc("GET /v1/ready", func(w http.ResponseWriter, r *http.Request) {
		detail, err := p.Ready(r.Context(), r.URL.Query().Get("name"))
		answer(w, detail, err)
	})
	mux.HandleFunc("GET /v1/live", func(w http.ResponseWriter, r *http.Request) {
		answer(w, "it answers", p.Live(r.Context()))
	})
}

// Ready asks whether the instance answers the name and its rules are in place.
func (c *Client) Ready(ctx context.Context, name string) (Health, error) {
	return askSigned[Health](ctx, c, http.MethodGet, "ready?name="+url.QueryEscape(name))
}

// Live asks whether the instance answers at all.
func (c *Client) Live(ctx context.Context) (Health, error) {
	return askSigned[Health](ctx, c, http.MethodGet, "live")
}
