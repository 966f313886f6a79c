package iptables

import "github.com/trackless-dns/trackless/iptables/owner"

// Instance is what the kernel holds of one Trackless instance, of any process and
// backend.
type Instance struct {
	// Backend is the name of the backend that made the rules.
	Backend string
	// Variant is the variant of the programs of backend iptables: legacy or nft.
	Variant string
	// Table is the name of the table in family inet, or the prefix of the names of
	// the chains in the raw tables.
	Table string
	// Owned tells that the kernel binds the table to its process: no other process
	// can change it, and the kernel removes it when the process ends.
	Owned bool
	// Owner is the process that made the rules.
	Owner owner.Owner
	// Listen are the endpoints whose responses are untracked.
	Listen []Endpoint
	// Live are the endpoints of Listen whose queries are untracked now.
	Live []Endpoint
	// Packets are the packet counts.
	Packets Counters
}

// What the kernel holds of an instance, by its backend.
const (
	KindTable  = "table"
	KindChains = "chains"
)

// Kind returns [KindTable] or [KindChains].
func (i Instance) Kind() string {
	if i.Backend == BackendBinaries {
		return KindChains
	}
	return KindTable
}

// TableName returns the name for an operator, without the kind: for example "inet
// trackless-1a2b3c4d", or "TRACKLESS-1a2b3c4d-*".
func (i Instance) TableName() string {
	if i.Kind() == KindChains {
		return i.Table + "-*"
	}
	return "inet " + i.Table
}

// Attached reports whether the queries to all endpoints are untracked.
func (i Instance) Attached() bool { return len(i.Live) > 0 && len(i.Live) == len(i.Listen) }

// Name returns kind and name, for example "table inet trackless-1a2b3c4d".
func (i Instance) Name() string { return i.Kind() + " " + i.TableName() }
