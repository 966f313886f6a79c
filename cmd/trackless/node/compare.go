package node

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/trackless-dns/trackless/cmd/trackless/cli"
	"github.com/trackless-dns/trackless/node/compare"
	htmlpage "github.com/trackless-dns/trackless/node/compare/page"
	"github.com/trackless-dns/trackless/node/snapshot"
)

const compareHelp = `Compare two files of "trackless snapshot", and say in a sentence what the change
did to the entries of DNS, or why nothing can be concluded: another node, another
load, other timeouts, too short a window.

--html writes the comparison as one page with charts as well. It needs nothing
else: no network and no script; it can be mailed, printed and read on a phone.

A difference counts as one if it is at least 10 % and 50 entries. Loads up to a
quarter apart are alike; with others the entries are compared for each DNS flow a
second. The kernel's counters are compared by their rates in each window, and from
one snapshot to the other if the node was not restarted in between.

Exit status: 0 compared, whatever came out; 1 a file cannot be read or is no
snapshot that this version knows; 2 wrong command line.`

const compareExample = `  trackless compare before.json after.json
  trackless compare before.json after.json --html report.html
  trackless compare before.json after.json -o json | jq -r .verdict.sentence
  trackless snapshot | trackless compare before.json -`

type compareOptions struct {
	output string
	html   string
}

// Compare makes the verb compare.
func Compare() *cobra.Command {
	var o compareOptions
	cmd := &cobra.Command{
		Use:     "compare BEFORE AFTER",
		Short:   "Say what changed between two snapshots",
		Long:    compareHelp,
		Example: compareExample,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 2 {
				return fmt.Errorf("compare takes two files of `trackless snapshot`, the first taken before the second; there are %d", len(args))
			}
			if args[0] == "-" && args[1] == "-" {
				return errors.New("compare: only one of the two can come from the standard input")
			}
			return nil
		},
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) < 2 {
				return []string{"json"}, cobra.ShellCompDirectiveFilterFileExt
			}
			return nil, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return compareSnapshots(o, args[0], args[1], cmd.InOrStdin(), cmd.OutOrStdout())
		},
	}
	cli.OutputFlag(cmd, &o.output)
	cli.HTMLFlag(cmd, &o.html)
	return cmd
}

func compareSnapshots(o compareOptions, beforePath, afterPath string, in io.Reader, out io.Writer) error {
	if err := cli.CheckOutput("compare", o.output); err != nil {
		return err
	}
	before, err := readSnapshot(beforePath, in)
	if err != nil {
		return cli.Exit(cli.ExitFailure, err)
	}
	after, err := readSnapshot(afterPath, in)
	if err != nil {
		return cli.Exit(cli.ExitFailure, err)
	}
	c := compare.Snapshots(before, after)
	if o.html != "" {
		if err := WritePage(o.html, c); err != nil {
			return cli.Exit(cli.ExitFailure, err)
		}
	}
	if o.output == "json" {
		err = cli.WriteJSON(out, c)
	} else {
		err = c.WriteTable(out, comparePaint(cli.Coloured(out)))
	}
	if err != nil {
		return cli.Exit(cli.ExitFailure, fmt.Errorf("write the comparison: %w", err))
	}
	return nil
}

func readSnapshot(path string, in io.Reader) (*snapshot.Snapshot, error) {
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer func() { _ = f.Close() }()
		in = f
	}
	s, err := snapshot.Read(in)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return s, nil
}

// WritePage writes a comparison as a page of HTML.
func WritePage(path string, c *compare.Comparison) error {
	return cli.WriteFile(path, 0o644, func(w io.Writer) error { return htmlpage.Write(w, c) })
}

// comparePaint colours outcomes and warnings on terminals.
func comparePaint(colour bool) func(kind, text string) string {
	return func(kind, text string) string {
		code := map[string]string{
			string(compare.Improved): cli.Green, string(compare.Worse): cli.Red, string(compare.Unclear): cli.Yellow, "warning": cli.Yellow,
		}[kind]
		return cli.Painted(text, code, colour && code != "")
	}
}
