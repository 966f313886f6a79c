//go:build load

package notrack

import (
	"testing"
	"time"

	"github.com/miekg/dns"
)

func TestTCPClientThatDoesNotRead(t *testing.T) {
	t.Parallel()
	_, came, ended := pipeliner(t, 300*time.Millisecond)
	select {
	case <-ended:
	case <-time.After(time.Minute):
		t.Fatal("the connection stays open")
	}
	if came.Load() > 1900 {
		t.Errorf("%d queries were worked on", came.Load())
	}
}

// A client that reads slowly gets all answers.
func TestTCPClientThatReads(t *testing.T) {
	t.Parallel()
	client, _, _ := pipeliner(t, 10*time.Second)
	conn := &dns.Conn{Conn: client}
	for i := range 200 {
		if err := client.SetDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.ReadMsg(); err != nil {
			t.Fatalf("answer %d: %v", i+1, err)
		}
	}
}
