package names

import (
	"sync"
	"time"

	"github.com/trackless-dns/trackless/internal/logger"
)

const (
	// saveEvery is the time between two writes of the file.
	saveEvery = time.Minute
	// stopTime is how long the end of the process waits for the last write: a disk may
	// hang.
	stopTime = time.Second
)

// Keeper writes the file from time to time. Log and Hottest must be set before the first
// call. Its methods may be called from several goroutines at once.
type Keeper struct {
	Log logger.Logger
	// Hottest returns the names in use, hottest first, at most so many.
	Hottest func(limit int) []Name

	mu   sync.Mutex
	path string
	stop chan struct{} // ends the writer; nil: there is none

	saving  sync.Mutex
	failing bool
}

// Follow has the file with this path written from now on; "": none.
func (k *Keeper) Follow(path string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if path == k.path {
		return
	}
	if k.stop != nil {
		close(k.stop)
		k.stop = nil
	}
	if k.path = path; path == "" {
		return
	}
	stop := make(chan struct{})
	k.stop = stop
	go func() {
		tick := time.NewTicker(saveEvery)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				k.save(path)
			case <-stop:
				return
			}
		}
	}()
}

// End writes the file for the last time, while the caches have their answers.
func (k *Keeper) End() {
	k.mu.Lock()
	path := k.path
	k.mu.Unlock()
	k.Follow("")
	if path == "" {
		return
	}
	saved := make(chan struct{})
	go func() {
		defer close(saved)
		k.save(path)
	}()
	timer := time.NewTimer(stopTime)
	defer timer.Stop()
	select {
	case <-saved:
	case <-timer.C:
	}
}

// save writes the file. A disk that is full or read-only has one line in the log.
func (k *Keeper) save(path string) {
	k.saving.Lock()
	defer k.saving.Unlock()
	err := save(path, k.Hottest(Most), time.Now())
	switch {
	case err != nil && !k.failing:
		k.Log.Warningf("the names that are asked most cannot be written: %v; this instance goes on as before, and one that starts without a predecessor asks for older names, or none", err)
	case err == nil && k.failing:
		k.Log.Infof("the names that are asked most are written to %s again", path)
	}
	k.failing = err != nil
}
