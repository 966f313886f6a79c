package scene

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/trackless-dns/trackless/internal/testcgroup"
	"github.com/trackless-dns/trackless/lab"
)

// memoryGroup makes a group with a limit in bytes for what its processes touch,
// and no swap. It goes with the scene.
func (s *Scene) memoryGroup(limit int) (*testcgroup.Group, error) {
	group, err := testcgroup.New(testcgroup.Limits{Memory: limit})
	if err != nil {
		return nil, err
	}
	// Before the group can go its last process must have: it is killed first.
	s.Cleanups = append(s.Cleanups, group.Close)
	return group, nil
}

// LimitMemory limits a server that runs.
func (s *Scene) LimitMemory(server *lab.Server, limit int) error {
	group, err := s.memoryGroup(limit)
	if err != nil {
		return err
	}
	return group.Join(server.PID())
}

// contain returns a program that runs the given one in a group with the limit of
// the case, which it finds there when it starts.
func (s *Scene) contain(program string) (string, error) {
	group, err := s.memoryGroup(s.LimitMiB << 20)
	if err != nil {
		return "", err
	}
	s.Container = group
	directory, err := os.MkdirTemp("", "trackless-chaos-")
	if err != nil {
		return "", err
	}
	s.Cleanups = append(s.Cleanups, func() error { return os.RemoveAll(directory) })
	script := filepath.Join(directory, "trackless")
	return script, group.Script(script, fmt.Sprintf(`%s exec %s "$@"`, s.Environment, program))
}
