//go:build privileged

package integration

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/lab"
)

// nodeCacheAddresses are what the stock manifest listens on in iptables mode.
var nodeCacheAddresses = []netip.Addr{lab.LinkLocalDNS4, lab.ClusterDNS4}

// container is what node-cache finds in its container.
type container struct {
	dir  string
	args []string
	env  []string

	noNetAdmin bool
}

// newContainer has the arguments of the stock manifest, and files at other
// places.
func newContainer(t *testing.T) *container {
	t.Helper()
	dir := t.TempDir()
	for _, sub := range []string{"etc/coredns", "etc/kube-dns"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return &container{
		dir: dir,
		args: []string{
			"-localip", lab.LinkLocalDNS4.String() + "," + lab.ClusterDNS4.String(), "-conf", filepath.Join(dir, "etc/Corefile"), "-upstreamsvc", "kube-dns-upstream",
			"-basecorefile", filepath.Join(dir, "etc/coredns/Corefile.base"), "-kubednscm", filepath.Join(dir, "etc/kube-dns"), "-control", "@trackless/control.sock",
		},
		env: []string{
			"KUBE_DNS_UPSTREAM_SERVICE_HOST=" + lab.UpstreamDNS4.String(),
			"KUBE_DNS_SERVICE_HOST=" + lab.ClusterDNS4.String(),
		},
	}
}

func (c *container) write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(c.dir, name), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// stockTemplate is the Corefile of Kubernetes' manifest.
func stockTemplate(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("../../nodecache/testdata/stock.base")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// start runs the program by the name node-cache.
func (c *container) start(t *testing.T, node *lab.Node, args ...string) *lab.Child {
	t.Helper()
	cmd := exec.Command(program, append(c.args, args...)...)
	cmd.Args[0] = "/node-cache"
	cmd.Env = append(os.Environ(), c.env...)
	if c.noNetAdmin {
		// setpriv keeps no argv[0], so that the verb has to say it.
		without := []string{"--bounding-set", "-net_admin,-sys_admin", "--inh-caps", "-net_admin,-sys_admin", program, "node-cache"}
		cmd = exec.Command("setpriv", append(without, cmd.Args[1:]...)...)
		cmd.Env = append(os.Environ(), c.env...)
	}
	child, err := node.Namespace.Start("node-cache", cmd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := child.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			t.Error(err)
		}
		if t.Failed() {
			t.Log(child.Output())
		}
	})
	return child
}

// answeredBy waits until somebody answers pods and the node at the addresses.
func answeredBy(t *testing.T, node *lab.Node, who lab.Responder, addrs ...netip.Addr) {
	t.Helper()
	eventually(t, fmt.Sprintf("%s answers everybody", who), func() error {
		for _, from := range []*lab.Namespace{node.Pods[0].Namespace, node.Namespace} {
			for _, addr := range addrs {
				for _, protocol := range []lab.Protocol{lab.UDP, lab.TCP} {
					if got := probe(t, from, addr, protocol); got != who {
						return fmt.Errorf("%s %s from %s: answered by %q", protocol, addr, from.Name(), got)
					}
				}
			}
		}
		return nil
	})
}

// get fetches a page inside the namespace.
func get(t *testing.T, ns *lab.Namespace, address, path string) (string, error) {
	t.Helper()
	var page []byte
	err := ns.Do(func() error {
		conn, err := net.DialTimeout("tcp", address, 5*time.Second)
		if err != nil {
			return err
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
			return err
		}
		if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.0\r\n\r\n", path); err != nil {
			return err
		}
		page, err = io.ReadAll(conn)
		return err
	})
	return string(page), err
}

