package nodetest

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/trackless-dns/trackless/iptables/control"
)

// Socket is an instance that is asked over its control socket.
type Socket struct {
	Name      string
	ID        int // of its process
	State     control.Status
	StatusErr error
	SwitchErr error
	OnlyByPID bool // it is found by its process alone
	Hangs     bool // when asked to attach
	Asked     string
	Config    control.Corefile
	Saves     control.Figures
	Lines     []byte // of its log
	Content   control.CacheContent
	Flushed   control.CacheRemoved
	Counted   control.QueryCounts
}

// Socket implements instance.ControlSocket.
func (s *Socket) Socket() string { return s.Name }

// ShowCache implements instance.ControlSocket.
func (s *Socket) ShowCache(_ context.Context, name, qtype string) (control.CacheContent, error) {
	s.Asked = strings.TrimSpace("show " + name + " " + qtype)
	return s.Content, s.SwitchErr
}

// FlushCache implements instance.ControlSocket.
func (s *Socket) FlushCache(_ context.Context, scope control.CacheScope) (control.CacheRemoved, error) {
	s.Asked = fmt.Sprintf("flush name %q zone %q", scope.Name, scope.Zone)
	return s.Flushed, s.SwitchErr
}

// CountQueries implements instance.ControlSocket.
func (s *Socket) CountQueries(_ context.Context, d time.Duration) (control.QueryCounts, error) {
	s.Asked = "queries " + d.String()
	return s.Counted, s.SwitchErr
}

// PID implements instance.ControlSocket.
func (s *Socket) PID() int { return s.ID }

// Status implements instance.ControlSocket.
func (s *Socket) Status(context.Context) (control.Status, error) {
	return s.State, s.StatusErr
}

// Attach implements instance.ControlSocket.
func (s *Socket) Attach(ctx context.Context) (control.Status, error) {
	s.Asked = "attach"
	if s.Hangs {
		<-ctx.Done()
		return control.Status{}, context.Cause(ctx)
	}
	s.State.State = "attached"
	return s.State, s.SwitchErr
}

// Corefile implements instance.ControlSocket.
func (s *Socket) Corefile(context.Context) (control.Corefile, error) {
	return s.Config, s.StatusErr
}

// Figures implements instance.ControlSocket.
func (s *Socket) Figures(context.Context) (control.Figures, error) {
	return s.Saves, s.StatusErr
}

// Log implements instance.ControlSocket.
func (s *Socket) Log(context.Context) ([]byte, error) { return s.Lines, s.StatusErr }

// Detach implements instance.ControlSocket.
func (s *Socket) Detach(context.Context) (control.Status, error) {
	s.Asked, s.State.State = "detach", "detached"
	return s.State, s.SwitchErr
}

// InContainer is the control socket of a process that has a file system of its own, as
// the node sees it.
func InContainer(pid int) string { return fmt.Sprintf("/proc/%d/root%s", pid, control.DefaultPath) }

// NewSocket is an attached instance.
func NewSocket(name string, pid int, table string) *Socket {
	return &Socket{Name: name, ID: pid, State: control.Status{
		Process: control.Process{PID: pid, Start: uint64(pid), PIDNamespace: 1, NetNamespace: 1},
		Table:   table, State: "attached",
	}}
}
