package host

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/trackless-dns/trackless/node/advice"
)

// flags are values of a command line by the name of the flag, as
// github.com/spf13/pflag reads them and kube-proxy names them: underscores are
// dashes, and of a flag given twice the last one counts.
type flags map[string]string

// switches are the flags of interest that take no value as an argument of its
// own.
var switches = map[string]bool{"conntrack-tcp-be-liberal": true, "disable-kube-proxy": true, "disable-agent": true, "rootless": true}

func parseFlags(args []string) flags {
	f := flags{}
	for i := 0; i < len(args); i++ {
		if args[i] == "--" {
			break
		}
		name, isFlag := strings.CutPrefix(args[i], "-")
		name = strings.TrimPrefix(name, "-")
		if !isFlag || name == "" {
			continue
		}
		name, value, given := strings.Cut(name, "=")
		name = strings.ReplaceAll(name, "_", "-")
		switch {
		case given:
		case switches[name]:
			value = "true"
		case i+1 < len(args) && !strings.HasPrefix(args[i+1], "--"):
			i++
			value = args[i]
		}
		f[name] = value
	}
	return f
}

// read sets what the flags say.
func (f flags) read(k *advice.KubeProxy) error {
	return errors.Join(
		setFlag(f, "conntrack-max-per-core", parseNumber, &k.MaxPerCore),
		setFlag(f, "conntrack-min", parseNumber, &k.Min),
		setFlag(f, "conntrack-tcp-timeout-established", time.ParseDuration, &k.TCPEstablishedTimeout),
		setFlag(f, "conntrack-tcp-timeout-close-wait", time.ParseDuration, &k.TCPCloseWaitTimeout),
		setFlag(f, "conntrack-udp-timeout", time.ParseDuration, &k.UDPTimeout),
		setFlag(f, "conntrack-udp-timeout-stream", time.ParseDuration, &k.UDPStreamTimeout),
		setFlag(f, "conntrack-tcp-be-liberal", strconv.ParseBool, &k.TCPBeLiberal),
	)
}

// parseNumber is that of pflag's Int32.
func parseNumber(s string) (int64, error) { return strconv.ParseInt(s, 0, 32) }

func setFlag[T any](f flags, name string, parse func(string) (T, error), to **T) error {
	s, ok := f[name]
	if !ok {
		return nil
	}
	v, err := parse(s)
	if err != nil {
		return fmt.Errorf("kube-proxy's --%s=%s: %w; its default is assumed", name, s, err)
	}
	*to = &v
	return nil
}

// isTrue reports whether a switch is on.
func (f flags) isTrue(name string) bool {
	on, err := strconv.ParseBool(f[name])
	return err == nil && on
}

// readConfiguration reads the section conntrack of a KubeProxyConfiguration.
func readConfiguration(k *advice.KubeProxy, path string, config []byte) error {
	var file struct {
		Kind      string
		Conntrack struct {
			MaxPerCore            *int64         `yaml:"maxPerCore"`
			Min                   *int64         `yaml:"min"`
			TCPEstablishedTimeout *time.Duration `yaml:"tcpEstablishedTimeout"`
			TCPCloseWaitTimeout   *time.Duration `yaml:"tcpCloseWaitTimeout"`
			UDPTimeout            *time.Duration `yaml:"udpTimeout"`
			UDPStreamTimeout      *time.Duration `yaml:"udpStreamTimeout"`
			TCPBeLiberal          *bool          `yaml:"tcpBeLiberal"`
		} `yaml:"conntrack"`
	}
	if err := yaml.Unmarshal(config, &file); err != nil {
		return fmt.Errorf("kube-proxy's configuration %s: %w", path, err)
	}
	if file.Kind != "KubeProxyConfiguration" {
		return fmt.Errorf("kube-proxy's configuration %s: kind is %q, not KubeProxyConfiguration", path, file.Kind)
	}
	c := file.Conntrack
	k.Path = path
	k.MaxPerCore, k.Min = c.MaxPerCore, c.Min
	k.TCPEstablishedTimeout, k.TCPCloseWaitTimeout = c.TCPEstablishedTimeout, c.TCPCloseWaitTimeout
	k.UDPTimeout, k.UDPStreamTimeout, k.TCPBeLiberal = c.UDPTimeout, c.UDPStreamTimeout, c.TCPBeLiberal
	return nil
}
