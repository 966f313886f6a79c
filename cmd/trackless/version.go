package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/trackless-dns/trackless/cmd/trackless/cli"
)

// version and commit are set by the Makefile with -ldflags "-X main.version=...".
var (
	version = "development"
	commit  = ""
)

// versions is what `trackless version` tells: what was built, of which sources,
// and with what.
type versions struct {
	Version  string `json:"version"`
	Commit   string `json:"commit"` // "unknown" where the build had no git
	CoreDNS  string `json:"coredns"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

func builtFrom() versions {
	v := versions{
		Version:  version,
		Commit:   commit,
		CoreDNS:  coreDNSVersion(),
		Go:       runtime.Version(),
		Platform: runtime.GOOS + "/" + runtime.GOARCH,
	}
	if info, ok := debug.ReadBuildInfo(); ok && v.Commit == "" {
		v.Commit = commitOf(info)
	}
	if v.Commit == "" {
		v.Commit = "unknown"
	}
	return v
}

// commitOf is the commit that the go command has written into the binary, of
// `go install` and `go build` without the Makefile.
func commitOf(info *debug.BuildInfo) string {
	settings := map[string]string{}
	for _, s := range info.Settings {
		settings[s.Key] = s.Value
	}
	revision := settings["vcs.revision"]
	if revision != "" && settings["vcs.modified"] == "true" {
		return revision + "-dirty"
	}
	return revision
}

func (v versions) String() string {
	return fmt.Sprintf("trackless %s (commit %s, CoreDNS %s, %s, %s)", v.Version, v.Commit, v.CoreDNS, v.Go, v.Platform)
}

// coreDNSVersion is the version of the module in this binary.
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

func versionString() string { return builtFrom().String() }

func versionCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the versions of Trackless, CoreDNS and Go, and the commit",
		Args:  cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := cli.CheckOutput("version", output); err != nil {
				return err
			}
			if output == "json" {
				return cli.WriteJSON(cmd.OutOrStdout(), builtFrom())
			}
			_, err := fmt.Fprintln(cmd.OutOrStdout(), versionString())
			return err
		},
	}
	cli.OutputFlag(cmd, &output)
	return cmd
}
