package cut

import "testing"

func TestOnWalk(t *testing.T) {
	for text, want := range map[string]bool{
		"api.example.com.default.svc.cluster.local.": true,
		"example.com.default.svc.cluster.local.":     true,
		"api.example.com.svc.cluster.local.":         true,
		"api.example.com.cluster.local.":             true,
		"example.com.cluster.local.":                 true,
		// Also the name of a Service.
		"example.com.svc.cluster.local.":                    false,
		"kubernetes.default.svc.cluster.local.":             false,
		"default.svc.cluster.local.":                        false,
		"svc.cluster.local.":                                false,
		"com.cluster.local.":                                false,
		"cluster.local.":                                    false,
		"1-2-3-4.default.pod.cluster.local.":                false,
		"ns.dns.cluster.local.":                             false,
		"_https._tcp.kubernetes.default.svc.cluster.local.": false,
		"api.example.com.":                                  false,
		"api.example.com.default.svc.cluster.org.":          false,
	} {
		if got := OnWalk(name(t, text), name(t, "cluster.local.")); got != want {
			t.Errorf("%s: %t", text, got)
		}
	}
}
