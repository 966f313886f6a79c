// Package hostrules tells what other programs' rules do to the DNS of this node. It
// finds rules that come before ours and firewalls that drop untracked packets, and adds
// accept rules to these firewalls.
package hostrules
