// Package source makes the Corefile of what node-cache was configured by, follows
// changes of its files, and puts the addresses on the node where notrack does not.
package source

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/coredns/caddy"
	"github.com/coredns/caddy/caddyfile"
	clog "github.com/coredns/coredns/plugin/pkg/log"

	"github.com/trackless-dns/trackless/agent/devices"
	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/hostrules"
	"github.com/trackless-dns/trackless/kubeapi"
	"github.com/trackless-dns/trackless/nodecache"
	"github.com/trackless-dns/trackless/plugin/upstream"
	"github.com/trackless-dns/trackless/server"
)

// syncInterval is the time between two readings of the mounted ConfigMaps, as
// node-cache has it.
const syncInterval = 10 * time.Second

// Source makes the Corefile of node-cache's files and follows their changes.
//
// mu is held from a change of the text until the running server has changed with
// it. The reload plugin calls Load, which waits for mu: so two reloads never
// overlap.
type Source struct {
	options    *nodecache.Options
	port       uint16
	errors     *errorCount
	directives []string
	anySource  bool

	mu            sync.Mutex
	inputs        inputs
	corefile      string // rendered from the template; empty without one
	lastComplaint string // is logged once
	late          bool   // it has changed before anything ran
}

// inputs are what a Corefile is rendered from.
type inputs struct {
	template []byte // nil if there is none
	kubeDNS  nodecache.KubeDNS
	upstream netip.Addr
}

// New makes a source of what node-cache was configured by. Server blocks that name no
// port get this one; directives is the plugin list.
func New(o *nodecache.Options, port uint16, directives []string) *Source {
	return &Source{options: o, port: port, directives: directives, errors: newErrorCount()}
}

