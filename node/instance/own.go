package instance

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/iptables/control"
)

// Own finds the instance that is meant: the one of the named socket, else
// the only one in our pid namespace.
func Own(ctx context.Context, socket string) (*control.Client, error) {
	if socket != "" {
		return control.NewClient(socket), nil
	}
	self := control.Self()
	var (
		mu     sync.Mutex
		wg     sync.WaitGroup
		own    []*control.Client
		errs   []error
		seen   = map[control.Process]bool{}
		others int
	)
	for _, name := range control.Sockets() {
		wg.Go(func() {
			client := control.NewClient(name)
			status, err := client.Status(ctx)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case errors.Is(err, unix.ECONNREFUSED):
				// Left by a process that was killed.
			case err != nil:
				errs = append(errs, err)
			case status.Process.PIDNamespace != self.PIDNamespace || status.Process.NetNamespace != self.NetNamespace:
				others++
			case !seen[status.Process]:
				seen[status.Process] = true
				own = append(own, client)
			}
		})
	}
	wg.Wait()
	switch {
	case len(own) == 1:
		return own[0], nil
	case len(own) > 1:
		names := make([]string, 0, len(own))
		for _, c := range own {
			names = append(names, c.Socket())
		}
		slices.Sort(names)
		return nil, fmt.Errorf("there are %d instances here: name the control socket of one with --socket (%s)", len(own), strings.Join(names, ", "))
	case len(errs) > 0:
		return nil, errors.Join(errs...)
	case others > 0:
		return nil, fmt.Errorf("no instance answers in this container; %d others do on this node", others)
	}
	return nil, fmt.Errorf("no instance answers: nobody listens at %s. Does it run, with another -control perhaps? Name its socket with --socket", control.DefaultPath)
}
