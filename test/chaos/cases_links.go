package chaos

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/lab"
)

// links are faults that others make in links and addresses, and one in what
// the kernel says about them.
func links() []*Case {
	const bar = "at most 1 s of queries"
	unrepaired := func(what string) Sabotage {
		return Sabotage{What: what, Fails: FailLost, Server: withoutReconciler(leaveRules)}
	}
	return []*Case{
		{
			Name: "link-deleted", Fault: "the link deleted", Bar: bar,
			Prepare: standInLink,
			Sabotage: Sabotage{
				What: "the repair of the link", Fails: FailLost,
				Server: func(s *Scene) error {
					if err := withoutReconciler(leaveRules)(s); err != nil {
						return err
					}
					return moveAddresses(s, "lo", linkName)
				},
			},
			Play: func(s *Scene) error {
				return disturb(s, "deleted", func() error { return runAll(s.Node.Namespace, "ip link delete "+linkName) })
			},
		},
		{
			Name: "link-down", Fault: "the link set down", Bar: bar,
			Prepare: standInLink,
			Undo: func(s *Scene) error {
				// A link that stood in is not notrack's to delete.
				links, err := run(s.Node.Namespace, "", "ip", "-br", "link")
				if err != nil || !strings.Contains(links, linkName) {
					return err
				}
				return runAll(s.Node.Namespace, "ip link delete "+linkName)
			},
			Sabotage: Sabotage{
				What: "the repair of the link", Fails: FailLost,
				Server: func(s *Scene) error {
					if err := withoutReconciler(leaveRules)(s); err != nil {
						return err
					}
					return moveAddresses(s, "lo", linkName)
				},
			},
			Play: func(s *Scene) error {
				return disturb(s, "set down", func() error { return runAll(s.Node.Namespace, "ip link set "+linkName+" down") })
			},
		},
		{
			Name: "address-deleted", Fault: "the addresses deleted", Bar: bar,
			Sabotage: unrepaired("the repair of the addresses"),
			Play: func(s *Scene) error {
				return disturb(s, "deleted", func() error { return takeAddresses(s) })
			},
		},
		{
			Name: "address-moved", Fault: "the addresses moved to another link, and that deleted", Bar: bar + " each",
			Prepare:  addSpareLink,
			Sabotage: unrepaired("the repair of the addresses"),
			Play: func(s *Scene) error {
				if err := s.Fault("moved", repairBar); err != nil {
					return err
				}
				if err := moveToSpareLink(s); err != nil {
					return err
				}
				s.Let(repairBar)
				// They may be where they were put or where they belong.
				s.Steady("elsewhere", lab.Trackless, 500*time.Millisecond)
				return disturb(s, "deleted there", func() error { return deleteSpareLink(s) })
			},
		},
		{
			Name: "enobufs", Fault: "netlink ENOBUFS: events lost, those of the addresses deleted among them", Bar: "at most 1.5 s of queries, part of which the process is stopped",
			Prepare:  addSpareLink,
			Undo:     deleteSpareLink,
			Sabotage: unrepaired("the repair of the addresses"),
			Play: func(s *Scene) error {
				if err := s.Fault("events lost", leaseBar); err != nil {
					return err
				}
				if err := loseEvents(s, func() error { return takeAddresses(s) }); err != nil {
					return err
				}
				s.Let(leaseBar)
				s.Steady("repaired", lab.Trackless, outage)
				return s.proveTakeover()
			},
		},
	}
}

// addSpareLink adds a link that trackless has nothing to do with.
func addSpareLink(s *Scene) error { return runAll(s.Node.Namespace, "ip link add spare type bridge") }

func deleteSpareLink(s *Scene) error { return runAll(s.Node.Namespace, "ip link delete spare") }

// standInLink makes the link beforehand where the kernel has no dummy: notrack
// takes a link of that name for its own purpose, whatever its type.
func standInLink(s *Scene) error {
	if err := runAll(s.Node.Namespace, "ip link add "+linkName+" type dummy"); err == nil {
		return runAll(s.Node.Namespace, "ip link delete "+linkName) // notrack will make it
	}
	return runAll(s.Node.Namespace, "ip link add "+linkName+" type ifb", "ip link set "+linkName+" up")
}

func moveToSpareLink(s *Scene) error {
	for _, addr := range listenAddresses {
		if err := deleteAddress(s, addr); err != nil {
			return err
		}
		if err := runAll(s.Node.Namespace, addAddress(addr, "spare")); err != nil {
			return err
		}
	}
	return nil
}

func moveAddresses(s *Scene, from, to string) error {
	if err := runAll(s.Node.Namespace, "ip link show dev "+to); err != nil {
		// Where the kernel has dummy links it is notrack that makes it.
		if err := runAll(s.Node.Namespace, "ip link add "+to+" type dummy", "ip link set "+to+" up"); err != nil {
			return err
		}
	}
	for _, addr := range listenAddresses {
		err := runAll(s.Node.Namespace,
			addAddress(addr, to), fmt.Sprintf("ip address delete %s/%d dev %s", addr, addr.BitLen(), from))
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
func loseEvents(s *Scene, done func() error) (err error) {
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
	_, err = run(s.Node.Namespace, addresses.String(), "ip", "-batch", "-")
	if err == nil {
		err = done()
	}
	if err := errors.Join(err, s.Server.Signal(syscall.SIGCONT)); err != nil {
		return err
	}
	if err := witness.SetReadDeadline(time.Now().Add(patience)); err != nil {
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
