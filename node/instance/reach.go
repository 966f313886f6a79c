package instance

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/trackless-dns/trackless/iptables/control"
)

// StatusTimeout bounds the wait for an instance to say how it is.
const StatusTimeout = 2 * time.Second

// Reached is an instance that answers on its control socket.
type Reached struct {
	ControlSocket
	// Answer is its status.
	Answer control.Status
}

// PID is the instance's process id as seen from here or, if it cannot be seen,
// in its container.
func (r Reached) PID() int {
	if pid := r.ControlSocket.PID(); pid != 0 {
		return pid
	}
	return r.Answer.Process.PID
}

// Silent is a socket on which somebody listens and does not answer.
type Silent struct {
	Socket string
	Err    error
}

// Reach asks all sockets at once how their instances are. Instances of other
// network namespaces have no rules here and are left out; so are sockets that a
// dead process left, unless one was named.
func Reach(ctx context.Context, node Node, name string, pids []int) (found []Reached, silent []Silent) {
	ctx, cancel := context.WithTimeout(ctx, StatusTimeout)
	defer cancel()
	var (
		wg sync.WaitGroup
		mu sync.Mutex
	)
	for _, s := range node.Sockets(name, pids) {
		wg.Go(func() {
			status, err := s.Status(ctx)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				found = append(found, Reached{s, status})
			case name != "" || errors.Is(err, context.DeadlineExceeded):
				silent = append(silent, Silent{s.Socket(), err})
			}
		})
	}
	wg.Wait()
	here := node.NetNamespace()
	found = slices.DeleteFunc(found, func(r Reached) bool {
		there := r.Answer.Process.NetNamespace
		return name == "" && here != 0 && there != 0 && here != there
	})
	// An instance may be found by several names: the shortest is its own.
	slices.SortFunc(found, func(a, b Reached) int {
		return cmp.Or(cmp.Compare(a.Answer.Process.Start, b.Answer.Process.Start), cmp.Compare(a.Answer.Process.PID, b.Answer.Process.PID),
			cmp.Compare(a.Answer.Process.PIDNamespace, b.Answer.Process.PIDNamespace),
			cmp.Compare(len(a.Socket()), len(b.Socket())), cmp.Compare(a.Socket(), b.Socket()))
	})
	found = slices.CompactFunc(found, func(a, b Reached) bool { return a.Answer.Process == b.Answer.Process })
	slices.SortFunc(silent, func(a, b Silent) int { return cmp.Compare(a.Socket, b.Socket) })
	return found, silent
}
