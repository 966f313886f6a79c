package host

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/trackless-dns/trackless/node/advice"
)

// rancher is where k3s and RKE2, which is built on it, keep their configuration.
type rancher struct {
	distribution advice.Distribution
	config       string
	units        []string
}

var (
	k3s  = rancher{advice.K3s, "/etc/rancher/k3s/config.yaml", []string{"k3s.service", "k3s-agent.service"}}
	rke2 = rancher{advice.RKE2, "/etc/rancher/rke2/config.yaml", []string{"rke2-server.service", "rke2-agent.service"}}
)

func readK3s(p process) (*advice.KubeProxy, error)  { return k3s.read(p) }
func readRKE2(p process) (*advice.KubeProxy, error) { return rke2.read(p) }

// read reads what k3s gives the kube-proxy inside it: kube-proxy-arg on the
// command line and in its files, later ones added to earlier ones.
func (r rancher) read(p process) (*advice.KubeProxy, error) {
	args := slices.Clone(p.args)
	if len(args) == 0 || !slices.Contains(args, "server") && !slices.Contains(args, "agent") {
		return nil, nil // k3s kubectl, k3s ctr and such
	}
	k := &advice.KubeProxy{Distribution: r.distribution}
	sources := []string{"its command line"}
	if !slices.ContainsFunc(args, func(a string) bool { return strings.HasPrefix(a, "-") }) {
		// k3s overwrites its command line once it has read it, for the secrets in
		// it: the unit that started it has it still.
		for _, unit := range r.units {
			if b, err := p.readFile(filepath.Join("/etc/systemd/system", unit)); err == nil {
				args = append(args, unitArguments(string(b))...)
				sources = append(sources, "/etc/systemd/system/"+unit)
				break
			}
		}
	}
	onLine := parseFlags(args)
	path := r.config
	for _, name := range []string{"config", "c"} {
		if named := onLine[name]; named != "" {
			path = named
		}
	}
	files := []string{path}
	for _, base := range []string{filepath.Join(p.dir, "root"), p.root} {
		more, _ := filepath.Glob(filepath.Join(base, path+".d", "*.yaml"))
		for _, file := range more {
			if rel, err := filepath.Rel(base, file); err == nil && !slices.Contains(files, "/"+rel) {
				files = append(files, "/"+rel)
			}
		}
	}
	var config rancherConfig
	var failed error
	for _, file := range files {
		b, err := p.readFile(file)
		if err != nil {
			continue // it need not be there
		}
		if err := config.add(b); err != nil {
			failed = fmt.Errorf("%s: %w", file, err)
			continue
		}
		sources = append(sources, file)
	}
	for _, name := range []string{"disable-kube-proxy", "disable-agent", "rootless"} {
		if config.switches[name] || onLine.isTrue(name) {
			return nil, failed
		}
	}
	if failed == nil {
		k.Path = strings.Join(sources, ", ")
	}
	proxyArgs := config.proxyArgs
	if given := repeated(args, "kube-proxy-arg"); given != nil {
		proxyArgs = given // the command line replaces the files
	}
	for i, a := range proxyArgs {
		proxyArgs[i] = "--" + strings.TrimLeft(a, "-")
	}
	if err := parseFlags(proxyArgs).read(k); err != nil {
		return k, err
	}
	return k, failed
}

// rancherConfig is what files of k3s say of kube-proxy.
type rancherConfig struct {
	proxyArgs []string
	switches  map[string]bool
}

// add reads a file. A key replaces that of an earlier file; one that ends in +
// adds to it.
func (c *rancherConfig) add(file []byte) error {
	var keys map[string]any
	if err := yaml.Unmarshal(file, &keys); err != nil {
		return err
	}
	if c.switches == nil {
		c.switches = map[string]bool{}
	}
	for key, value := range keys {
		name, adds := strings.CutSuffix(key, "+")
		switch v := value.(type) {
		case bool:
			c.switches[name] = v
		case string:
			c.setArgs(name, adds, []any{v})
		case []any:
			c.setArgs(name, adds, v)
		}
	}
	return nil
}

func (c *rancherConfig) setArgs(name string, adds bool, values []any) {
	if name != "kube-proxy-arg" {
		return
	}
	if !adds {
		c.proxyArgs = nil
	}
	for _, v := range values {
		c.proxyArgs = append(c.proxyArgs, fmt.Sprint(v))
	}
}

// repeated returns all values of a flag that may be given several times, nil if
// it is not given.
func repeated(args []string, name string) []string {
	var values []string
	for i, a := range args {
		a = strings.TrimPrefix(strings.TrimPrefix(a, "-"), "-")
		if v, ok := strings.CutPrefix(a, name+"="); ok {
			values = append(values, v)
		} else if a == name && i+1 < len(args) {
			values = append(values, args[i+1])
		}
	}
	return values
}

// unitArguments returns the arguments of ExecStart in a unit of systemd.
func unitArguments(unit string) []string {
	unit = strings.ReplaceAll(unit, "\\\n", " ")
	for line := range strings.Lines(unit) {
		if command, ok := strings.CutPrefix(strings.TrimSpace(line), "ExecStart="); ok {
			var args []string
			for field := range strings.FieldsSeq(command) {
				args = append(args, unquoted(field))
			}
			return args
		}
	}
	return nil
}
