package node

import (
	"errors"
	"strings"
	"testing"

	"github.com/trackless-dns/trackless/cmd/trackless/cli"
	"github.com/trackless-dns/trackless/node/advice"
	"github.com/trackless-dns/trackless/node/measure"
	"github.com/trackless-dns/trackless/node/tune"
)

// Where settings cannot be applied the commands for the host are printed.
func TestTuneRefuses(t *testing.T) {
	t.Parallel()
	m := &measure.Node{Measurements: advice.Measurements{Entries: 60000, Limit: 65536, Buckets: 65536}}
	var out strings.Builder
	err := refuseToTune(tune.New(m), "this is a container", &out)
	var exit *cli.ExitError
	if !errors.As(err, &exit) || exit.Code != cli.ExitCannotMeasure || !strings.Contains(err.Error(), "nothing was changed") {
		t.Errorf("error %v", err)
	}
	for _, want := range []string{"cat > " + tune.SysctlFile, "nf_conntrack_max = 131072", "echo 131072 > " + tune.HashsizeFile, "sysctl -p"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
}
