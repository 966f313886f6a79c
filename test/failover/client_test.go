//go:build privileged

package failover

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/lab"
	"github.com/trackless-dns/trackless/lab/load"
)

// background is a load that is being sent.
type background struct {
	n      node
	over   atomic.Int64  // queries that are answered or given up
	done   chan struct{} // closed when all are
	result *load.Result
	err    error
}

// askInBackground begins to send the load to the listen addresses.
func (n node) askInBackground(queries load.Load) *background {
	b := &background{n: n, done: make(chan struct{})}
	queries.Targets = listen
	queries.Progress = func(over int) { b.over.Store(int64(over)) }
	go func() {
		defer close(b.done)
		b.result, b.err = load.Run(n.t.Context(), n.Node, queries)
	}()
	return b
}

// await returns when so many queries are over.
func (b *background) await(queries int64) {
	b.n.t.Helper()
	b.n.await(func() bool { return b.over.Load() >= queries })
}

// isOver reports whether all queries are.
func (b *background) isOver() bool {
	select {
	case <-b.done:
		return true
	default:
		return false
	}
}

// figures waits for the end of the load.
func (b *background) figures() load.Figures {
	b.n.t.Helper()
	<-b.done
	if b.err != nil {
		b.n.t.Fatal(b.err)
	}
	return b.result.Figures()
}

// singlePort is a client that sends all its queries from one UDP port, as many
// resolvers did and some still do: all are one flow for conntrack.
type singlePort struct {
	name   string
	socket *net.UDPConn
	server netip.AddrPort
}

type singlePortClients struct {
	node    node
	clients []singlePort
}

// singlePortClients opens one in a pod and one on the node, for each listen
// address.
func (n node) singlePortClients() singlePortClients {
	n.t.Helper()
	out := singlePortClients{node: n}
	for _, from := range []*lab.Namespace{n.Pods[0].Namespace, n.Namespace} {
		for _, addr := range listen {
			socket := n.socket(from, addr.Is6())
			out.clients = append(out.clients, singlePort{
				name: fmt.Sprintf("%s asks %s", from.Name(), addr), socket: socket, server: netip.AddrPortFrom(addr, 53),
			})
		}
	}
	return out
}

// socket opens an unconnected UDP socket inside the namespace.
func (n node) socket(from *lab.Namespace, ipv6 bool) *net.UDPConn {
	n.t.Helper()
	var socket *net.UDPConn
	network := "udp4"
	if ipv6 {
		network = "udp6"
	}
	err := from.Do(func() error {
		var err error
		socket, err = net.ListenUDP(network, nil)
		return err
	})
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { _ = socket.Close() })
	return socket
}

// ask makes every client ask ten times and fails the test unless the responder
// answers them all, from the address that was asked.
func (c singlePortClients) ask(when string, want lab.Responder) {
	c.node.t.Helper()
	for _, client := range c.clients {
		for range 10 {
			got, err := exchange(client.socket, client.server)
			if err != nil || got != want {
				c.node.t.Errorf("%s: %s from one port: answered by %q, %v; want %s", when, client.name, got, err, want)
				break
			}
		}
	}
}

// exchange sends one query and waits for the response from the same address.
func exchange(socket *net.UDPConn, server netip.AddrPort) (lab.Responder, error) {
	query := new(dns.Msg).SetQuestion("svc-100-1-1.lab.svc.cluster.local.", dns.TypeA)
	wire, err := query.Pack()
	if err != nil {
		return "", err
	}
	if err := socket.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return "", err
	}
	if _, err := socket.WriteToUDPAddrPort(wire, server); err != nil {
		return "", err
	}
	buffer := make([]byte, 4096)
	for {
		size, from, err := socket.ReadFromUDPAddrPort(buffer)
		if err != nil {
			return "", err
		}
		response := new(dns.Msg)
		if err := response.Unpack(buffer[:size]); err != nil {
			return "", err
		}
		if response.Id != query.Id {
			continue // late
		}
		if from != server {
			return "", fmt.Errorf("asked %s, answered by %s", server, from)
		}
		return lab.Identify(response), nil
	}
}

// askAll asks every listen address over UDP and TCP, each from a new socket,
// and fails the test unless the responder answers.
func (n node) askAll(from *lab.Namespace, want lab.Responder) {
	n.t.Helper()
	for _, addr := range listen {
		for _, protocol := range []lab.Protocol{lab.UDP, lab.TCP} {
			ctx, cancel := context.WithTimeout(n.t.Context(), 20*time.Second)
			response, err := from.Query(ctx, protocol, addr, new(dns.Msg).SetQuestion("svc-100-1-1.lab.svc.cluster.local.", dns.TypeA))
			cancel()
			if err != nil {
				n.t.Error(err)
			} else if got := lab.Identify(response); got != want {
				n.t.Errorf("%s, asked by %s over %s, answered by %s", addr, from.Name(), protocol, got)
			}
		}
	}
}
