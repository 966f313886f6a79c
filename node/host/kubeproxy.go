package host

import (
	"bytes"
	"cmp"
	"debug/buildinfo"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/trackless-dns/trackless/node/advice"
)

// KubeProxies finds what does kube-proxy's work among the processes below
// root/proc, and reads how it is configured: processes kube-proxy, and k3s, RKE2
// and MicroK8s, which have it inside. Those of other network namespaces than
// that of the process or thread directory self are left out. It returns none if
// none runs, or none is visible in this PID namespace; and what could be read
// of each beside an error.
func KubeProxies(root, self string) ([]advice.KubeProxy, error) {
	processes, err := listProcesses(root)
	if err != nil {
		return nil, err
	}
	here, _ := os.Readlink(filepath.Join(self, "ns/net"))
	k0s := slices.ContainsFunc(processes, func(p process) bool { return p.name == "k0s" })
	var found []advice.KubeProxy
	var errs []error
	for _, p := range processes {
		read := readers[p.name]
		if read == nil {
			continue
		}
		// A namespace that cannot be read may be this one.
		if there, err := os.Readlink(filepath.Join(p.dir, "ns/net")); err == nil && here != "" && there != here {
			continue
		}
		k, err := read(p)
		errs = append(errs, err)
		if k == nil {
			continue
		}
		if k.Distribution == advice.Standalone && k0s {
			k.Distribution = advice.K0s
		}
		k.NodeCPUs, k.OwnCPUs = onlineCPUs(root), p.allowedCPUs()
		k.Since, k.Before = p.kubernetesMinor()
		found = append(found, *k)
	}
	return found, errors.Join(errs...)
}

// readers read the configuration of a process by its name (proc/PID/comm). They
// return nil if it sets nothing of its own.
var readers = map[string]func(process) (*advice.KubeProxy, error){
	"kube-proxy": readKubeProxy,
	"kubelite":   readMicroK8s,
	"k3s":        readK3s, "k3s-server": readK3s, "k3s-agent": readK3s,
	"rke2": readRKE2, "rke2-server": readRKE2, "rke2-agent": readRKE2,
}

// process is one below root/proc.
type process struct {
	root, dir, name string
	pid             int
	args            []string
}

func listProcesses(root string) ([]process, error) {
	comms, err := filepath.Glob(filepath.Join(root, "proc/[0-9]*/comm"))
	if err != nil {
		return nil, err
	}
	var list []process
	for _, path := range comms {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // it ended
		}
		p := process{root: root, dir: filepath.Dir(path), name: strings.TrimSpace(string(b))}
		p.pid, _ = strconv.Atoi(filepath.Base(p.dir))
		if b, err := os.ReadFile(filepath.Join(p.dir, "cmdline")); err == nil {
			p.args = strings.Split(strings.TrimRight(string(b), "\x00"), "\x00")
		}
		list = append(list, p)
	}
	slices.SortFunc(list, func(a, b process) int { return cmp.Compare(a.pid, b.pid) })
	return list, nil
}

// readFile reads a file as the process sees it, or the host's where the
// process's root cannot be read.
func (p process) readFile(path string) ([]byte, error) {
	own := filepath.Join(p.dir, "root")
	if _, err := os.Stat(own); err != nil {
		own = p.root
	}
	return os.ReadFile(filepath.Join(own, path))
}

// allowedCPUs is the number of CPUs on which the process may run, 0 if it cannot
// be read (Cpus_allowed_list in proc/PID/status): runtime.NumCPU asks for the
// same.
func (p process) allowedCPUs() int {
	b, err := os.ReadFile(filepath.Join(p.dir, "status"))
	if err != nil {
		return 0
	}
	for line := range bytes.Lines(b) {
		if list, ok := bytes.CutPrefix(line, []byte("Cpus_allowed_list:")); ok {
			return countCPUs(string(list))
		}
	}
	return 0
}

// onlineCPUs is the number of CPUs of the machine, from
// root/sys/devices/system/cpu/online as kube-proxy counts them.
func onlineCPUs(root string) int {
	if b, err := os.ReadFile(filepath.Join(root, "sys/devices/system/cpu/online")); err == nil {
		if n := countCPUs(string(b)); n > 0 {
			return n
		}
	}
	return runtime.NumCPU()
}

