// Package socket answers cached queries at sockets of its own, where no program in the
// kernel can.
//
// Behind CoreDNS's socket a cached answer still costs a goroutine, a message unpacked and
// packed, and a chain of plugins. Here one goroutine for each socket reads a batch of
// packets, writes the replies as the cache has them, and sends them. It hands all other
// queries to CoreDNS.
//
// The sockets share the listen address with CoreDNS's own (SO_REUSEPORT). A program that
// needs no capability has the kernel give queries to ours, by a hash of the client's
// address, so that a client who floods fills the buffer of one socket. If it does not
// work, queries come to CoreDNS's socket, and are answered as without this package.
//
// A reader waits in the runtime's poller, reads with recvmmsg and answers with sendto or
// sendmmsg. These calls never wait, so the scheduler is not told of them: each time it is
// told in an idle process, it wakes a thread. CPU time of the server for a hit, as a part
// of CoreDNS's in the same round (one CPU, medians of 4 rounds; CoreDNS 1.15.0, Linux 6.18):
//
//	                                     saturated  20,000 queries/s
//	runtime's poller (this package)      0.28       0.56
//	the same, one more try before        0.30       0.61
//	the same, 20 more tries before       0.30       0.72
//	own epoll, blocking, locked thread   0.38       1.05
//	unbound 1.17.1                       0.32       0.52
//
// A packet does not wait for others: at 20,000 queries/s they are 50 µs apart, as long as an
// answer takes.
package socket
