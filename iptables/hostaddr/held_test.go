package hostaddr

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/internal/testgolden"
	"github.com/trackless-dns/trackless/iptables"
)

// TestHeldErrors compares the errors of a start that others prevent with
// testdata/held.txt.
func TestHeldErrors(t *testing.T) {
	p := address{addr: clusterIP, bits: 24}
	unreadable := New(Config{Claims: func() (iptables.Claims, error) { return iptables.Claims{}, errors.New("no netlink") }}, DefaultLink)
	_, unknown := unreadable.claims()
	var out strings.Builder
	for _, err := range []error{
		heldByNode(p, "veth0"), heldByInstance(p, "dns0", "table inet trackless-1"), heldByOther(p, ipvsLink), heldByOther(p, "eth9"),
		explainAdd("dns0", clusterV6, unix.EACCES), explainAdd("dns0", clusterV6, unix.EOPNOTSUPP), explainAdd("dns0", clusterIP, unix.EPERM),
		unknown, allPresent([]netip.Addr{clusterIP}, nil),
	} {
		fmt.Fprintln(&out, err)
	}
	testgolden.Compare(t, "held.txt", out.String())
}
