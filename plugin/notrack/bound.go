package notrack

import (
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/coredns/caddy"
	"github.com/coredns/caddy/caddyfile"
	"github.com/coredns/coredns/core/dnsserver"

	"github.com/trackless-dns/trackless/plugin/notrack/corefile"
)

// A bind directive may name the link of the listen addresses. CoreDNS reads the addresses
// of the link before we add ours: the block would listen at none of them, or at those of
// a killed process.

// listenOnLink makes a block whose bind directive names the link listen at the addresses
// that the link will have.
func listenOnLink(c *caddy.Controller, link string, addrs []netip.Addr) {
	words := bindWords(c)
	if link == "" || !slices.Contains(words, link) {
		return
	}
	config := dnsserver.GetConfig(c)
	now := addressesOn(link)
	hosts := slices.DeleteFunc(slices.Clone(config.ListenHosts), func(host string) bool {
		return slices.Contains(now, host) && !slices.Contains(words, host)
	})
	for _, a := range addrs {
		if !slices.Contains(hosts, a.String()) {
			hosts = append(hosts, a.String())
		}
	}
	config.ListenHosts = hosts
}

// bindWords returns the words of a block's bind directive; none if the Corefile cannot be
// read. Only setup may call it: see loadedCorefile.
func bindWords(c *caddy.Controller) []string {
	loaded := loadedCorefile()
	blocks, err := caddyfile.Parse(loaded.Path, strings.NewReader(loaded.Contents), nil)
	if err != nil || c.ServerBlockIndex >= len(blocks) {
		return nil
	}
	return corefile.BoundTo(blocks[c.ServerBlockIndex].Tokens["bind"])
}

// addressesOn lists the addresses of an interface as bind has them.
func addressesOn(name string) []string {
	device, err := net.InterfaceByName(name)
	if err != nil {
		return nil
	}
	addrs, err := device.Addrs()
	if err != nil {
		return nil
	}
	var out []string
	for _, a := range addrs {
		prefix, err := netip.ParsePrefix(a.String())
		if err != nil {
			continue
		}
		out = append(out, prefix.Addr().String(), prefix.Addr().WithZone(name).String())
	}
	return out
}
