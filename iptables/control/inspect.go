package control

import (
	"context"
	"net/http"

	"github.com/trackless-dns/trackless/iptables"
)

// Inspected is an instance that shows its measurements and its configuration. Its
// methods are called from several goroutines.
type Inspected interface {
	// Figures returns how many entries the instance has avoided.
	Figures() (Figures, error)
	// Corefile returns the Corefile in use. The file may have changed since.
	Corefile() (Corefile, error)
	// Log returns the end of the log: whole lines that begin with their time.
	Log() []byte
}

// Instance is what a control socket serves.
type Instance interface {
	Controlled
	Inspected
}

// Figures are the savings of an instance: the numbers of the metrics
// coredns_notrack_*.
type Figures struct {
	// Classes has an element for each transport protocol and address family.
	Classes []ClassFigures `json:"classes"`
	// EntriesAvoidedError is the error bound of the sum of EntriesAvoided, in
	// entries, with a probability of 99.7 %; 0 if the sum is exact.
	EntriesAvoidedError float64 `json:"entries_avoided_error"`
	// Packets are the untracked packets; nil if the backend could not be read.
	Packets []PacketFigures `json:"packets,omitempty"`
	// Search are the queries of search paths.
	Search SearchFigures `json:"search"`
}

// SearchFigures count since the instance started.
type SearchFigures struct {
	// Queries were asked of the cache. Search are those of them for an external name below a domain of
	// a search path, and Cut those that the denial of another question answered.
	Queries uint64 `json:"queries_total"`
	Search  uint64 `json:"search_total"`
	Cut     uint64 `json:"cut_total"`
	// OnePass are queries that clients did not send, since one reply was for the whole search path.
	OnePass uint64 `json:"one_pass_total"`
}

// ClassFigures are the savings of a protocol and family.
type ClassFigures struct {
	Protocol string `json:"protocol"`
	Family   string `json:"family"`
	// EntriesAvoided are entries that would be in the table now. FlowsAvoided are
	// entries that would have been made since the instance started.
	EntriesAvoided uint64 `json:"entries_avoided"`
	FlowsAvoided   uint64 `json:"flows_avoided_total"`
}

// PacketFigures count the packets of a rule since it was installed.
type PacketFigures struct {
	Direction string `json:"direction"`
	Family    string `json:"family"`
	Protocol  string `json:"protocol"`
	Packets   uint64 `json:"packets"`
}

// PacketsOf lists a backend's counters.
func PacketsOf(c iptables.Counters) []PacketFigures {
	list := make([]PacketFigures, 0, len(c))
	for _, k := range iptables.CounterKeys() {
		list = append(list, PacketFigures{k.Direction.String(), k.Family.String(), k.Proto.String(), c[k]})
	}
	return list
}

// Corefile is the configuration in use.
type Corefile struct {
	// Path is the file that it was read from.
	Path string `json:"path"`
	// Contents are the contents of the file: imports, snippets and environment
	// variables are not expanded.
	Contents string `json:"contents"`
}

// Figures asks for the savings.
func (c *Client) Figures(ctx context.Context) (Figures, error) {
	return ask[Figures](ctx, c, http.MethodGet, "figures")
}

// Corefile asks for the configuration in use.
func (c *Client) Corefile(ctx context.Context) (Corefile, error) {
	return ask[Corefile](ctx, c, http.MethodGet, "corefile")
}

// logText is the body of an answer with a log.
type logText struct {
	Text string `json:"text"`
}

// Log asks for the end of the log: whole lines that begin with their time.
func (c *Client) Log(ctx context.Context) ([]byte, error) {
	l, err := ask[logText](ctx, c, http.MethodGet, "log")
	return []byte(l.Text), err
}
