package control

import (
	"context"
	"net/http"
	"net/url"
)

// Prober is an instance that can say whether it does its work. A [Controlled]
// that is one answers probes too. Its methods are called from several
// goroutines.
type Prober interface {
	// Ready returns nil if the name is answered by the instance's own
	// listeners and its rules are in force, or are knowingly not. The detail
	// says what was found in one sentence.
	Ready(ctx context.Context, name string) (detail string, err error)
	// Live returns nil if the instance answers at all. Nothing outside of it
	// matters.
	Live(ctx context.Context) error
}

// Health is the answer to a probe.
type Health struct {
	OK bool `json:"ok"`
	// Detail is what was found, or what is wrong.
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

// Ready asks whether the instance answers the name and its rules are in force.
func (c *Client) Ready(ctx context.Context, name string) (Health, error) {
	return askSigned[Health](ctx, c, http.MethodGet, "ready?name="+url.QueryEscape(name))
}

// Live asks whether the instance answers at all.
func (c *Client) Live(ctx context.Context) (Health, error) {
	return askSigned[Health](ctx, c, http.MethodGet, "live")
}
