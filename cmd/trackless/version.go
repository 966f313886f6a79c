package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/coredns/coredns/plugin"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/spf13/cobra"
)

// version is set by the Makefile with -ldflags "-X main.version=...".
var version = "development"

// coreDNSVersion is that of the module this binary was linked with.
func coreDNSVersion() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	for _, dep := range info.Deps {
		if dep.Path != "github.com/coredns/coredns" {
			continue
		}
		if dep.Replace != nil {
			return dep.Replace.Version
		}
		return dep.Version
	}
	return "unknown"
}

func versionString() string {
	return fmt.Sprintf("trackless %s (CoreDNS %s, %s, %s/%s)",
		version, coreDNSVersion(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
}

// buildInfo tells Trackless from other CoreDNS, which export the same names:
// the cluster's DNS behind it, for one. coredns_build_info has CoreDNS's version.
var buildInfo = promauto.NewGaugeVec(prometheus.GaugeOpts{
	Namespace: plugin.Namespace,
	Subsystem: "trackless",
	Name:      "build_info",
	Help:      "The version of Trackless; always 1.",
}, []string{"version", "goversion"})

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the versions of Trackless, CoreDNS and Go",
		Args:  noArgs,
		Run: func(cmd *cobra.Command, _ []string) {
			fmt.Fprintln(cmd.OutOrStdout(), versionString())
		},
	}
}
