package predecessor

import (
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// parseSocket reads an address of /proc/net/tcp: words of 32 bits in host byte order,
// then the port (tcp4_seq_show, tcp6_seq_show).
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
