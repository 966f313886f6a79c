package cache

import "github.com/trackless-dns/trackless/plugin/cache/flight"

// flights has the answers that are being asked for, and the responses of the upstream.
type flights struct {
	flight.Table
	responses responses
}

// gone is the outcome of an attempt without a result: the client has gone, or a plugin
// panicked.
var gone = flight.Outcome{Failed: true, Partial: true}
