package testport

import (
	"net"
	"testing"
)

func TestBothAtOnePort(t *testing.T) {
	for _, ip := range []string{"127.0.0.1", "::1"} {
		listener, packets := Both(t, net.ListenConfig{}, ip)
		at := listener.Addr().(*net.TCPAddr).AddrPort()
		if got := packets.LocalAddr().(*net.UDPAddr).AddrPort(); got != at || at.Port() < first || at.Port() >= behind {
			t.Errorf("TCP at %s, UDP at %s", at, got)
		}
		if other, err := net.Listen("tcp", at.String()); err == nil {
			t.Errorf("%s is free while it is listened at", at)
			_ = other.Close()
		}
		_ = listener.Close()
		_ = packets.Close()
		if free := Unused(t, ip); free.Addr().String() != ip {
			t.Errorf("%s, want a port of %s", free, ip)
		}
	}
}
