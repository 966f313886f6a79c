package notrack

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
