package conntrack_test

import (
	"fmt"
	"log"

	"github.com/trackless-dns/trackless/conntrack"
)

// Counting the DNS queries that nobody answered, on a table of any size in the
// memory of one entry.
func ExampleConn_Dump() {
	c, err := conntrack.Dial(nil)
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = c.Close() }()

	lost := 0
	err = c.Dump(conntrack.Filter{DNS: true, NotStatus: conntrack.StatusSeenReply}, func(*conntrack.Entry) error {
		lost++
		return nil
	})
	if err != nil {
		log.Println(err)
		return
	}
	fmt.Println(lost)
}

// Whether packets are being lost is in the sum over all CPUs.
func ExampleSum() {
	sum := conntrack.Sum([]conntrack.CPUStats{{CPU: 0, InsertFailed: 3}, {CPU: 1, InsertFailed: 4, Drop: 1}})
	fmt.Println(sum.InsertFailed, sum.Drop)
	// Output: 7 1
}

func ExampleStatus_Names() {
	fmt.Println((conntrack.StatusSeenReply | conntrack.StatusDstNAT).Names())
	// Output: [SEEN_REPLY DST_NAT]
}
