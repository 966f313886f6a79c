// Package store keeps cached answers within a fixed amount of memory.
//
// A store is divided into shards by a seeded hash of the key, so that no client can choose
// names that all fall into one shard. A shard has
//
//   - a ring of records in memory outside of the Go heap, which the garbage collector
//     neither scans nor counts;
//   - an index, which is an open-addressing table of record offsets;
//   - two queues for each class of answer (positive and negative), linked through the
//     records, for eviction by S3-FIFO, and a table of fingerprints of the keys that
//     were evicted last.
//
// Readers take the read lock of a shard, read the records in place and copy what they
// need. A hit writes no more than a counter that stops at MaxUses, and for prefetch a
// count and a time. Writers take the lock exclusively.
//
// Records are appended at the head of the ring, and a removed record leaves a hole. When
// the head has gone round, it reaches old records: it moves records to the head and
// reuses holes. An eighth of the ring is kept free of records, so that about seven
// records are moved for a record that is written, at most. All memory is reserved at the
// start. The store never allocates more, for any sizes of answers.
//
// The package does not import CoreDNS.
package store
