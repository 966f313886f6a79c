// Package failover holds the standing table that answers for listen addresses
// which no Service owns, while nobody untracks their queries: it sends them to a
// Service instead, over netlink and in one transaction.
package failover
