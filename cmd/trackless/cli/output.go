package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

// outputs are those of a verb that names none: text for people, and JSON.
var outputs = []string{"table", "json"}

// OutputFlag adds -o with the given choices, the first of which is the default;
// without any, table and json.
func OutputFlag(cmd *cobra.Command, to *string, choices ...string) {
	if len(choices) == 0 {
		choices = outputs
	}
	cmd.Flags().StringVarP(to, "output", "o", choices[0], "output `format`: "+strings.Join(choices, ", "))
	// It fails only if the flag is not there.
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(choices, cobra.ShellCompDirectiveNoFileComp))
}

// CheckOutput refuses what OutputFlag with the same choices does not offer.
func CheckOutput(command, output string, choices ...string) error {
	if len(choices) == 0 {
		choices = outputs
	}
	return OneOf(command, "--output", output, choices...)
}

// OneOf refuses the value of a flag that is none of those allowed.
func OneOf(command, flag, value string, allowed ...string) error {
	if slices.Contains(allowed, value) {
		return nil
	}
	last := len(allowed) - 1
	list := allowed[last]
	if last > 0 {
		list = strings.Join(allowed[:last], ", ") + " or " + list
	}
	return Exit(ExitUsage, fmt.Errorf("%s: %s is %s, not %q", command, flag, list, value))
}

// HTMLFlag adds --html.
func HTMLFlag(cmd *cobra.Command, to *string) {
	cmd.Flags().StringVar(to, "html", "", "write a page with charts to this `file` as well")
	// It fails only if the flag is not there.
	_ = cmd.MarkFlagFilename("html", "html")
}

// SocketFlag adds --socket.
func SocketFlag(cmd *cobra.Command, socket *string) {
	cmd.Flags().StringVar(socket, "socket", "", "control socket of the instance to ask (default: all that are found)")
}

// WriteJSON writes a value as people can read it.
func WriteJSON(out io.Writer, value any) error {
	encoder := json.NewEncoder(out)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	return encoder.Encode(value)
}