// countCPUs counts a list such as "0-3,8" (cpuset(7), list format), 0 if it is
// none.
func countCPUs(list string) int {
	n := 0
	for part := range strings.SplitSeq(strings.TrimSpace(list), ",") {
		first, last, isRange := strings.Cut(part, "-")
		if !isRange {
			last = first
		}
		a, errA := strconv.Atoi(first)
		b, errB := strconv.Atoi(last)
		if errA != nil || errB != nil || b < a {
			return 0
		}
		n += b - a + 1
	}
	return n
}

// kubernetesMinor bounds the minor version of the Kubernetes that the process was
// built from: at least since, less than before unless that is 0. The program
// names its Go modules; where it names no version of Kubernetes, as the
// project's own builds do not, the version of Go bounds it: 1.20 and earlier
// were built with Go 1.15 and earlier, and 1.36 and later with Go 1.26 and later.
func (p process) kubernetesMinor() (since, before int) {
	info, err := buildinfo.ReadFile(filepath.Join(p.dir, "exe"))
	if err != nil {
		return 0, 0
	}
	for _, module := range info.Deps {
		if module.Path != "k8s.io/kubernetes" {
			continue
		}
		version := module.Version
		if module.Replace != nil && strings.HasPrefix(module.Replace.Version, "v1.") {
			version = module.Replace.Version
		}
		if minor, ok := minorVersion(version, "v1."); ok {
			return minor, minor + 1
		}
	}
	goMinor, ok := minorVersion(info.GoVersion, "go1.")
	switch {
	case !ok:
		return 0, 0
	case goMinor < 16:
		return 0, 21
	case goMinor < 26:
		return 21, 36
	}
	return 21, 0
}

func minorVersion(version, prefix string) (int, bool) {
	rest, ok := strings.CutPrefix(version, prefix)
	if !ok {
		return 0, false
	}
	digits := rest[:len(rest)-len(strings.TrimLeft(rest, "0123456789"))]
	n, err := strconv.Atoi(digits)
	return n, err == nil
}

// readKubeProxy reads the file that --config names, inside the process's own
// root, or its flags: kube-proxy ignores its flags if a file is given.
func readKubeProxy(p process) (*advice.KubeProxy, error) {
	k := &advice.KubeProxy{Distribution: advice.Standalone}
	if p.args == nil {
		return k, fmt.Errorf("kube-proxy: the command line of process %d cannot be read; needs root, or CAP_SYS_PTRACE in a container", p.pid)
	}
	return k, readArguments(k, p, "its command line", p.args)
}

// readArguments reads kube-proxy's arguments, which stand in source.
func readArguments(k *advice.KubeProxy, p process, source string, args []string) error {
	flags := parseFlags(args)
	path := flags["config"]
	if path == "" {
		k.Path = source
		return flags.read(k)
	}
	config, err := p.readFile(path)
	if err != nil {
		return fmt.Errorf("kube-proxy's configuration: %w", err)
	}
	return readConfiguration(k, path, config)
}

// readMicroK8s reads the arguments that kubelite gives the kube-proxy inside it
// from a file.
func readMicroK8s(p process) (*advice.KubeProxy, error) {
	k := &advice.KubeProxy{Distribution: advice.MicroK8s}
	path := parseFlags(p.args)["proxy-args-file"]
	if path == "" {
		return nil, nil // a kubelite without kube-proxy
	}
	b, err := p.readFile(path)
	if err != nil {
		return k, fmt.Errorf("the arguments of MicroK8s' kube-proxy: %w", err)
	}
	var args []string
	for line := range strings.Lines(string(b)) {
		if line = strings.TrimSpace(line); !strings.HasPrefix(line, "#") {
			for field := range strings.FieldsSeq(line) {
				args = append(args, unquoted(field))
			}
		}
	}
	return k, readArguments(k, p, path, args)
}

func unquoted(s string) string {
	return strings.NewReplacer(`"`, "", `'`, "").Replace(s)
}
