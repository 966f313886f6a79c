package measure

import (
	"strings"
	"testing"
)

func TestCheckMetrics(t *testing.T) {
	for metrics, ok := range map[string]bool{
		"auto": true, "off": true, "http://127.0.0.1:9253/metrics": true, "http://[::1]/metrics": true,
		"": false, "on": false, "http://localhost:9253/metrics": false, "https://127.0.0.1/metrics": false,
	} {
		err := CheckMetrics(metrics)
		if (err == nil) != ok || err != nil && !strings.Contains(err.Error(), "http://127.0.0.1:9253/metrics") {
			t.Errorf("CheckMetrics(%q) = %v", metrics, err)
		}
	}
}
