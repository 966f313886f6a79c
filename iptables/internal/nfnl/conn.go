package nfnl

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/iptables"
)

// Config says where the rules go. The zero value is the network namespace of this
// process.
type Config struct {
	// NetNS is a file descriptor of a network namespace; 0 is our own.
	NetNS int

	// Socket replaces the netlink socket in tests.
	Socket func() (*netlink.Conn, error)
}

// Explain adds the operation and the remedy to the kernel's answer.
func Explain(what string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("nftables: %s: %w (%w)", what, err, iptables.ErrPermission)
	case errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EAFNOSUPPORT), errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("nftables: %s: %w", what, &iptables.UnsupportedError{
			Feature: "nf_tables",
			Remedy:  "load it with `modprobe nf_tables`, or use a kernel with CONFIG_NF_TABLES and CONFIG_NF_TABLES_INET",
			Err:     err,
		})
	}
	return fmt.Errorf("nftables: %s: %w", what, err)
}

// NativeUint32 encodes 32 bits in the byte order of this machine.
func NativeUint32(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }

// Dial opens a netfilter netlink socket.
func Dial(cfg Config) (*netlink.Conn, error) {
	if cfg.Socket != nil {
		return cfg.Socket()
	}
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: cfg.NetNS})
	return conn, Explain("open a netfilter netlink socket", err)
}

// Families are both families, in the order in which they are handled.
var Families = []iptables.Family{iptables.IPv4, iptables.IPv6}

// DeviceKey is a device name padded to IFNAMSIZ, as sets and registers hold it.
func DeviceKey(name string) []byte {
	key := make([]byte, 16)
	copy(key, name)
	return key
}

// Uint32 reads a 32-bit attribute in network byte order; 0 if it has another length.
func Uint32(attr []byte) uint32 {
	if len(attr) != 4 {
		return 0
	}
	return binary.BigEndian.Uint32(attr)
}
