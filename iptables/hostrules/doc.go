// Package hostrules tells what rules of other programs do to the DNS of this
// node: those that come before ours, the firewalls in which untracked packets
// end, and the accept rules that let them pass there.
package hostrules
