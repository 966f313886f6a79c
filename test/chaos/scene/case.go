package scene

import (
	"cmp"
	"context"
	"fmt"

	"github.com/trackless-dns/trackless/lab"
	"github.com/trackless-dns/trackless/lab/clients"
)

// A Case is one fault and how it is played.
type Case struct {
	// Name is stable; Fault and Bar are what the table says.
	Name, Fault, Bar string

	// Backend is what the Corefile says of it; "" leaves the choice to
	// trackless.
	Backend string

	// Faulty runs the server with the directive of package fault, and with so
	// many megabytes resident.
	Faulty      bool
	ResidentMiB int

	// LimitMiB, if not 0, is the memory limit of the container in which the server
	// runs.
	LimitMiB int

	// KernelHits has the kernel answer cached queries of pods.
	KernelHits bool

	// WriteTimeout, if not "", is that of the directive timeouts.
	WriteTimeout string

	// Kinds are the clients of the load, nil for all.
	Kinds []clients.StreamKind

	// FromPods leaves out the clients on the node itself.
	FromPods bool

	// LateStart begins the load before the server is started.
	LateStart bool

	// Lacking returns what this machine lacks for the case, "" if nothing.
	Lacking func() string

	// Prime does to a fresh node what leaves marks that are not trackless's
	// doing, such as empty tables, before the dump to compare with is taken.
	Prime func(*Scene) error

	// Prepare runs after that dump and before the server starts.
	Prepare func(*Scene) error

	// Warm runs when the server is attached and before the load begins.
	Warm func(*Scene) error

	// Play plays the case. It begins in a steady phase in which trackless
	// answers (kube-dns if LateStart).
	Play func(*Scene) error

	// Undo takes the fault's own doing off the node at the end.
	Undo func(*Scene) error

	Sabotage Sabotage
}

// A Sabotage takes away what a case is about.
type Sabotage struct {
	// What says what is taken away.
	What string

	// Fails is the promise that must be broken then.
	Fails FailureKind

	// Server replaces trackless, as it is served in the case, by something
	// less. It returns when that answers.
	Server func(*Scene) error

	// Instead, if not "", is who answers in the place of trackless then, at the
	// ClusterIPs. The other addresses are not asked.
	Instead lab.Responder

	// At is where Apply is called: "fault" (the default) directly before the
	// first transition, or where the case calls Scene.reach with another name.
	At    string
	Apply func(*Scene) error
}

// AnswerInKernel has the case played with hits in the kernel.
func (c *Case) AnswerInKernel() {
	if !c.KernelHits {
		c.KernelHits = true
		c.Fault += ", hits in the kernel"
	}
}

// Run plays the case once.
func (c *Case) Run(ctx context.Context, programs *Programs, sabotaged bool) *Result {
	result := &Result{Name: c.Name, Backend: cmp.Or(c.Backend, NFTables), Fault: c.Fault, Bar: c.Bar}
	if sabotaged {
		result.Sabotage = c.Sabotage.What
	}
	if c.Lacking != nil {
		if result.Skipped = c.Lacking(); result.Skipped != "" {
			return result
		}
	}
	s := &Scene{Case: c, Programs: programs, Sabotaged: sabotaged, Result: result}
	if err := s.run(ctx); err != nil {
		result.Fail(FailRun, "%v", err)
	}
	result.Passed = len(result.Failures) == 0
	return result
}

// RunSabotaged plays the case with its sabotage. It returns nil if the case
// failed as it must.
func (c *Case) RunSabotaged(ctx context.Context, programs *Programs) error {
	result := c.Run(ctx, programs, true)
	switch {
	case result.Skipped != "" || result.failedBy(c.Sabotage.Fails):
		return nil
	case result.Passed:
		return fmt.Errorf("without %s the case passes: it proves nothing", c.Sabotage.What)
	}
	return fmt.Errorf("without %s the case should fail by %q, but: %v", c.Sabotage.What, c.Sabotage.Fails, result.Failures)
}