// Start runs before the first Corefile is loaded.
func (n *Source) Start() error {
	serveMetrics(n.options.Metrics)
	if n.options.KubeDNS == "" {
		if _, err := os.Stat(nodecache.DefaultKubeDNS); err == nil {
			n.options.KubeDNS = nodecache.DefaultKubeDNS
		}
	}
	if n.options.SetupIPTables && !n.mayChangeRules() {
		n.options.SetupIPTables = false
	}
	if n.options.SetupIPTables {
		bridge, err := devices.BridgedUplink()
		if err != nil {
			return err
		}
		if n.anySource = bridge != ""; n.anySource {
			clog.Warningf("the uplink %s is a bridge: whoever asks is served, as by node-cache; a Corefile with `notrack { sources CIDR... }` says otherwise", bridge)
		}
	} else if n.options.SetupInterface {
		newLink(n.options, n.errors).start()
	}
	if n.options.SkipTeardown {
		clog.Info("-skipteardown: link and addresses stay at the end; the rules go, so that kube-dns answers until the next start")
	}
	n.inputs.upstream = n.options.UpstreamFromEnvironment()
	if template, err := os.ReadFile(n.options.BaseCorefile); err == nil && nodecache.UsesUpstream(template) {
		if err := n.asksItself(n.inputs.upstream); err != nil {
			return err
		}
		n.followUpstream()
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.update(n.read()); err != nil {
		return err
	}
	if n.corefile == "" {
		clog.Warningf("no template %s; %s is served as it is", n.options.BaseCorefile, n.options.Corefile)
		n.errors.count(errorConfigMap)
	}
	go n.follow()
	return nil
}

// upstreamPatience bounds the wait for a Service that was not there when kubelet
// made the environment.
const upstreamPatience = 10 * time.Second

// followUpstream follows the Service of -upstreamsvc, until the process ends. It
// returns when an address is known.
func (n *Source) followUpstream() {
	known, once := make(chan struct{}), sync.Once{}
	go upstream.FollowService(context.Background(), kubeapi.Namespace("/"), n.options.UpstreamService, func(addrs []netip.AddrPort, by string) {
		n.upstreamFound(addrs, by)
		once.Do(func() { close(known) })
	})
	if n.inputs.upstream.IsValid() {
		return
	}
	select {
	case <-known:
	case <-time.After(upstreamPatience):
	}
}

// upstreamFound takes an address of the Service: of those of both families the
// one like before.
func (n *Source) upstreamFound(addrs []netip.AddrPort, by string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	now := n.inputs
	i := slices.IndexFunc(addrs, func(a netip.AddrPort) bool { return a.Addr().Is4() == now.upstream.Is4() })
	if i < 0 || !now.upstream.IsValid() {
		i = 0
	}
	if addrs[i].Addr() == now.upstream {
		return
	}
	if err := n.asksItself(addrs[i].Addr()); err != nil {
		n.complain(fmt.Errorf("the upstream stays as it was: %w", err))
		return
	}
	clog.Infof("the Service %s has the address %s (says %s)", n.options.UpstreamService, addrs[i].Addr(), by)
	now.upstream = addrs[i].Addr()
	n.change(now, true)
}

// asksItself refuses an upstream that is an address of ours: every miss would come
// back to us.
func (n *Source) asksItself(upstream netip.Addr) error {
	if !slices.Contains(n.options.LocalIPs, upstream) {
		return nil
	}
	return fmt.Errorf("-upstreamsvc %s: its address %s is one of -localip, so that every miss would come back to this process; name a Service of its own for the same pods, as kube-dns-upstream of node-cache's manifest", n.options.UpstreamService, upstream)
}

// mayChangeRules reports whether the process may do what -setupiptables asks for.
// Without the capability node-cache logs that, counts it and serves all the same.
func (n *Source) mayChangeRules() bool {
	_, err := hostrules.Generation(hostrules.Config{})
	if !errors.Is(err, iptables.ErrPermission) {
		return true
	}
	n.errors.count(errorIPTables)
	clog.Errorf("-setupiptables: %v; DNS is served, and goes through conntrack as it does without a node-local cache: add NET_ADMIN to the container's capabilities, or set -setupiptables=false", err)
	return false
}

// read reads the files. A file that cannot be read counts as unchanged.
func (n *Source) read() inputs {
	now := n.inputs
	template, err := os.ReadFile(n.options.BaseCorefile)
	switch {
	case err == nil:
		now.template = template
	case !errors.Is(err, fs.ErrNotExist):
		n.complain(fmt.Errorf("read the template of the Corefile: %w", err))
	}
	if n.options.KubeDNS != "" {
		if kubeDNS, err := nodecache.ReadKubeDNS(n.options.KubeDNS); err != nil {
			n.complain(fmt.Errorf("the ConfigMap of kube-dns stays as it was: %w", err))
		} else {
			now.kubeDNS = kubeDNS
		}
	}
	return now
}

// complain logs and counts an error that is not the last one again. mu is held.
func (n *Source) complain(err error) {
	if err.Error() == n.lastComplaint {
		return
	}
	n.lastComplaint = err.Error()
	n.errors.count(errorConfigMap)
	clog.Error(err)
}

// update makes a Corefile of the inputs and writes it. mu is held.
func (n *Source) update(now inputs) error {
	n.inputs = now
	if now.template == nil {
		return nil
	}
	text, err := n.options.Render(now.template, now.kubeDNS, now.upstream, n.port)
	if err != nil {
		return err
	}
	if text, err = n.options.Insert(n.options.Corefile, text, n.directives, n.anySource); err != nil {
		return fmt.Errorf("%s: %w", n.options.BaseCorefile, err)
	}
	if text == n.corefile {
		return nil
	}
	n.corefile = text
	if err := os.WriteFile(n.options.Corefile, []byte(text), 0o644); err != nil { // #nosec G306 -- no secret is in it
		clog.Warningf("the Corefile is served from memory: %v", err)
	}
	clog.Infof("Corefile with %d stub domains:\n%s", len(now.kubeDNS.StubDomains), text)
	return nil
}

// Load returns the Corefile that is to run.
func (n *Source) Load(serverType string) (caddy.Input, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.corefile != "" {
		return n.input(serverType, n.corefile), nil
	}
	input, err := server.Loader(n.options.Corefile)(serverType)
	if err != nil {
		return nil, err
	}
	text, err := n.options.Insert(input.Path(), string(input.Body()), n.directives, n.anySource)
	if err != nil {
		return nil, err
	}
	return n.input(serverType, text), nil
}

func (n *Source) input(serverType, text string) caddy.Input {
	return caddy.CaddyfileInput{Contents: []byte(text), Filepath: n.options.Corefile, ServerTypeName: serverType}
}

// follow reads the files from time to time, until the process ends.
func (n *Source) follow() {
	for range time.Tick(syncInterval) {
		n.mu.Lock()
		if now := n.read(); !reflect.DeepEqual(now, n.inputs) {
			n.change(now, n.options.ReloadWithSignal || n.reloads())
		} else if n.late {
			n.reload()
		}
		n.mu.Unlock()
	}
}

// change renders again and, if asked to, reloads. mu is held.
func (n *Source) change(now inputs, reload bool) {
	before := n.corefile
	if err := n.update(now); err != nil {
		n.complain(fmt.Errorf("the Corefile stays as it was: %w", err))
		return
	}
	if n.corefile != before && reload {
		n.reload()
	}
}

// reload replaces the running server. mu is held.
func (n *Source) reload() {
	instances := caddy.Instances()
	if n.late = len(instances) == 0; n.late {
		return
	}
	running := instances[0]
	if _, err := running.Restart(n.input(running.Caddyfile().ServerType(), n.corefile)); err != nil {
		clog.Errorf("the Corefile has changed, and what ran before goes on: %v", err)
	}
}

// reloads reports whether the running Corefile has the reload plugin: without it,
// nobody expects a change to take effect.
func (n *Source) reloads() bool {
	for _, i := range caddy.Instances() {
		input := i.Caddyfile()
		blocks, err := caddyfile.Parse(input.Path(), bytes.NewReader(input.Body()), nil)
		if err != nil {
			continue // caddy has parsed it before
		}
		if slices.ContainsFunc(blocks, func(b caddyfile.ServerBlock) bool { return len(b.Tokens["reload"]) > 0 }) {
			return true
		}
	}
	return false
}
