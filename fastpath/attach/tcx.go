package attach

import (
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// tcx attaches with a link (Linux 6.6). It goes with its descriptor.
type tcx struct {
	program *ebpf.Program
	id      ebpf.ProgramID // 0: not asked yet
}

func (*tcx) name() string { return "tcx" }

func (x *tcx) attach(index int) (func() error, error) {
	// The head: behind a program that answers TC_ACT_OK nobody runs. Of two instances
	// the newer is before the older.
	l, err := link.AttachTCX(link.TCXOptions{
		Interface: index, Program: x.program, Attach: ebpf.AttachTCXIngress, Anchor: link.Head(),
	})
	if err != nil {
		return nil, err
	}
	return l.Close, nil
}

func (x *tcx) before(index int) (other string, attached bool, err error) {
	result, err := link.QueryPrograms(link.QueryOptions{Target: index, Attach: ebpf.AttachTCXIngress})
	if err != nil {
		return "", false, err
	}
	if x.id == 0 {
		info, err := x.program.Info()
		if err != nil {
			return "", false, err
		}
		x.id, _ = info.ID()
	}
	for _, p := range result.Programs {
		if p.ID == x.id {
			return other, true, nil
		}
		if other == "" {
			other = fmt.Sprintf("the tcx program %d runs before ours, and may end the way of a query", p.ID)
		}
	}
	return "", false, nil
}

// rival never is: links end with their processes.
func (*tcx) rival(int) (bool, error) { return false, nil }

// succeed has nothing to do: links end with their processes.
func (*tcx) succeed(int) error { return nil }
