// Package testwait waits for what tests cannot be told of.
package testwait

import (
	"errors"
	"testing"
	"time"
)

// Polls begin at a short interval, which doubles up to a long one.
const (
	shortest = 5 * time.Millisecond
	longest  = 200 * time.Millisecond
)

// Until polls a condition until it holds. The test ends with the condition's last
// error if it does not hold within the time.
func Until(t testing.TB, within time.Duration, what string, holds func() error) {
	t.Helper()
	deadline := time.Now().Add(within)
	for interval := shortest; ; interval = min(2*interval, longest) {
		err := holds()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s: %v", what, within, err)
		}
		time.Sleep(interval)
	}
}

// True is Until for a condition that has no error to tell.
func True(t testing.TB, within time.Duration, what string, holds func() bool) {
	t.Helper()
	Until(t, within, what, func() error {
		if !holds() {
			return errNot
		}
		return nil
	})
}

var errNot = errors.New("it is not so")
