package iptables

import "github.com/trackless-dns/trackless/iptables/owner"

// Instance is what the kernel holds of one Trackless instance, whichever process
// and backend made it.
type Instance struct {
	// Backend is that which made it.
	Backend string
	// Variant is that of the programs of backend iptables: legacy or nft.
	Variant string
	// Table is the name of its table in family inet, or begins the names of its
	// chains in the raw tables.
	Table string
	// Owned tells that the kernel binds the table to its process: nobody else
	// can change it, and it goes when the process does.
	Owned bool
	// Owner is the process that made it.
	Owner owner.Owner
	// Listen are the endpoints whose responses are untracked.
	Listen []Endpoint
	// Live are those of them whose queries are untracked at the moment.
	Live []Endpoint
	// Packets are the packet counts.
	Packets Counters
}

// Attached reports whether the queries to all endpoints are untracked.
func (i Instance) Attached() bool { return len(i.Live) > 0 && len(i.Live) == len(i.Listen) }

// Name says what the kernel holds of the instance, for example "table inet
// trackless-1a2b3c4d".
func (i Instance) Name() string {
	if i.Backend == "iptables" {
		return "chains " + i.Table + "-*"
	}
	return "table inet " + i.Table
}
