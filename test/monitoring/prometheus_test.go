//go:build monitoring

package monitoring

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/internal/testwait"
	"github.com/trackless-dns/trackless/lab"
)

// Where things are in the node's namespace.
const (
	tracklessAddress    = "127.0.0.1:9253"
	nodeExporterAddress = "127.0.0.1:9100"
	prometheusAddress   = "127.0.0.1:9090"
)

// prometheus is one that runs on a lab node, and scrapes every second.
type prometheus struct {
	child *lab.Child
	http  *http.Client
	began time.Time
}

// startPrometheus starts one with the alerts of a rules file. It ends with the test.
func startPrometheus(t *testing.T, node *lab.Node, rules string) *prometheus {
	t.Helper()
	testns.Program(t, "prometheus")
	dir := t.TempDir()
	rules, err := filepath.Abs(rules)
	if err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(dir, "prometheus.yml")
	text := fmt.Sprintf(`
global: {scrape_interval: 1s, evaluation_interval: 1s}
rule_files: [%q]
scrape_configs:
  - {job_name: trackless, static_configs: [{targets: ["%s"]}]}
  - {job_name: node, static_configs: [{targets: ["%s"]}]}
`, rules, tracklessAddress, nodeExporterAddress)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p := &prometheus{
		child: start(t, node, "prometheus", "--config.file="+config, "--storage.tsdb.path="+filepath.Join(dir, "data"),
			"--web.listen-address="+prometheusAddress, "--log.level=warn"),
		http: &http.Client{Transport: &http.Transport{
			DialContext: func(ctx context.Context, network, address string) (conn net.Conn, err error) {
				err = node.Namespace.Do(func() error {
					conn, err = new(net.Dialer).DialContext(ctx, network, address)
					return err
				})
				return conn, err
			},
		}},
		began: time.Now(),
	}
	t.Cleanup(p.http.CloseIdleConnections)
	eventually(t, "prometheus is ready", func() error {
		var names []string
		return p.get(t.Context(), "labels", nil, &names)
	})
	return p
}

// start runs a program in the node's namespace until the test ends.
func start(t *testing.T, node *lab.Node, name string, args ...string) *lab.Child {
	t.Helper()
	testns.Program(t, name)
	child, err := node.Namespace.Start(name, exec.Command(name, args...))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		select {
		case <-child.Done():
			t.Errorf("%s ended before the test:\n%s", name, child.Output())
		default:
			if err := child.Kill(); err != nil {
				t.Error(err)
			}
		}
	})
	return child
}

// series is one line of an answer: its labels, and its finite values.
type series struct {
	labels map[string]string
	values []float64
}

// query evaluates an expression at every second since Prometheus was started.
func (p *prometheus) query(ctx context.Context, expr string) ([]series, error) {
	var answer struct {
		Result []struct {
			Metric map[string]string
			Values [][2]any
		}
	}
	err := p.get(ctx, "query_range", url.Values{
		"query": {expr}, "step": {"1"},
		"start": {strconv.FormatInt(p.began.Unix(), 10)}, "end": {strconv.FormatInt(time.Now().Unix(), 10)},
	}, &answer)
	if err != nil {
		return nil, fmt.Errorf("%w\n%s", err, expr)
	}
	var all []series
	for _, r := range answer.Result {
		s := series{labels: r.Metric}
		for _, v := range r.Values {
			text, _ := v[1].(string)
			// NaN and Inf are no data: nothing was asked, 0 of 0.
			if f, err := strconv.ParseFloat(text, 64); err == nil && f-f == 0 {
				s.values = append(s.values, f)
			}
		}
		if len(s.values) > 0 {
			all = append(all, s)
		}
	}
	return all, nil
}

// rule is one as Prometheus has it.
type rule struct {
	Name, Query, Type string
	Health, LastError string
}

func (p *prometheus) rules(ctx context.Context) ([]rule, error) {
	var answer struct{ Groups []struct{ Rules []rule } }
	if err := p.get(ctx, "rules", nil, &answer); err != nil {
		return nil, err
	}
	var all []rule
	for _, g := range answer.Groups {
		all = append(all, g.Rules...)
	}
	return all, nil
}

// get asks the HTTP API, version 1, and unpacks the data of the answer.
func (p *prometheus) get(ctx context.Context, what string, parameters url.Values, data any) error {
	address := "http://" + prometheusAddress + "/api/v1/" + what + "?" + parameters.Encode()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return err
	}
	select {
	case <-p.child.Done():
		return fmt.Errorf("prometheus ended:\n%s", p.child.Output())
	default:
	}
	response, err := p.http.Do(request)
	if err != nil {
		return fmt.Errorf("%w\n%s", err, p.child.Output())
	}
	defer func() { _ = response.Body.Close() }()
	answer := struct {
		Status, Error string
		Data          json.RawMessage
	}{}
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil {
		return fmt.Errorf("prometheus, %s: %s: %w", what, response.Status, err)
	}
	if answer.Status != "success" {
		return fmt.Errorf("prometheus, %s: %s", what, answer.Error)
	}
	return json.Unmarshal(answer.Data, data)
}

// eventually waits until something holds. A machine that is busy with other
// things may take long.
func eventually(t *testing.T, what string, holds func() error) {
	t.Helper()
	testwait.Until(t, 90*time.Second, what, holds)
}
