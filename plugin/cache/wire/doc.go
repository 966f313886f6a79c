// Package wire reads DNS queries and writes cached answers as bytes.
//
// A cached answer is kept as the packed sections that follow the question
// (the body), with the offsets of the TTL fields in it. A body is packed for
// a question name of a certain length, never for a certain spelling of it:
// owner names point into the question, names inside RDATA do not. So one body
// answers every client, each with its own ID, letter case and EDNS, and the
// reply is made by copying and by overwriting TTLs.
//
// Reading a query and writing a reply allocate nothing. Whatever is unusual
// (EDNS options, signatures, other opcodes) is left to a full parser: Parse
// names the reason and touches nothing else.
//
// The package knows the wire format of RFC 1035, EDNS of RFC 6891 and, for
// packing answers and unpacking them into messages, miekg/dns. It does not
// know CoreDNS.
package wire
