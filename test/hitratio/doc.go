// Package hitratio compares the hit ratio of the cache's store with that of
// otter, of SIEVE and of random eviction. It is a module of its own, so that
// nothing else depends on otter.
package hitratio
