package cache

import "github.com/trackless-dns/trackless/plugin/cache/flight"

// flights are the answers that are being asked for, and the health of the upstream as
// its responses show it.
type flights struct {
	flight.Table
	responses responses
}

// gone is the outcome of attempts that say nothing about the answer: the client left, or
// a plugin panicked.
var gone = flight.Outcome{Failed: true, Partial: true}
