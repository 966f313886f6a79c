// Package sockets works on sockets of this process that CoreDNS does not expose: the
// listeners at the listen addresses, and their TCP connections. It finds them among the
// open files of the process.
package sockets
