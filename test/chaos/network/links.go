// Package network has the faults of links and addresses, and of packets that a pod
// forges.
package network

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/lab"
	"github.com/trackless-dns/trackless/test/chaos/scene"
)

// Links are faults that others make in links and addresses, and one in what
// the kernel says about them.
func Links() []*scene.Case {
	const bar = "at most 1 s of queries"
	unrepaired := func(what string) scene.Sabotage {
		return scene.Sabotage{What: what, Fails: scene.FailLost, Server: scene.WithoutReconciler(scene.LeaveRules)}
	}
	return []*scene.Case{
		{
			Name: "link-deleted", Fault: "the link deleted", Bar: bar,
			Prepare: standInLink,
			Sabotage: scene.Sabotage{
				What: "the repair of the link", Fails: scene.FailLost,
				Server: func(s *scene.Scene) error {
					if err := scene.WithoutReconciler(scene.LeaveRules)(s); err != nil {
						return err
					}
					return moveAddresses(s, "lo", scene.LinkName)
				},
			},
			Play: func(s *scene.Scene) error {
				return scene.Disturb(s, "deleted", func() error { return scene.RunAll(s.Node.Namespace, "ip link delete "+scene.LinkName) })
			},
		},
		{
			Name: "link-down", Fault: "the link set down", Bar: bar,
			Prepare: standInLink,
			Undo: func(s *scene.Scene) error {
				// A link that stood in is not notrack's to delete.
				links, err := scene.RunProgram(s.Node.Namespace, "", "ip", "-br", "link")
				if err != nil || !strings.Contains(links, scene.LinkName) {
					return err
				}
				return scene.RunAll(s.Node.Namespace, "ip link delete "+scene.LinkName)
			},
			Sabotage: scene.Sabotage{
				What: "the repair of the link", Fails: scene.FailLost,
				Server: func(s *scene.Scene) error {
					if err := scene.WithoutReconciler(scene.LeaveRules)(s); err != nil {
						return err
					}
					return moveAddresses(s, "lo", scene.LinkName)
				},
			},
			Play: func(s *scene.Scene) error {
				return scene.Disturb(s, "set down", func() error { return scene.RunAll(s.Node.Namespace, "ip link set "+scene.LinkName+" down") })
			},
		},
		{
			Name: "address-deleted", Fault: "the addresses deleted", Bar: bar,
			Sabotage: unrepaired("the repair of the addresses"),
			Play: func(s *scene.Scene) error {
				return scene.Disturb(s, "deleted", func() error { return scene.TakeAddresses(s) })
			},
		},
		{
			Name: "address-moved", Fault: "the addresses moved to another link, and that deleted", Bar: bar + " each",
			Prepare:  addSpareLink,
			Sabotage: unrepaired("the repair of the addresses"),
			Play:     playAddressesMoved,
		},
		{
			Name: "enobufs", Fault: "netlink ENOBUFS: events lost, those of the addresses deleted among them", Bar: "at most 1.5 s of queries, part of which the process is stopped",
			Prepare:  addSpareLink,
			Undo:     deleteSpareLink,
			Sabotage: unrepaired("the repair of the addresses"),
			Play:     playEventsLost,
		},
	}
}

// playEventsLost deletes the addresses while the kernel has no room for the events.
func playEventsLost(s *scene.Scene) error {
	if err := s.Fault("events lost", scene.LeaseBar); err != nil {
		return err
	}
	if err := loseEvents(s, func() error { return scene.TakeAddresses(s) }); err != nil {
		return err
	}
	s.Let(scene.LeaseBar)
	s.Steady("repaired", lab.Trackless, scene.Outage)
	return s.ProveTakeover()
}

// playAddressesMoved moves the addresses to another link and deletes that.
func playAddressesMoved(s *scene.Scene) error {
	if err := s.Fault("moved", scene.RepairBar); err != nil {
		return err
	}
	if err := moveToSpareLink(s); err != nil {
		return err
	}
	s.Let(scene.RepairBar)
	// They may be where they were put or where they belong.
	s.Steady("elsewhere", lab.Trackless, 500*time.Millisecond)
	return scene.Disturb(s, "deleted there", func() error { return deleteSpareLink(s) })
}

