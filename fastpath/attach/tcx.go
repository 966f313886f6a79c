package attach

import (
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/trackless-dns/trackless/iptables/owner"
)

// tcx attaches with a link (Linux 6.6). It goes with its descriptor.
type tcx struct {
	program *ebpf.Program
	id      ebpf.ProgramID // 0: not asked yet
	filters *filterLists
	// instances tells which programs are of other instances, of those that were seen. A mark
	// is there before its program is attached.
	instances map[ebpf.ProgramID]bool
}

func newTCX(p *ebpf.Program) *tcx {
	return &tcx{program: p, filters: newFilterLists(), instances: map[ebpf.ProgramID]bool{}}
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

func (x *tcx) look(index int) (n neighbours, err error) {
	result, err := link.QueryPrograms(link.QueryOptions{Target: index, Attach: ebpf.AttachTCXIngress})
	if err != nil {
		return n, err
	}
	if x.id == 0 {
		if x.id, err = idOf(x.program); err != nil {
			return n, err
		}
	}
	for _, p := range result.Programs {
		switch {
		case p.ID == x.id:
			// Those that were found so far run before ours.
			n.attached, n.before, n.behind = true, n.behind, ""
		case n.behind == "" && !x.isInstance(p.ID):
			n.behind = fmt.Sprintf("the tcx program %d", p.ID)
		}
	}
	if n.behind == "" {
		all, err := x.filters.of(index)
		if err != nil {
			return n, err
		}
		n.behind = firstForeign(all, 0)
	}
	return n, nil
}

func (x *tcx) isInstance(id ebpf.ProgramID) bool {
	is, known := x.instances[id]
	if !known {
		is = owner.IsProgram(uint32(id))
		x.instances[id] = is
	}
	return is
}

func (x *tcx) forget(index int) { x.filters.forget(index) }

func idOf(p *ebpf.Program) (ebpf.ProgramID, error) {
	info, err := p.Info()
	if err != nil {
		return 0, err
	}
	id, _ := info.ID()
	return id, nil
}

// succeed has nothing to do: links end with their processes.
func (*tcx) succeed(int, bool) error { return nil }
