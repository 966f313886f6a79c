package control

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// QueryCounter is an instance that counts queries while it is asked to. A [Controlled] may
// be a QueryCounter, too.
type QueryCounter interface {
	// CountQueries counts the queries of a time. It returns early when the context ends.
	CountQueries(context.Context, time.Duration) (QueryCounts, error)
}

// QueryCounts are queries of clients, counted by different things. Each list has the most
// frequent first. A last element without a key stands for all that are too many to list.
type QueryCounts struct {
	Process Process `json:"process"`
	// Seconds are how long queries were counted.
	Seconds    float64      `json:"seconds"`
	Total      QueryCount   `json:"total"`
	Clients    []QueryCount `json:"clients"`
	Names      []QueryCount `json:"names"`
	Zones      []QueryCount `json:"zones"`
	Types      []QueryCount `json:"types"`
	Rcodes     []QueryCount `json:"rcodes"`
	Transports []QueryCount `json:"transports"`
}

// QueryCount counts the queries with a key, and those of them for which the cache had no
// answer. Misses are not counted by type, rcode and transport. Kernel and Socket are the
// queries that a fast path answered before CoreDNS.
type QueryCount struct {
	Key     string `json:"key,omitempty"`
	Queries uint64 `json:"queries"`
	Misses  uint64 `json:"misses"`
	Kernel  uint64 `json:"kernel,omitempty"`
	Socket  uint64 `json:"socket,omitempty"`
}

// Early is the key of the queries that a fast path answered, in the lists of names, zones,
// types and rcodes: only their clients are known.
const Early = "(fast path)"

// Plus adds the counts. The key stays.
func (q QueryCount) Plus(other QueryCount) QueryCount {
	q.Queries += other.Queries
	q.Misses += other.Misses
	q.Kernel += other.Kernel
	q.Socket += other.Socket
	return q
}

func (q QueryCounts) signature() Process { return q.Process }

// longestCount bounds how long queries are counted for one request.
const longestCount = 10 * time.Minute

func queries(mux *http.ServeMux, c QueryCounter) {
	mux.HandleFunc("GET /v1/queries", func(w http.ResponseWriter, r *http.Request) {
		millis, err := strconv.ParseInt(r.URL.Query().Get("millis"), 10, 64)
		d := time.Duration(millis) * time.Millisecond
		if err != nil || millis < 1 || millis > longestCount.Milliseconds() {
			reply(w, http.StatusBadRequest, failure{Error: "count queries: millis is how long, up to 600000"})
			return
		}
		show(func() (QueryCounts, error) {
			counts, err := c.CountQueries(r.Context(), d)
			counts.Process = Self()
			return counts, err
		})(w, r)
	})
}

// CountQueries asks the instance to count the queries of a time.
func (c *Client) CountQueries(ctx context.Context, d time.Duration) (QueryCounts, error) {
	return askSigned[QueryCounts](ctx, c, http.MethodGet, "queries?"+url.Values{"millis": {strconv.FormatInt(d.Milliseconds(), 10)}}.Encode())
}
