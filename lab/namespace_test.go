package lab

import (
	"testing"
)

func TestTailKeepsTheLast(t *testing.T) {
	kept := &tail{limit: 8}
	for _, text := range []string{"one ", "two ", "three ", "a very long line"} {
		if n, err := kept.Write([]byte(text)); n != len(text) || err != nil {
			t.Fatalf("Write returned %d, %v", n, err)
		}
	}
	if got := kept.String(); got != "ong line" {
		t.Errorf("kept %q", got)
	}
}
