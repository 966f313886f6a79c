package owner

// TablePrefix starts the name of every table of ours; a random instance id
// follows. Two instances on one node never share a table, so that the end of
// one never takes the rules of the other with it.
const TablePrefix = "trackless-"

// FailoverTable is the name of the standing table that answers for listen
// addresses no Service owns while nobody untracks their queries. All instances
// share it and it outlives them: it belongs to no process, changes nothing
// while a NOTRACK rule takes the packets, and goes with failover.Remove.
const FailoverTable = TablePrefix + "failover"

// UpstreamPrefix starts the names of tables for upstreams; a random id follows.
const UpstreamPrefix = TablePrefix + "upstream-"
