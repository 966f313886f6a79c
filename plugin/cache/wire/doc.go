// Package wire reads DNS queries and writes cached answers as bytes.
//
// A cached answer is kept as its body: the packed sections after the question, with the
// offsets of the TTL fields. A body fits every question name of the same length, in any
// letter case: owner names point into the question, and names inside RDATA do not. So
// one body answers all clients, each with its own ID, letter case and EDNS. A reply is
// made by copying the body and overwriting its TTLs.
//
// Reading a query and writing a reply allocate nothing. Unusual queries, such as those
// with EDNS options, signatures or other opcodes, are left to a full parser: Parse
// returns the reason.
//
// The package implements the wire format of RFC 1035 and EDNS of RFC 6891. It packs and
// unpacks messages with miekg/dns, and does not import CoreDNS.
package wire