// addSpareLink adds a link that trackless has nothing to do with.
func addSpareLink(s *scene.Scene) error {
	return scene.RunAll(s.Node.Namespace, "ip link add spare type bridge")
}

func deleteSpareLink(s *scene.Scene) error {
	return scene.RunAll(s.Node.Namespace, "ip link delete spare")
}

// standInLink makes the link beforehand where the kernel has no dummy: notrack
// takes a link of that name for its own purpose, whatever its type.
func standInLink(s *scene.Scene) error {
	if err := scene.RunAll(s.Node.Namespace, "ip link add "+scene.LinkName+" type dummy"); err == nil {
		return scene.RunAll(s.Node.Namespace, "ip link delete "+scene.LinkName) // notrack will make it
	}
	return scene.RunAll(s.Node.Namespace, "ip link add "+scene.LinkName+" type ifb", "ip link set "+scene.LinkName+" up")
}

func moveToSpareLink(s *scene.Scene) error {
	for _, addr := range scene.ListenAddresses {
		if err := scene.DeleteAddress(s, addr); err != nil {
			return err
		}
		if err := scene.RunAll(s.Node.Namespace, scene.AddAddress(addr, "spare")); err != nil {
			return err
		}
	}
	return nil
}

func moveAddresses(s *scene.Scene, from, to string) error {
	if err := scene.RunAll(s.Node.Namespace, "ip link show dev "+to); err != nil {
		// Where the kernel has dummy links it is notrack that makes it.
		if err := scene.RunAll(s.Node.Namespace, "ip link add "+to+" type dummy", "ip link set "+to+" up"); err != nil {
			return err
		}
	}
	for _, addr := range scene.ListenAddresses {
		err := scene.RunAll(s.Node.Namespace,
			scene.AddAddress(addr, to), fmt.Sprintf("ip address delete %s/%d dev %s", addr, addr.BitLen(), from))
		if err != nil {
			return err
		}
	}
	return nil
}

const (
	// lostEvents is how many addresses are added while nobody reads what the
	// kernel says of them. The report of one takes most of a kilobyte of a
	// socket's buffer, so that even one of witnessBuffer overflows.
	lostEvents    = 5000
	witnessBuffer = 1 << 20 // bytes; five times the default (net.core.rmem_default)
)

// loseEvents makes the kernel drop events for the server: it is stopped for a
// moment that is shorter than the lease, while more happens than its sockets
// can hold. What is done at the end of that moment is among what is lost. A
// socket that listens for the same events and is not read either bears witness.
func loseEvents(s *scene.Scene, done func() error) (err error) {
	witness, err := netlink.Dial(unix.NETLINK_ROUTE, &netlink.Config{
		NetNS: s.Node.Namespace.FD(), Groups: 1 << (unix.RTNLGRP_IPV4_IFADDR - 1),
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, witness.Close()) }()
	if err := witness.SetReadBuffer(witnessBuffer); err != nil {
		return err
	}
	var addresses strings.Builder
	for i := range lostEvents {
		fmt.Fprintf(&addresses, "address add 198.19.%d.%d/32 dev spare\n", i/250, i%250)
	}
	if err := s.Server.Signal(syscall.SIGSTOP); err != nil {
		return err
	}
	_, err = scene.RunProgram(s.Node.Namespace, addresses.String(), "ip", "-batch", "-")
	if err == nil {
		err = done()
	}
	if err := errors.Join(err, s.Server.Signal(syscall.SIGCONT)); err != nil {
		return err
	}
	if err := witness.SetReadDeadline(time.Now().Add(scene.Patience)); err != nil {
		return err
	}
	for {
		switch _, err := witness.Receive(); {
		case errors.Is(err, unix.ENOBUFS):
			return nil
		case err != nil:
			return fmt.Errorf("watch the events get lost: %w", err)
		}
	}
}
