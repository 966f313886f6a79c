// Package fastpath is the common ground of ways to answer a query before CoreDNS sees
// it. The cache stays the authority. Four parts see to that:
//
//   - A [Policy] decides which server blocks may be answered by a fast path.
//   - A [Publisher] announces hot answers of the cache and withdraws them.
//   - An [Accountant] counts queries, whichever way they were answered.
//   - A [Gate] is open while the leases of the listen addresses are held.
//
// The package does not import CoreDNS.
package fastpath
