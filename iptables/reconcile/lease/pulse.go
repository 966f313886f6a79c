package lease

import "time"

const (
	// Pulse is the time between two readings of the clock while something is waited for
	// that this process itself has to do. They show whether it runs in time.
	Pulse = 25 * time.Millisecond

	// punctual is by how much a timer may be late without a meaning.
	punctual = 5 * time.Millisecond
)

// Late returns by how much a timer for one Pulse was late that fired after the given time.
func Late(took time.Duration) time.Duration { return max(0, took-Pulse-punctual) }
