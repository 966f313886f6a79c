package main

import (
	"fmt"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/cmd/trackless/cli"
)

const conntrackHelp = `See what the kernel's connection tracking table holds, how near it is to full,
who fills it, and what the kernel drops.

  trackless conntrack stats                      the table at a glance
  trackless conntrack list --dns --state UNREPLIED
  trackless conntrack list -o conntrack          the same lines as conntrack -L
  trackless conntrack watch --rate               new and destroyed entries per second
  trackless conntrack limits                     every limit and timeout, and who sets it
  trackless conntrack help states                what NEW, ASSURED, INVALID ... mean

Entries need CAP_NET_ADMIN. Without it "limits" works, and "stats" shows the fill
and, on kernels that have /proc/net/stat/nf_conntrack, what was dropped.

Exit status: 0 done, 1 the table changed under every attempt to read it whole, or
the output could not be written, 2 wrong command line, 3 the table cannot be read.`

func conntrackCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "conntrack",
		Short: "See and explain the connection tracking table",
		Long:  conntrackHelp,
		Args:  cli.UnknownVerb,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(conntrackListCommand(), conntrackStatsCommand(), conntrackWatchCommand(),
		conntrackLimitsCommand(), conntrackHelpCommand())
	return cmd
}

// netnsFlag is the namespace that a verb looks at.
type netnsFlag string

const netnsUsage = "network `namespace`: a name of ip-netns(8), a process id or a path (default: this one)"

// path returns the file of the namespace.
func (n netnsFlag) path() string {
	s := string(n)
	if _, err := strconv.Atoi(s); err == nil {
		return filepath.Join("/proc", s, "ns/net")
	}
	if strings.Contains(s, "/") {
		return s
	}
	return filepath.Join("/run/netns", s)
}

// do runs fn on a thread inside the namespace and returns its error.
func (n netnsFlag) do(fn func() error) error {
	if n == "" {
		return fn()
	}
	ns, err := netns.GetFromPath(n.path())
	if err != nil {
		return cli.Exit(cli.ExitCannotLook, fmt.Errorf("network namespace %q: %w (a name of `ip netns list`, a process id, or a path such as /proc/1/ns/net)", string(n), err))
	}
	defer func() { _ = ns.Close() }()
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(ns), &st); err == nil && st.Type != unix.NSFS_MAGIC {
		return cli.Exit(cli.ExitCannotLook, fmt.Errorf("network namespace %q: %s is no namespace (a name of `ip netns list`, a process id, or a path such as /proc/1/ns/net)", string(n), n.path()))
	}
	return inNamespace(ns, fn)
}

// inNamespace runs fn on a thread of its own inside ns.
func inNamespace(ns netns.NsHandle, fn func() error) error {
	done := make(chan error, 1)
	go func() {
		// Not unlocked: a thread that was elsewhere is not used again.
		runtime.LockOSThread()
		if err := netns.Set(ns); err != nil {
			done <- cli.Exit(cli.ExitCannotLook, fmt.Errorf("enter the network namespace: %w (needs CAP_SYS_ADMIN)", err))
			return
		}
		done <- fn()
	}()
	return <-done
}

// threadProc is proc as the calling thread's namespace has it: /proc/net is
// that of the process's first thread.
const threadProc = "/proc/thread-self"