func TestNodeCacheIsReplaced(t *testing.T) {
	node := newNode(t)
	before := state(t, node)
	c := newContainer(t)
	c.write(t, "etc/coredns/Corefile.base", stockTemplate(t))
	child := c.start(t, node)
	answeredBy(t, node, lab.Trackless, nodeCacheAddresses...)

	// Its lease is the default one, which a stall of the machine ends.
	eventually(t, "queries leave no entry", func() error {
		run(t, node.Namespace, "conntrack", "-F")
		for _, addr := range nodeCacheAddresses {
			for _, protocol := range []lab.Protocol{lab.UDP, lab.TCP} {
				if who, err := ask(t, node.Pods[0].Namespace, addr, protocol); who != lab.Trackless || err != nil {
					return fmt.Errorf("%s %s: answered by %q, %w", protocol, addr, who, err)
				}
			}
		}
		if entries := dnsEntries(t, node); len(entries) > 0 {
			return fmt.Errorf("entries with a listen address:\n%s", strings.Join(entries, ""))
		}
		return nil
	})
	if page, err := get(t, node.Namespace, "169.254.20.10:8080", "/health"); err != nil || !strings.Contains(page, "200 OK") {
		t.Errorf("health: %s, %v", page, err)
	}
	for _, address := range []string{"127.0.0.1:9353", "127.0.0.1:9253"} {
		eventually(t, "the page at "+address, func() error {
			page, err := get(t, node.Namespace, address, "/metrics")
			if err != nil {
				return err
			}
			for _, want := range []string{
				`coredns_nodecache_setup_errors_total{errortype="configmap"} 0`, `coredns_nodecache_setup_errors_total{errortype="iptables"} 0`,
				`coredns_nodecache_setup_errors_total{errortype="iptables_lock"} 0`, `coredns_nodecache_setup_errors_total{errortype="interface_add"} 0`,
				`coredns_nodecache_setup_errors_total{errortype="interface_check"} 0`, `coredns_cache_entries{`, `coredns_notrack_attached{address="10.96.0.10"} 1`,
			} {
				if !strings.Contains(page, want) {
					return fmt.Errorf("no %s in\n%s", want, page)
				}
			}
			return nil
		})
	}
	if written, err := os.ReadFile(filepath.Join(c.dir, "etc/Corefile")); err != nil || !strings.Contains(string(written), "forward . 10.96.0.99") {
		t.Errorf("the Corefile is %s, %v", written, err)
	}
	if err := child.Stop(patience); err != nil {
		t.Fatal(err)
	}
	if diff := before.Diff(state(t, node)); diff != "" {
		t.Errorf("left behind (-before +after):\n%s", diff)
	}
	answeredBy(t, node, lab.KubeDNS, nodeCacheAddresses...) // link-local by the failover table
}

// A minimal template, for what does not depend on the stock one.
const minimalTemplate = `.:53 {
    errors
    cache 30
    bind __PILLAR__LOCAL__DNS__ __PILLAR__DNS__SERVER__
    forward . __PILLAR__CLUSTER__DNS__
    reload
}
`

