package hostrules

import "github.com/trackless-dns/trackless/iptables/internal/nfnl"

// Config says in which network namespace.
type Config = nfnl.Config
