package owner

// TablePrefix is the prefix of the names of all our tables; a random instance id
// follows. Two instances on one node never share a table, so that an instance that ends
// never removes the rules of another.
const TablePrefix = "trackless-"

// FailoverTable is the name of the standing failover table, for listen addresses that no
// Service owns. All instances share it, and it outlives them: no process owns it. It
// does not affect untracked packets. failover.Remove removes it.
const FailoverTable = TablePrefix + "failover"

// UpstreamPrefix is the prefix of the names of tables for upstreams; a random id
// follows.
const UpstreamPrefix = TablePrefix + "upstream-"
