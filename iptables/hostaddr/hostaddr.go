// Package hostaddr puts the listen addresses on this node, so that an untracked
// packet to them is delivered locally.
//
// They go on a dummy link of their own, or on lo if the kernel has no dummy. They must
// never become the source address of other traffic. So IPv4 addresses have scope host,
// and IPv6 addresses are deprecated from the start (preferred lifetime 0). IPv6
// addresses also skip duplicate address detection, which on some links would make them
// unusable for a second. Flows of the node to them have the node's usual source, see
// route.go.
//
// An address that stays without the rules does no harm: kube-proxy rewrites queries
// before the routing decision.
package hostaddr

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/jsimonetti/rtnetlink/v2"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/iptables"
)

// DefaultLink is the name of the link. Kubernetes' node-cache uses the same name, so
// that its link is taken over.
const DefaultLink = "nodelocaldns"

const loopback = "lo"

// Config says where the addresses go. The zero value is the network namespace of this
// process.
type Config struct {
	// NetNS is a file descriptor of a network namespace; 0 is our own.
	NetNS int

	// Keep makes Remove leave link and addresses in place.
	Keep bool

	// Claims returns which addresses others on this node use. Nil: this is not
	// known. Then Host takes over no addresses from other links, and removes its own
	// without asking.
	Claims func() (iptables.Claims, error)
	// Log, if not nil, logs which addresses are taken over, and which stay for
	// others.
	Log func(format string, args ...any)

	// kind is the type of link to create; tests on kernels without dummy use
	// another one.
	kind string
}

// Host holds the listen addresses of one process on this node. Its methods are
// not safe for concurrent use. File release.go removes them.
type Host struct {
	cfg  Config
	link string

	device string // where the addresses are: link, or lo; empty before the first Ensure
	ours   bool   // the link may be deleted with its addresses
	held   []netip.Addr

	rerouted map[netip.Addr]time.Time // by PreferSource
}

// New returns a Host for the link of that name. It changes nothing. With an empty name
// another program manages the addresses: Ensure only checks that they are there.
func New(cfg Config, link string) *Host {
	if cfg.kind == "" {
		cfg.kind = "dummy"
	}
	return &Host{cfg: cfg, link: link, rerouted: map[netip.Addr]time.Time{}}
}

// Link returns the name that New was given.
func (h *Host) Link() string { return h.link }

// Device returns the name of the device that carries the addresses.
func (h *Host) Device() string { return h.device }

// Ensure adds the addresses that are missing. It takes over addresses that are on the
// link, or that an earlier instance left on lo or on a link with another name. It
// fails with an [iptables.HeldError], and changes nothing, if another interface holds
// one of them, or if one is an address of the node itself.
func (h *Host) Ensure(addrs []netip.Addr) (err error) {
	conn, err := h.open()
	if err != nil {
		return err
	}
	defer conn.close()
	if err := h.resolveHolders(conn, addrs); err != nil {
		return err
	}
	present, names := conn.present, conn.names
	if h.link == "" {
		return allPresent(addrs, present)
	}

	createdLink := false
	if h.device == "" || !slices.Contains(mapValues(names), h.device) {
		createdLink, err = h.findDevice(conn, names)
		if err != nil {
			return err
		}
		if err = conn.readLinks(); err != nil {
			return err
		}
		names = conn.names
	}
	index := indexOf(names, h.device)
	if !conn.up[index] {
		// A link that is up needs no change, and so no capability.
		if err := conn.setUp(index, h.device); err != nil {
			return err
		}
	}
	var added []netip.Addr
	defer func() {
		if err == nil {
			return
		}
		for _, a := range added {
			if delErr := conn.deleteAddress(index, a); delErr != nil {
				err = errors.Join(err, fmt.Errorf("undo: remove address %s from %s: %w", a, h.device, explain(delErr)))
			}
			err = errors.Join(err, conn.deleteRoutes(index, a))
		}
		if createdLink {
			if delErr := conn.deleteLink(index); delErr != nil {
				err = errors.Join(err, fmt.Errorf("undo: delete link %s: %w", h.device, explain(delErr)))
			}
			h.device, h.ours = "", false
		}
	}()
	for _, a := range addrs {
		if onLoopbackAlways(a) {
			continue
		}
		// We can serve without a route of ours. The next PreferSource tries again
		// and returns the error.
		_, _ = conn.preferSource(index, a, addrs)
		if !slices.ContainsFunc(present, func(p address) bool { return p.addr == a && p.index == index }) {
			if err := conn.addAddress(index, a); err != nil {
				return errors.Join(fmt.Errorf("add address %s to %s: %w", a, h.device, explainAdd(h.device, a, err)), conn.deleteRoutes(index, a))
			}
			added = append(added, a)
		}
		if !slices.Contains(h.held, a) {
			h.held = append(h.held, a)
		}
	}
	conn.replaceKernelRoutes(index, added, addrs)
	return nil
}

// Missing returns the addresses that are not where Ensure puts them.
func (h *Host) Missing(addrs []netip.Addr) ([]netip.Addr, error) {
	conn, err := h.open()
	if err != nil {
		return nil, err
	}
	defer conn.close()
	present, names := conn.present, conn.names
	var out []netip.Addr
	for _, a := range addrs {
		there := slices.ContainsFunc(present, func(p address) bool {
			return p.addr == a && (h.link == "" || names[p.index] == h.device)
		})
		if !there && !onLoopbackAlways(a) {
			out = append(out, a)
		}
	}
	return out, nil
}

