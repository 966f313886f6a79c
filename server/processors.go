package server

import (
	"os"
	"runtime"

	clog "github.com/coredns/coredns/plugin/pkg/log"

	"github.com/trackless-dns/trackless/internal/cgroup"
)

// respectCPULimit runs Go code on one thread at a time where the control group allows one
// processor at most. Go takes two at least: their threads wake each other, and use up a
// small limit with that. An explicit GOMAXPROCS wins.
func respectCPULimit(root string) {
	if os.Getenv("GOMAXPROCS") != "" {
		return
	}
	limit := cgroup.CPULimit(root).Limit
	if limit == 0 || limit > 1 {
		return
	}
	runtime.GOMAXPROCS(1)
	clog.Infof("processors: the control group allows %.0fm, so Go code runs on one thread at a time", limit*1000)
}
