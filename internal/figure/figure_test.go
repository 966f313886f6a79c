package figure

import "testing"

func TestThousands(t *testing.T) {
	for n, want := range map[int64]string{0: "0", 999: "999", 1000: "1,000", -1234567: "-1,234,567"} {
		if got := Thousands(n); got != want {
			t.Errorf("Thousands(%d) = %q", n, got)
		}
	}
}

func TestBytes(t *testing.T) {
	for n, want := range map[uint64]string{0: "0 bytes", 1023: "1023 bytes", 1024: "1.0 KiB", 3 << 19: "1.5 MiB", 5 << 30: "5.0 GiB"} {
		if got := Bytes(n); got != want {
			t.Errorf("Bytes(%d) = %q", n, got)
		}
	}
}

// Nothing is a share of no limit.
func TestWithoutLimit(t *testing.T) {
	if got := Fill(7, 0); got != "-" {
		t.Errorf("fill %q", got)
	}
	if got := Percent(7, 0); got != 0 {
		t.Errorf("%v percent", got)
	}
}

func TestRate(t *testing.T) {
	for rate, want := range map[float64]string{0: "0", 0.04: "0.0", 9.94: "9.9", 10: "10", 999.6: "1,000", 12345.4: "12,345"} {
		if got := Rate(rate); got != want {
			t.Errorf("%v: %s, want %s", rate, got, want)
		}
	}
}
