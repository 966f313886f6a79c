package table

import (
	"bytes"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/trackless-dns/trackless/cmd/trackless/cli"
	"github.com/trackless-dns/trackless/conntrack/summary"
	"github.com/trackless-dns/trackless/conntrack/sysctl"
	"github.com/trackless-dns/trackless/internal/figure"
)

const limitsHelp = `Show every limit and timeout of connection tracking: its value, the kernel's
default, what it means, what it costs, and which file, module option or program
sets it. Values that differ from the default are marked with *.

No privileges are needed; the size of an entry is measured for root alone.`

type limitsOptions struct {
	output string
	netns  cli.NetNS
	root   string
}

func limitsCommand() *cobra.Command {
	var o limitsOptions
	cmd := &cobra.Command{
		Use:   "limits",
		Short: "Show every limit and timeout, its cost, and who sets it",
		Long:  limitsHelp,
		Args:  cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runLimits(o, cmd.OutOrStdout())
		},
	}
	cli.OutputFlag(cmd, &o.output)
	o.netns.Register(cmd, "")
	cmd.Flags().StringVar(&o.root, "root", "/", "`directory` under which the host's proc, sys and etc are")
	return cmd
}

func runLimits(o limitsOptions, out io.Writer) error {
	if err := cli.CheckOutput("conntrack limits", o.output); err != nil {
		return err
	}
	if err := cli.CheckRoot(o.root); err != nil {
		return err
	}
	return o.netns.Do(func() error {
		r, err := summary.ReadLimits(o.root)
		if err != nil {
			return cli.CannotMeasure(err)
		}
		if o.output == "json" {
			return cli.WriteJSON(out, r)
		}
		return writeLimits(out, r)
	})
}

func writeLimits(out io.Writer, r *summary.Limits) error {
	var b bytes.Buffer
	whenFull := figure.Bytes(r.LimitBytes) + " when full"
	if limit, ok := sysctl.SettingValue(r.Settings, "nf_conntrack_max"); ok && limit == 0 {
		whenFull = "no limit (nf_conntrack_max is 0)"
	}
	width := cli.TerminalWidth(out)
	cli.WriteLine(&b, width, fmt.Sprintf("%s entries. Memory of the table: %s now, %s (%d + about %d bytes an entry, %s; %d bytes a bucket)",
		figure.Thousands(r.Entries), figure.Bytes(r.NowBytes), whenFull, r.Memory.EntryBytes, r.Memory.ExtensionBytes,
		memorySource(r.Memory.Source), r.Memory.BucketBytes))
	b.WriteByte('\n')
	table := cli.TextTable{Header: []string{"NET.NETFILTER.", "VALUE", "", "DEFAULT", "SET BY", "MEANING"}, Text: 2}
	for _, s := range r.Settings {
		differs, def := "", "-"
		if s.Default != nil {
			def = settingValue(s.Unit, *s.Default)
			if *s.Default != s.Value {
				differs = "*"
			}
		}
		table.Add(strings.TrimPrefix(s.Name, "net.netfilter."), shownValue(s), differs, def, setBy(s), s.Meaning+settingCost(s, r.Memory))
	}
	table.Write(&b, width)
	_, err := out.Write(b.Bytes())
	return err
}

// shownValue is the value of a setting, with what it means where it is no number.
func shownValue(s sysctl.Setting) string {
	if isLimit(s) && s.Value == 0 {
		return "0 (no limit)"
	}
	return settingValue(s.Unit, s.Value)
}

func isLimit(s sysctl.Setting) bool { return strings.HasSuffix(s.Name, ".nf_conntrack_max") }

// settingValue writes a value with its unit.
func settingValue(u sysctl.Unit, v uint64) string {
	switch u {
	case sysctl.UnitSeconds:
		switch {
		case v >= 86400 && v%86400 == 0:
			return fmt.Sprintf("%d (%d d)", v, v/86400)
		case v >= 3600 && v%3600 == 0:
			return fmt.Sprintf("%d (%d h)", v, v/3600)
		}
		return fmt.Sprintf("%d s", v)
	case sysctl.UnitBytes:
		return figure.Bytes(v)
	}
	return strconv.FormatUint(v, 10)
}

// setBy says which file wins at boot, and which field of kube-proxy's
// configuration after it.
func setBy(s sysctl.Setting) string {
	who := "-"
	if n := len(s.Files); n > 0 {
		who = fmt.Sprintf("%s:%d", s.Files[n-1].Path, s.Files[n-1].Line)
	}
	if s.KubeProxy != "" {
		who += "; kube-proxy " + s.KubeProxy
	}
	return who
}

func settingCost(s sysctl.Setting, m sysctl.Memory) string {
	switch s.Unit {
	case sysctl.UnitEntries:
		if isLimit(s) && s.Value > 0 {
			return fmt.Sprintf(" [%s when reached]", figure.Bytes(m.Table(s.Value, 0)))
		}
	case sysctl.UnitBuckets:
		return fmt.Sprintf(" [%s always]", figure.Bytes(m.Table(0, s.Value)))
	}
	return ""
}
