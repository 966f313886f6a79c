package notrack

import "github.com/trackless-dns/trackless/iptables"

// BridgedUplink returns the name of a bridge that carries a default route, or
// none. A Corefile whose notrack block does not say `sources` or `uplinks`
// cannot start where there is one.
func BridgedUplink() (string, error) {
	names, err := uplinks()
	if err != nil {
		return "", err
	}
	return bridgedUplink(names)
}

// uplinksOf returns the devices from which a plan serves nobody but its sources.
func uplinksOf(plan iptables.Plan) ([]string, error) {
	switch {
	case plan.AnySource:
		return nil, nil
	case len(plan.Uplinks) > 0:
		return plan.Uplinks, nil
	}
	return uplinks()
}

// followUplinks returns the uplinks as they are now. A start with a bridge among
// them is refused; one that becomes an uplink while we run is told of, once.
func (p *contract) followUplinks(plan iptables.Plan) ([]string, error) {
	names, err := uplinks()
	if err != nil || len(plan.Sources) > 0 {
		return names, err
	}
	bridge, err := bridgedUplink(names)
	if err != nil {
		return nil, err
	}
	if bridge != "" && bridge != p.bridge {
		log.Warningf("the bridge %s has become an uplink: whoever comes in over it is no longer served here, pods as well as the rest of the world; say who is served with `sources CIDR...`", bridge)
	}
	p.bridge = bridge
	return names, nil
}
