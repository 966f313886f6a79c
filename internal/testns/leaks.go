package testns

import (
	"fmt"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// Main runs the tests of a package and fails it if a goroutine is left, or a
// thread in another network namespace than the one the process began in.
func Main(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		// A thread that is done with its child takes a moment to end.
		for deadline := time.Now().Add(30 * time.Second); code == 0 && len(StrayThreads()) > 0; {
			if time.Now().After(deadline) {
				fmt.Fprintf(os.Stderr, "threads left in other network namespaces: %v\n", StrayThreads())
				code = 1
			}
			time.Sleep(5 * time.Millisecond)
		}
		os.Exit(code)
	}))
}

// StrayThreads lists the threads of this process that are in another network
// namespace than the process as a whole.
func StrayThreads() []string {
	home, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return nil
	}
	tasks, _ := os.ReadDir("/proc/self/task")
	var stray []string
	for _, task := range tasks {
		ns, err := os.Readlink("/proc/self/task/" + task.Name() + "/ns/net")
		if err == nil && ns != home {
			stray = append(stray, task.Name()+" in "+ns)
		}
	}
	return stray
}
