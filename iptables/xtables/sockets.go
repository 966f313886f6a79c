package xtables

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/trackless-dns/trackless/iptables"
)

// States of sockets in /proc/net/tcp (include/net/tcp_states.h) that belong to
// no connection that lasts.
var endedStates = []string{"06", "07", "0A"} // TIME_WAIT, CLOSE, LISTEN

// connectionsTo lists the TCP connections that sockets of this network
// namespace hold at the endpoints.
func connectionsTo(endpoints []iptables.Endpoint) (out []iptables.Connection, err error) {
	for _, name := range []string{"tcp", "tcp6"} {
		text, err := os.ReadFile("/proc/thread-self/net/" + name)
		if errors.Is(err, os.ErrNotExist) {
			continue // a kernel without IPv6
		}
		if err != nil {
			return nil, fmt.Errorf("list sockets: %w", err)
		}
		for line := range strings.Lines(string(text)) {
			words := strings.Fields(line)
			if len(words) < 4 || slices.Contains(endedStates, words[3]) {
				continue
			}
			local, localOK := parseSocket(words[1])
			remote, remoteOK := parseSocket(words[2])
			if localOK && remoteOK && slices.Contains(endpoints, iptables.Endpoint{Addr: local.Addr(), Port: local.Port(), Proto: iptables.TCP}) {
				out = append(out, iptables.Connection{Client: remote, Listen: local})
			}
		}
	}
	return out, nil
}

// parseSocket reads an address of /proc/net/tcp: words of 32 bits in the host's
// byte order, then the port (tcp4_seq_show, tcp6_seq_show).
func parseSocket(text string) (netip.AddrPort, bool) {
	words, portText, _ := strings.Cut(text, ":")
	port, err := strconv.ParseUint(portText, 16, 16)
	raw, hexErr := hex.DecodeString(words)
	if err != nil || hexErr != nil || len(raw)%4 != 0 {
		return netip.AddrPort{}, false
	}
	var addr []byte
	for word := range slices.Chunk(raw, 4) {
		addr = binary.NativeEndian.AppendUint32(addr, binary.BigEndian.Uint32(word))
	}
	a, ok := netip.AddrFromSlice(addr)
	return netip.AddrPortFrom(a.Unmap(), uint16(port)), ok
}
