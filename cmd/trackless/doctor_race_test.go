//go:build privileged

package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/mdlayher/netlink"
	"github.com/ti-mo/netfilter"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/node/measure"
)

// race loses packets in the race for one entry, without luck: of two echo
// requests with one identifier both are held between the lookup, which finds
// nothing for either, and the insertion, which only one can win. (UDP would do,
// were it not for the kernel's clash resolution.)
func (s *sick) race(ctx context.Context) error {
	const (
		queueNum                        = 7
		msgVerdict, msgConf             = 1, 2    // enum nfqnl_msg_types
		cfgCmd, cfgParams, cmdBind      = 1, 2, 1 // enum nfqnl_attr_config, nfqnl_msg_config_cmds
		copyMeta                        = 1
		attrPacketHdr, attrVerdictHdr   = 1, 2 // enum nfqnl_attr_type
		accept                          = 1    // NF_ACCEPT
		headerAndNfgen, echoRequestType = 4, 8
	)
	s.run("iptables", "-I", "OUTPUT", "-p", "icmp", "--icmp-type", "echo-request", "-j", "NFQUEUE", "--queue-num", fmt.Sprint(queueNum))
	queue, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return err
	}
	defer func() { _ = queue.Close() }()
	send := func(typ netfilter.MessageType, flags netlink.HeaderFlags, attributes ...netfilter.Attribute) error {
		m, err := netfilter.MarshalNetlink(netfilter.Header{
			SubsystemID: netfilter.NFSubsysQueue, MessageType: typ, Flags: netlink.Request | flags, ResourceID: queueNum,
		}, attributes)
		if err != nil {
			return err
		}
		if flags&netlink.Acknowledge != 0 {
			_, err = queue.Execute(m)
		} else {
			_, err = queue.Send(m)
		}
		return err
	}
	if err := send(msgConf, netlink.Acknowledge, netfilter.Attribute{Type: cfgCmd, Data: []byte{cmdBind, 0, 0, unix.AF_INET}}); err != nil {
		return fmt.Errorf("bind the queue: %w", err)
	}
	if err := send(msgConf, netlink.Acknowledge, netfilter.Attribute{Type: cfgParams, Data: []byte{0, 0, 0, 0, copyMeta}}); err != nil {
		return fmt.Errorf("configure the queue: %w", err)
	}

	raw, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMP)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(raw) }()
	for id := uint16(1); ctx.Err() == nil; id++ {
		for seq := range byte(2) {
			echo := []byte{echoRequestType, 0, 0, 0, byte(id >> 8), byte(id), 0, seq}
			sum := ^(uint32(echoRequestType)<<8 + uint32(id) + uint32(seq))
			binary.BigEndian.PutUint16(echo[2:], uint16(sum))
			if err := unix.Sendto(raw, echo, 0, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
				return err
			}
		}
		verdicts := make([]netfilter.Attribute, 0, 2)
		for len(verdicts) < 2 {
			if err := queue.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
				return err
			}
			packets, err := queue.Receive()
			if err != nil {
				return fmt.Errorf("packets from the queue: %w", err)
			}
			for _, p := range packets {
				attributes, err := netfilter.UnmarshalAttributes(p.Data[headerAndNfgen:])
				if err != nil {
					return err
				}
				for _, a := range attributes {
					if a.Type == attrPacketHdr {
						verdicts = append(verdicts, netfilter.Attribute{Type: attrVerdictHdr, Data: append([]byte{0, 0, 0, accept}, a.Data[:4]...)})
					}
				}
			}
		}
		for _, v := range verdicts {
			if err := send(msgVerdict, 0, v); err != nil {
				return err
			}
		}
		if err := measure.Wait(ctx, 20*time.Millisecond); err != nil {
			return nil
		}
	}
	return nil
}