func TestNodeCacheFlags(t *testing.T) {
	onNode := func(t *testing.T, node *lab.Node, link string, want bool) {
		t.Helper()
		// Where the kernel has no dummy, lo carries the addresses.
		addresses := run(t, node.Namespace, "ip", "-o", "address")
		for _, a := range nodeCacheAddresses {
			if got := regexp.MustCompile(`(` + link + `|lo) +inet ` + a.String()).MatchString(addresses); got != want {
				t.Errorf("%s on %s: %t, want %t\n%s", a, link, got, want, addresses)
			}
		}
	}
	for _, tc := range []struct {
		name string
		args []string
		// The addresses at which we answer, with and without rules, and what
		// is left at the end.
		serves  []netip.Addr
		rules   bool
		link    string
		remains bool
		before  func(t *testing.T, node *lab.Node)
	}{
		{name: "defaults", serves: nodeCacheAddresses, rules: true, link: "nodelocaldns"},
		{name: "skipteardown", args: []string{"-skipteardown=true"}, serves: nodeCacheAddresses, rules: true, link: "nodelocaldns", remains: true},
		{name: "setupiptables=false", args: []string{"-setupiptables=false"}, serves: []netip.Addr{lab.LinkLocalDNS4}, link: "nodelocaldns"},
		{name: "setupiptables=false and skipteardown", args: []string{"-setupiptables=false", "-skipteardown"}, serves: []netip.Addr{lab.LinkLocalDNS4}, link: "nodelocaldns", remains: true},
		{name: "setupinterface=false", args: []string{"-setupinterface=false"}, serves: nodeCacheAddresses, rules: true, link: "dns0", remains: true,
			before: func(t *testing.T, node *lab.Node) {
				run(t, node.Namespace, "ip", "link", "add", "dns0", "type", "bridge")
				for _, a := range nodeCacheAddresses {
					run(t, node.Namespace, "ip", "address", "add", a.String()+"/32", "dev", "dns0")
				}
			}},
		{name: "a link that is there already", args: []string{"-interfacename", "dns0"}, serves: nodeCacheAddresses, rules: true, link: "dns0",
			before: func(t *testing.T, node *lab.Node) {
				run(t, node.Namespace, "ip", "link", "add", "dns0", "type", "bridge")
			}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			node := newNode(t)
			if tc.before != nil {
				tc.before(t, node)
			}
			c := newContainer(t)
			c.write(t, "etc/coredns/Corefile.base", minimalTemplate)
			child := c.start(t, node, append(tc.args, "-metrics-listen-address", "")...)
			answeredBy(t, node, lab.Trackless, tc.serves...)
			onNode(t, node, tc.link, true)
			if got := instanceTable.MatchString(run(t, node.Namespace, "nft", "list", "tables")); got != tc.rules {
				t.Errorf("rules: %t, want %t", got, tc.rules)
			}
			if err := child.Stop(patience); err != nil {
				t.Fatal(err)
			}
			onNode(t, node, tc.link, tc.remains)
			if tables := run(t, node.Namespace, "nft", "list", "tables"); instanceTable.MatchString(tables) {
				t.Errorf("rules are left:\n%s", tables)
			}
			answeredBy(t, node, lab.KubeDNS, lab.ClusterDNS4)
		})
	}
}

// Without CAP_NET_ADMIN node-cache says so, counts it, and serves.
func TestNodeCacheWithoutNetAdmin(t *testing.T) {
	there := func(t *testing.T, node *lab.Node) {
		run(t, node.Namespace, "ip", "link", "add", "nodelocaldns", "type", "bridge")
		run(t, node.Namespace, "ip", "link", "set", "nodelocaldns", "up")
		for _, a := range nodeCacheAddresses {
			run(t, node.Namespace, "ip", "address", "add", a.String()+"/32", "dev", "nodelocaldns")
		}
	}
	for _, tc := range []struct {
		name, bind string
		args       []string
		before     func(*testing.T, *lab.Node)
		says       string // beginning and capability of a line
		iptables   int    // errors that are counted
		added      int
	}{
		{"no rules, and an address that is nowhere", "127.0.0.1", []string{"-setupiptables=false"}, nil, "-setupinterface: create link nodelocaldns", 0, 1},
		{"no rules, and the addresses are there", "127.0.0.1 169.254.20.10", []string{"-setupiptables=false"}, there, "", 0, 0},
		{"all defaults", "127.0.0.1", nil, there, "-setupiptables: nftables: ", 1, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			testns.Program(t, "setpriv")
			node := newNode(t)
			if tc.before != nil {
				tc.before(t, node)
			}
			c := newContainer(t)
			c.noNetAdmin = true
			c.write(t, "etc/coredns/Corefile.base", ".:53 {\n    bind "+tc.bind+"\n    whoami\n}\n")
			child := c.start(t, node, append(tc.args, "-metrics-listen-address", "127.0.0.1:9353")...)
			eventually(t, "it serves", func() error {
				return node.Namespace.Do(func() error {
					_, _, err := new(dns.Client).Exchange(new(dns.Msg).SetQuestion("example.org.", dns.TypeA), "127.0.0.1:53")
					return err
				})
			})
			page, err := get(t, node.Namespace, "127.0.0.1:9353", "/metrics")
			if err != nil {
				t.Fatal(err)
			}
			for kind, want := range map[string]int{"iptables": tc.iptables, "interface_add": tc.added} {
				if line := fmt.Sprintf("coredns_nodecache_setup_errors_total{errortype=%q} %d\n", kind, want); !strings.Contains(page, line) {
					t.Errorf("no %q in the metrics", line)
				}
			}
			output := child.Output()
			if tc.says == "" && strings.Contains(output, "[ERROR]") || tc.says != "" && !regexp.MustCompile(regexp.QuoteMeta(tc.says)+".*needs CAP_NET_ADMIN").MatchString(output) {
				t.Errorf("want %q:\n%s", tc.says, output)
			}
		})
	}
}

