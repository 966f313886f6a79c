package cli

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// FlagError says of a wrong flag which it is, what was given, and what would be
// right. It is the FlagErrorFunc of every verb; those that judge give it their
// own exit status.
func FlagError(cmd *cobra.Command, err error) error {
	help := fmt.Sprintf("`%s --help` lists the flags", cmd.CommandPath())
	var invalid *pflag.InvalidValueError
	var unknown *pflag.NotExistError
	var missing *pflag.ValueRequiredError
	switch {
	case errors.As(err, &invalid):
		return fmt.Errorf("--%s %q: %s", invalid.GetFlag().Name, invalid.GetValue(), wantedValue(invalid.GetFlag().Value.Type()))
	case errors.As(err, &missing):
		return fmt.Errorf("--%s: its value is missing: %s", missing.GetFlag().Name, wantedValue(missing.GetFlag().Value.Type()))
	case errors.As(err, &unknown):
		return fmt.Errorf("%w; %s", err, help)
	}
	return fmt.Errorf("%w; %s", err, help)
}

// wantedValue says what a flag of a type takes (Value.Type in pflag).
func wantedValue(kind string) string {
	switch kind {
	case "duration":
		return "it takes a duration, a number with a unit: 500ms, 2s, 1m"
	case "int":
		return "it takes a whole number"
	case "uint64":
		return "it takes a whole number of 0 or more"
	case "bool":
		return "it takes true or false, after an equals sign"
	}
	return "it takes a " + kind
}

// JudgeFlagError is FlagError with the exit status of verbs that judge: theirs
// for wrong usage must not read as a judgement.
func JudgeFlagError(cmd *cobra.Command, err error) error {
	return Exit(ExitCannotMeasure, FlagError(cmd, err))
}

// NoArgs refuses arguments.
func NoArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("unexpected argument %q; `%s --help` says what it takes", args[0], cmd.CommandPath())
	}
	return nil
}

// JudgeNoArgs is NoArgs with the exit status of verbs that judge.
func JudgeNoArgs(cmd *cobra.Command, args []string) error {
	if err := NoArgs(cmd, args); err != nil {
		return Exit(ExitCannotMeasure, err)
	}
	return nil
}

// UnknownVerb refuses arguments to a command that has only verbs.
func UnknownVerb(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	path := cmd.CommandPath()
	list := path + " --help"
	if !cmd.HasParent() {
		list = path + " help"
	}
	return fmt.Errorf("unknown verb %q; `%s` lists them", args[0], list)
}

// HelpCommand is cobra's, except that an unknown topic is an error.
func HelpCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "help [VERB...]",
		Short: "Help about any verb",
		RunE: func(cmd *cobra.Command, args []string) error {
			root := cmd.Root()
			topic, rest, err := root.Find(args)
			if err != nil || topic == nil || len(rest) > 0 {
				unknown := strings.Join(args, " ")
				if len(rest) > 0 {
					unknown = rest[0]
				}
				if topic == nil {
					topic = root
				}
				return fmt.Errorf("no help about %q; `%s --help` lists the verbs", unknown, topic.CommandPath())
			}
			topic.InitDefaultHelpFlag() // else the text leaves it out
			return topic.Help()
		},
	}
}

// StrictCompletion makes cobra's verb completion refuse a shell that it does not
// know; it is made once all other verbs are there.
func StrictCompletion(root *cobra.Command) {
	root.InitDefaultCompletionCmd()
	for _, cmd := range root.Commands() {
		if cmd.Name() == "completion" {
			cmd.Args = func(_ *cobra.Command, args []string) error {
				if len(args) > 0 {
					return fmt.Errorf("unknown shell %q; there are bash, fish, powershell and zsh", args[0])
				}
				return nil
			}
			cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
			for _, shell := range cmd.Commands() {
				shell.Args = NoArgs
			}
		}
	}
}

// CheckRoot refuses a --root that is no directory.
func CheckRoot(root string) error {
	info, err := os.Stat(root)
	if err == nil && !info.IsDir() {
		err = fmt.Errorf("%s is no directory", root)
	}
	if err != nil {
		return Exit(ExitCannotMeasure, fmt.Errorf("--root: %w; name the directory under which the host's proc is, / on the host itself", err))
	}
	return nil
}
