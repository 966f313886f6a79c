package engine_test

import (
	"fmt"
	"time"

	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/plugin/cache/engine"
	"github.com/trackless-dns/trackless/plugin/cache/store"
	"github.com/trackless-dns/trackless/plugin/cache/wire"
)

// A reader of a socket answers hits from bytes to bytes, and leaves everything else to a
// chain of plugins.
func ExampleEngine_Reply() {
	e, err := engine.New(engine.Options{Store: store.Options{Bytes: 1 << 20}})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer e.Close()

	// What the chain has stored.
	response := new(dns.Msg)
	response.SetQuestion("www.example.org.", dns.TypeA)
	response.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: "www.example.org.", Rrtype: dns.TypeA, Class: dns.ClassINET}, A: []byte{192, 0, 2, 1}}}
	answer, err := wire.Pack(response)
	if err != nil {
		fmt.Println(err)
		return
	}
	key, err := wire.AppendKey(nil, "www.example.org.", dns.TypeA, dns.ClassINET, 0)
	if err != nil {
		fmt.Println(err)
		return
	}
	now := time.Now()
	e.Put(key, store.Positive, &store.Entry{Stored: e.Store().Time(now), TTL: 60, Answer: answer, Answering: true}, engine.Asked{})

	// What comes from the socket. One Query and one buffer serve a reader
	// for all its packets.
	packet, err := new(dns.Msg).SetQuestion("WWW.Example.ORG.", dns.TypeA).Pack()
	if err != nil {
		fmt.Println(err)
		return
	}
	var q wire.Query
	var reply [1232]byte
	if reason := q.Parse(packet); reason != wire.Plain {
		fmt.Println("punt:", reason)
		return
	}
	n, result := e.Reply(reply[:], packet, &q, now.Add(20*time.Second))
	switch result {
	case engine.Success, engine.Denial:
		m := new(dns.Msg)
		if err := m.Unpack(reply[:n]); err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println(m.Answer[0])
	default:
		fmt.Println("to the chain")
	}
	// Output: WWW.Example.ORG.	40	IN	A	192.0.2.1
}