// Down reports whether the device of the addresses is down. Ensure sets it up, so
// another program or an operator has set it down.
func (h *Host) Down() (bool, error) {
	if h.device == "" {
		return false, nil
	}
	conn, err := h.open()
	if err != nil {
		return false, err
	}
	defer conn.close()
	index := indexOf(conn.names, h.device)
	return index != 0 && !conn.up[index], nil
}

// SetUp sets the device of the addresses up. When a device goes down the kernel
// removes its IPv6 addresses and the routes of both families. When it comes up the
// kernel adds only its own routes to IPv4 addresses. Call Ensure and PreferSource for
// the rest.
func (h *Host) SetUp() error {
	conn, err := h.open()
	if err != nil {
		return err
	}
	defer conn.close()
	clear(h.rerouted) // these times are from before the device went down
	return conn.setUp(indexOf(conn.names, h.device), h.device)
}

// findDevice decides where the addresses go and reports whether it made a link.
func (h *Host) findDevice(conn *conn, names map[uint32]string) (created bool, err error) {
	if index := indexOf(names, h.link); index != 0 {
		kind, err := conn.linkKind(index)
		if err != nil {
			return false, err
		}
		// We or Kubernetes' node-cache made a dummy with this name, for this
		// purpose. A link of another kind is another program's.
		h.device, h.ours = h.link, kind == h.cfg.kind
		return false, nil
	}
	err = conn.createLink(h.link, h.cfg.kind)
	switch {
	case errors.Is(err, unix.EOPNOTSUPP):
		h.device, h.ours = loopback, false
		return false, nil
	case err != nil:
		return false, fmt.Errorf("create link %s: %w", h.link, explain(err))
	}
	h.device, h.ours = h.link, true
	return true, nil
}

func allPresent(addrs []netip.Addr, present []address) error {
	for _, a := range addrs {
		if onLoopbackAlways(a) || slices.ContainsFunc(present, func(p address) bool { return p.addr == a }) {
			continue
		}
		return fmt.Errorf("address %s: %w: add it, or let notrack add it (drop `interface none`)", a, errAbsent)
	}
	return nil
}

// errAbsent says that `interface none` asks for an address that is not there.
var errAbsent = errors.New("it is on no interface of this host")

// onLoopbackAlways reports whether every host has the address.
func onLoopbackAlways(a netip.Addr) bool { return a.IsLoopback() }

func mapValues(m map[uint32]string) []string {
	out := make([]string, 0, len(m))
	for _, v := range m {
		out = append(out, v)
	}
	return out
}

func indexOf(names map[uint32]string, name string) uint32 {
	for index, n := range names {
		if n == name {
			return index
		}
	}
	return 0
}

func explain(err error) error {
	if errors.Is(err, unix.EPERM) && !errors.Is(err, iptables.ErrPermission) {
		return fmt.Errorf("%w (%w)", err, iptables.ErrPermission)
	}
	return err
}

// conn is a connection to route netlink: package rtnetlink for links, and our own
// encoding for addresses, since that package has neither lifetimes nor the protocol.
type conn struct {
	rt  *rtnetlink.Conn
	raw *netlink.Conn

	// Addresses and links when open was called.
	present []address
	names   map[uint32]string // of links, by index
	up      map[uint32]bool   // set up, with or without a carrier
}

// open opens a connection and reads addresses and links.
func (h *Host) open() (*conn, error) {
	c, err := h.dial()
	if err != nil {
		return nil, err
	}
	if c.present, err = c.addresses(); err == nil {
		err = c.readLinks()
	}
	if err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

func (h *Host) dial() (*conn, error) {
	cfg := &netlink.Config{NetNS: h.cfg.NetNS}
	rt, err := rtnetlink.Dial(cfg)
	if err != nil {
		return nil, fmt.Errorf("open a route netlink socket: %w", err)
	}
	raw, err := netlink.Dial(unix.NETLINK_ROUTE, cfg)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open a route netlink socket: %w", err), rt.Close())
	}
	return &conn{rt: rt, raw: raw}, nil
}

func (c *conn) close() {
	_ = c.rt.Close()
	_ = c.raw.Close()
}

func (c *conn) readLinks() error {
	links, err := c.rt.Link.List()
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	c.names, c.up = make(map[uint32]string, len(links)), make(map[uint32]bool, len(links))
	for _, l := range links {
		if l.Attributes != nil {
			c.names[l.Index], c.up[l.Index] = l.Attributes.Name, l.Flags&unix.IFF_UP != 0
		}
	}
	return nil
}

func (c *conn) linkKind(index uint32) (string, error) {
	l, err := c.rt.Link.Get(index)
	if err != nil {
		return "", fmt.Errorf("read link %d: %w", index, err)
	}
	if l.Attributes == nil || l.Attributes.Info == nil {
		return "", nil
	}
	return l.Attributes.Info.Kind, nil
}

func (c *conn) createLink(name, kind string) error {
	err := c.rt.Link.New(&rtnetlink.LinkMessage{
		Family: unix.AF_UNSPEC,
		Flags:  unix.IFF_UP,
		Change: unix.IFF_UP,
		Attributes: &rtnetlink.LinkAttributes{
			Name: name,
			Info: &rtnetlink.LinkInfo{Kind: kind},
		},
	})
	return err
}

func (c *conn) setUp(index uint32, name string) error {
	err := c.rt.Link.Set(&rtnetlink.LinkMessage{
		Family: unix.AF_UNSPEC, Index: index, Flags: unix.IFF_UP, Change: unix.IFF_UP,
	})
	if err != nil {
		return fmt.Errorf("set link %s up: %w", name, explain(err))
	}
	return nil
}

func (c *conn) deleteLink(index uint32) error { return c.rt.Link.Delete(index) }
