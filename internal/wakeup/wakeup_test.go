package wakeup

import (
	"errors"
	"os"
	"testing"
	"time"
)

func TestTimer(t *testing.T) {
	for name, open := range map[string]func() Timer{"kernel": New, "runtime": NewRuntime} {
		t.Run(name, func(t *testing.T) {
			timer := open()
			if _, kernel := timer.(*kernelTimer); kernel != (name == "kernel") {
				t.Fatalf("a %T", timer)
			}
			began := time.Now()
			timer.Reset(time.Hour)
			timer.Reset(20 * time.Millisecond) // in place of the hour
			if err := timer.Wait(); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(began); took < 20*time.Millisecond {
				t.Errorf("woke after %s", took)
			}

			timer.Reset(-time.Second) // it has passed
			if err := timer.Wait(); err != nil {
				t.Fatal(err)
			}

			// One that was stopped does not wake.
			timer.Reset(time.Millisecond)
			time.Sleep(5 * time.Millisecond)
			timer.Stop()
			woken := make(chan error, 1)
			go func() { woken <- timer.Wait() }()
			select {
			case err := <-woken:
				t.Fatalf("a stopped timer woke: %v", err)
			case <-time.After(50 * time.Millisecond):
			}
			if err := timer.Close(); err != nil {
				t.Fatal(err)
			}
			if err := <-woken; !errors.Is(err, os.ErrClosed) {
				t.Errorf("after Close: %v", err)
			}
			timer.Reset(time.Millisecond)
			if err := timer.Wait(); !errors.Is(err, os.ErrClosed) {
				t.Errorf("a wait after Close: %v", err)
			}
			_ = timer.Close()
		})
	}
}
