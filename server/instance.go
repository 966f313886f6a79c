package server

import (
	"github.com/coredns/caddy"
	clog "github.com/coredns/coredns/plugin/pkg/log"

	"github.com/trackless-dns/trackless/agent"
	"github.com/trackless-dns/trackless/iptables/control"
	"github.com/trackless-dns/trackless/plugin/cache"
	"github.com/trackless-dns/trackless/plugin/notrack"
)

// servedInstance is this process as its control socket shows it.
type servedInstance struct {
	agent.Measured
	control.CacheHolder
	*recentLog
}

func newServedInstance(version string, log *recentLog) *servedInstance {
	return &servedInstance{Measured: notrack.Controlled(version), CacheHolder: cache.Controlled(), recentLog: log}
}

// listen opens the control socket. The node's DNS does not depend on it: if it
// cannot be opened the log says so, and serving goes on.
func (i *servedInstance) listen(path string) {
	s, err := control.Listen(path, i)
	if err != nil {
		clog.Warningf("%v; `trackless rules attach`, detach and `trackless cache` cannot reach this instance", err)
		return
	}
	if s.Fallback() != nil {
		clog.Warningf("%v; the control socket is %s instead", s.Fallback(), s.Addr())
	}
	caddy.OnProcessExit = append(caddy.OnProcessExit, func() { _ = s.Close() })
}
