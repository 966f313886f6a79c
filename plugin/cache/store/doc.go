// Package store keeps cached answers within a fixed amount of memory.
//
// A store is divided into shards by a seeded hash of the key, so that nobody
// outside can choose names that meet in one place. A shard is
//
//   - a ring of records in memory outside of the Go heap: the garbage
//     collector neither scans it nor counts it when it paces itself;
//   - an index, an open-addressing table of record offsets;
//   - two queues per class of answer (positive and negative), linked through the
//     records, that decide what is evicted: S3-FIFO, with a table of
//     fingerprints of what was evicted lately.
//
// Readers take a shard's read lock, look at the records in place and copy
// what they need; a hit writes at most a saturating two-bit counter. Writers take the
// lock exclusively.
//
// Records are appended at the head of the ring. What is removed leaves a hole,
// and the head, when it has gone round, pushes the records it meets
// towards it and swallows the holes. An eighth of the ring is kept free of
// live records, which bounds that work to about seven records moved per record
// written. All memory is reserved at the start and nothing is ever allocated
// beyond it, whatever the mix of sizes.
//
// The package does not know CoreDNS.
package store
