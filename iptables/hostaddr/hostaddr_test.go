package hostaddr

import (
	"net/netip"
)

var (
	linkLocal = netip.MustParseAddr("169.254.20.10")
	clusterIP = netip.MustParseAddr("10.96.0.10")
	clusterV6 = netip.MustParseAddr("fd00:10:96::a")
	all       = []netip.Addr{linkLocal, clusterIP, clusterV6}
)
