package server

import (
	"net"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// Whatever is wrong with the header, the answer has the opcode of the question.
func TestAnswersKeepTheOpcode(t *testing.T) {
	before := dns.DefaultMsgAcceptFunc
	keepOpcodes()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	started, done := make(chan struct{}), make(chan struct{})
	server := &dns.Server{PacketConn: conn, NotifyStartedFunc: func() { close(started) }}
	go func() {
		_ = server.ActivateAndServe()
		close(done)
	}()
	<-started
	dns.DefaultMsgAcceptFunc = before
	t.Cleanup(func() {
		_ = conn.Close()
		<-done
	})
	for opcode := range 16 {
		for _, questions := range []int{0, 2} {
			client, err := net.Dial("udp", conn.LocalAddr().String())
			if err != nil {
				t.Fatal(err)
			}
			m := &dns.Msg{MsgHdr: dns.MsgHdr{Id: dns.Id(), Opcode: opcode}}
			for range questions {
				m.Question = append(m.Question, dns.Question{Name: ".", Qtype: dns.TypeSOA, Qclass: dns.ClassINET})
			}
			_ = client.SetDeadline(time.Now().Add(10 * time.Second))
			co := &dns.Conn{Conn: client}
			if err := co.WriteMsg(m); err != nil {
				t.Fatal(err)
			}
			answer, err := co.ReadMsg()
			_ = client.Close()
			if err != nil || answer.Opcode != opcode || answer.Rcode == dns.RcodeSuccess {
				t.Errorf("opcode %d with %d questions: %v, %v", opcode, questions, answer, err)
			}
		}
	}
}