func TestNodeCacheReadsItsFiles(t *testing.T) {
	for _, tc := range []struct {
		name  string
		files map[string]string
		args  []string // after those of the manifest
		log   string
	}{
		{name: "no template: the Corefile is taken as it is",
			files: map[string]string{"etc/Corefile": fmt.Sprintf(".:53 {\n bind %s %s\n cache 30\n forward . %s\n}\n", lab.LinkLocalDNS4, lab.ClusterDNS4, lab.UpstreamDNS4)},
			log:   "no template"},
		{name: "the Corefile cannot be written", files: map[string]string{"etc/coredns/Corefile.base": minimalTemplate},
			args: []string{"-conf", "/proc/trackless/Corefile"}, log: "served from memory"},
		{name: "a stub domain", files: map[string]string{"etc/coredns/Corefile.base": strings.Replace(minimalTemplate, "__PILLAR__CLUSTER__DNS__", "127.0.0.9", 1),
			"etc/kube-dns/stubDomains": fmt.Sprintf(`{"lab.svc.cluster.local": [%q]}`, lab.UpstreamDNS4.String())}, log: "with 1 stub domains"},
		{name: "upstream servers", files: map[string]string{"etc/coredns/Corefile.base": strings.Replace(minimalTemplate, "__PILLAR__CLUSTER__DNS__", "__PILLAR__UPSTREAM__SERVERS__", 1),
			"etc/kube-dns/upstreamNameservers": fmt.Sprintf(`[%q]`, lab.UpstreamDNS4.String())}, log: "forward . " + lab.UpstreamDNS4.String()},
		{name: "a ConfigMap of kube-dns that makes no sense", files: map[string]string{"etc/coredns/Corefile.base": minimalTemplate, "etc/kube-dns/stubDomains": "{"},
			log: "stubDomains: not the JSON"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			node := newNode(t)
			c := newContainer(t)
			for name, text := range tc.files {
				c.write(t, name, text)
			}
			child := c.start(t, node, append(tc.args, "-metrics-listen-address", "")...)
			answeredBy(t, node, lab.Trackless, nodeCacheAddresses...)
			eventually(t, "the log has "+tc.log, func() error {
				if !strings.Contains(child.Output(), tc.log) {
					return errNotYet{child.Output()}
				}
				return nil
			})
		})
	}
}

func TestNodeCacheFollowsItsConfigMaps(t *testing.T) {
	node := newNode(t)
	c := newContainer(t)
	// As kubelet mounts a ConfigMap: users see links through ..data.
	publish := func(version, template string) {
		t.Helper()
		dir := filepath.Join(c.dir, "etc/coredns")
		if err := os.Mkdir(filepath.Join(dir, version), 0o755); err != nil {
			t.Fatal(err)
		}
		c.write(t, filepath.Join("etc/coredns", version, "Corefile.base"), template)
		if err := errors.Join(os.Symlink(version, filepath.Join(dir, "..tmp")), os.Rename(filepath.Join(dir, "..tmp"), filepath.Join(dir, "..data"))); err != nil {
			t.Fatal(err)
		}
	}
	publish("..1", minimalTemplate)
	if err := os.Symlink("..data/Corefile.base", filepath.Join(c.dir, "etc/coredns/Corefile.base")); err != nil {
		t.Fatal(err)
	}
	c.start(t, node, "-metrics-listen-address", "")
	answeredBy(t, node, lab.Trackless, nodeCacheAddresses...)

	extra := "\nextra.test:53 {\n    bind __PILLAR__LOCAL__DNS__\n    template IN A {\n        answer \"{{ .Name }} 60 IN A 192.0.2.7\"\n    }\n}\n"
	publish("..2", minimalTemplate+extra)
	eventually(t, "the new zone is answered", func() error {
		response, err := node.Pods[0].Query(t.Context(), lab.UDP, lab.ClusterDNS4, new(dns.Msg).SetQuestion("www.extra.test.", dns.TypeA))
		if err != nil {
			return err
		}
		if len(response.Answer) != 1 || !strings.Contains(response.Answer[0].String(), "192.0.2.7") {
			return fmt.Errorf("%v", response)
		}
		return nil
	})
	answeredBy(t, node, lab.Trackless, nodeCacheAddresses...)
}

