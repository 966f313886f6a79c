// Package failover holds the standing table for listen addresses that no Service owns.
// While nobody untracks the queries to such an address, the table sends them to a
// Service. It is installed over netlink, in one transaction.
package failover
