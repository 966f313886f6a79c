// Package sockets works on the sockets of this process that CoreDNS hands nobody:
// the listeners at the listen addresses and the TCP connections that came to them.
// They are found among the open files of the process.
package sockets