// The Service for misses is made again with another address: the environment has
// the former one for as long as the container lives.
func TestNodeCacheFollowsItsUpstream(t *testing.T) {
	for _, tc := range []struct {
		name string
		env  []string
	}{
		{"the environment has the former address", nil},
		{"the Service was not there when the container started", []string{"KUBE_DNS_UPSTREAM_SERVICE_HOST="}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			node := newNode(t)
			c := newContainer(t)
			c.env = append(c.env, tc.env...)
			c.write(t, "etc/coredns/Corefile.base", minimalTemplate)
			child := c.start(t, node, "-metrics-listen-address", "")
			answeredBy(t, node, lab.Trackless, nodeCacheAddresses...)

			services := slices.Clone(node.Services)
			services[1].ClusterIPs = []netip.Addr{netip.MustParseAddr("10.96.0.98")}
			if err := node.KubeProxy.Apply(services...); err != nil {
				t.Fatal(err)
			}
			asked := 0
			eventually(t, "misses are answered by the new address", func() error {
				asked++
				name := fmt.Sprintf("svc-3-%d-%d.lab.svc.cluster.local.", asked/250, asked%250)
				response, err := node.Pods[0].Query(t.Context(), lab.UDP, lab.ClusterDNS4, new(dns.Msg).SetQuestion(name, dns.TypeA))
				if err != nil {
					return err
				}
				if len(response.Answer) != 1 {
					return fmt.Errorf("%v", response)
				}
				written, err := os.ReadFile(filepath.Join(c.dir, "etc/Corefile"))
				if err == nil && !strings.Contains(string(written), "forward . 10.96.0.98") {
					err = errNotYet{string(written)}
				}
				return err
			})
			eventually(t, "the log says so", func() error {
				if !strings.Contains(child.Output(), "the Service kube-dns-upstream has the address 10.96.0.98 (says kube-proxy's rules)") {
					return errNotYet{child.Output()}
				}
				return nil
			})
		})
	}
}

func TestNodeCacheRefuses(t *testing.T) {
	node := newNode(t)
	for _, tc := range []struct {
		name     string
		args     []string
		template string
		status   string
		want     string
	}{
		{"an unknown flag", []string{"-nosuch"}, minimalTemplate, "exit status 2", "-nosuch"},
		{"an argument", []string{"now"}, minimalTemplate, "exit status 2", `unexpected argument "now"`},
		{"TLS", []string{"-tls-enabled=true"}, minimalTemplate, "exit status 2", "-tls-enabled"},
		{"a Service that is not there", []string{"-upstreamsvc", "nosuch"}, minimalTemplate, "exit status 1", "NOSUCH_SERVICE_HOST"},
		{"an upstream that is a listen address", []string{"-upstreamsvc", "kube-dns"}, minimalTemplate, "exit status 1", "one of -localip"},
		{"a plugin that is not compiled in", nil, ".:53 {\n    trace\n}\n", "exit status 1", "Unknown directive 'trace'"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := newContainer(t)
			c.write(t, "etc/coredns/Corefile.base", tc.template)
			child := c.start(t, node, append(tc.args, "-metrics-listen-address", "")...)
			select {
			case <-child.Done():
			case <-time.After(patience):
				t.Fatal("it runs")
			}
			if err := child.Stop(time.Second); err == nil || !strings.Contains(err.Error(), tc.status) || !strings.Contains(child.Output(), tc.want) {
				t.Errorf("%v\n%s", err, child.Output())
			}
		})
	}
	if addresses := run(t, node.Namespace, "ip", "-o", "address"); strings.Contains(addresses, "169.254.20.10") {
		t.Errorf("an address is left:\n%s", addresses)
	}
}
