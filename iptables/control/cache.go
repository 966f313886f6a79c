package control

import (
	"context"
	"net/http"
	"net/url"
	"time"
)

// CacheHolder is an instance that shows and empties its caches. A [Controlled] may be
// a CacheHolder, too. Its methods are called from several goroutines.
type CacheHolder interface {
	// ShowCache returns the cached answers for a name, of one type, or of all types
	// if qtype is empty.
	ShowCache(name, qtype string) (CacheContent, error)
	// FlushCache removes answers and returns how many it removed.
	FlushCache(CacheScope) (CacheRemoved, error)
}

// CacheContent are answers, in the order of server blocks, names and types.
type CacheContent struct {
	Process Process        `json:"process"`
	Answers []CachedAnswer `json:"answers"`
	// More is the number of answers that are left out to bound the list.
	More int `json:"more"`
}

// CacheBlock names the server block that a cache belongs to.
type CacheBlock struct {
	// ServerBlock are the keys of the block, with spaces between them.
	ServerBlock string `json:"server_block"`
	// Bind are the addresses of its listeners; empty for all addresses.
	Bind []string `json:"bind"`
	// View is the name of its view, if it has one.
	View string `json:"view,omitempty"`
	// Zones are the zones of its cache.
	Zones []string `json:"zones"`
}

// CachedAnswer is an answer in a cache.
type CachedAnswer struct {
	CacheBlock
	// Name, Type and Class are those of the question.
	Name  string `json:"name"`
	Type  string `json:"type"`
	Class string `json:"class"`
	// Flags are the flags of the queries that it answers, such as do and cd.
	Flags []string `json:"flags"`
	// Kind is positive, nxdomain, nodata or failure; or retained, for a positive
	// answer that serve_stale_policy keeps beside a later one.
	Kind string `json:"kind"`
	// Rcode is the name of the response code.
	Rcode string `json:"rcode"`
	// Answer, Authority and Additional are the records of the sections in
	// presentation format, with the TTL that they would have now.
	Answer     []string `json:"answer"`
	Authority  []string `json:"authority"`
	Additional []string `json:"additional"`
	// Stored is the time at which it was stored, AgeSeconds the time since then.
	Stored     time.Time `json:"stored"`
	AgeSeconds int64     `json:"age_seconds"`
	// StoredTTLSeconds is its TTL when it was stored, TTLSeconds the TTL that is
	// left, and StaleSeconds the time since it expired.
	StoredTTLSeconds int64 `json:"stored_ttl_seconds"`
	TTLSeconds       int64 `json:"ttl_seconds"`
	StaleSeconds     int64 `json:"stale_seconds"`
	// Uses is the number of recent uses: in a row if prefetch counts them, else
	// since the eviction last passed its slot. UsesOrMore tells that there may be
	// more, because the counter is full.
	Uses       int  `json:"uses"`
	UsesOrMore bool `json:"uses_or_more"`
	// Source is the address of the upstream that answered; for a failure, of the
	// upstream that was asked last. Empty: it is not known.
	Source string `json:"source,omitempty"`
}

// CacheScope says which answers to flush.
type CacheScope struct {
	// Name or Zone, or neither for everything. Zone includes the names below it.
	Name, Zone string
}

// CacheRemoved is the result of a flush.
type CacheRemoved struct {
	Process Process        `json:"process"`
	Caches  []CacheFlushed `json:"caches"`
}

// CacheFlushed counts what was removed from one cache.
type CacheFlushed struct {
	CacheBlock
	// Positive, Denials and Failures are numbers of answers by kind.
	Positive int `json:"positive"`
	Denials  int `json:"denials"`
	Failures int `json:"failures"`
	// OtherNames is the number of these answers that were for other names and had
	// records of the flushed name.
	OtherNames int `json:"other_names"`
}

// Answers returns the number of removed answers.
func (f CacheFlushed) Answers() int { return f.Positive + f.Denials + f.Failures }

func caches(mux *http.ServeMux, c CacheHolder) {
	mux.HandleFunc("GET /v1/cache", func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		show(func() (CacheContent, error) {
			content, err := c.ShowCache(q.Get("name"), q.Get("type"))
			content.Process = Self()
			return content, err
		})(w, r)
	})
	mux.HandleFunc("POST /v1/cache/flush", func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		scope := CacheScope{Name: q.Get("name"), Zone: q.Get("zone")}
		// A scope that only a later version knows must not empty the cache.
		if scope == (CacheScope{}) && q.Get("all") != "true" {
			reply(w, http.StatusBadRequest, failure{Error: "flush the cache: the request names no scope: it needs name, zone or all=true"})
			return
		}
		show(func() (CacheRemoved, error) {
			removed, err := c.FlushCache(scope)
			removed.Process = Self()
			return removed, err
		})(w, r)
	})
}

// ShowCache asks for the cached answers for a name, of one type, or of all types if
// qtype is empty.
func (c *Client) ShowCache(ctx context.Context, name, qtype string) (CacheContent, error) {
	return askSigned[CacheContent](ctx, c, http.MethodGet, "cache?"+url.Values{"name": {name}, "type": {qtype}}.Encode())
}

// FlushCache asks the instance to remove answers.
func (c *Client) FlushCache(ctx context.Context, scope CacheScope) (CacheRemoved, error) {
	q := url.Values{"all": {"true"}}
	switch {
	case scope.Name != "":
		q = url.Values{"name": {scope.Name}}
	case scope.Zone != "":
		q = url.Values{"zone": {scope.Zone}}
	}
	return askSigned[CacheRemoved](ctx, c, http.MethodPost, "cache/flush?"+q.Encode())
}
