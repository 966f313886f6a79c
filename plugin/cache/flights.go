package cache

import "github.com/trackless-dns/trackless/plugin/cache/flight"

// flights are the answers that are being asked for, and what is known of the upstream
// by its responses.
type flights struct {
	flight.Table
	responses responses
}

// gone is the outcome of attempts that nobody can learn from: the client left, or
// a plugin panicked.
var gone = flight.Outcome{Failed: true, Partial: true}
