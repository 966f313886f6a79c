package kubeapi

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
)

func TestDecodeList(t *testing.T) {
	for _, tc := range []struct {
		name, text, want string
		fails            bool
	}{
		{"fields in any order", `{"kind":"PodList","items":[{"metadata":{"name":"a"}},{"metadata":{"name":"b","x":[1]}}],"x":{"items":[1]},"metadata":{"resourceVersion":"7"}}`, "7 a b", false},
		{"no items", `{"metadata":{"resourceVersion":"7"},"items":null}`, "7", false},
		{"empty", `{"metadata":{"resourceVersion":"7"},"items":[]}`, "7", false},
		{"cut off", `{"metadata":{"resourceVersion":"7"},"items":[{"metadata":{"name":"a"}}`, " a", true},
		{"cut off behind the items", `{"metadata":{"resourceVersion":"7"},"items":[]`, "", true},
		{"no list", `[]`, "", true},
		{"items are no list", `{"items":{}}`, "", true},
		{"no JSON", `<html>`, "", true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var names []string
			version, err := decodeList(json.NewDecoder(strings.NewReader(tc.text)), func(p Pod) { names = append(names, p.Metadata.Name) })
			if (err != nil) != tc.fails {
				t.Errorf("error %v", err)
			}
			if got := strings.Join(append([]string{version}, names...), " "); err == nil && got != tc.want {
				t.Errorf("%q, want %q", got, tc.want)
			}
		})
	}
}

// Names need not be the newest, and only the pods of one node are asked for.
func TestListPods(t *testing.T) {
	f := newFakeAPI(t)
	f.set("shop/cart", `"status":{"podIPs":[{"ip":"10.244.0.7"},{"ip":"fd00::7"}]}`)
	c := New(f.config())
	pods, err := c.ListPods(t.Context(), "node-1")
	if err != nil || len(pods) != 1 || pods[0].Metadata.Namespace != "shop" || fmt.Sprint(pods[0].Addresses()) != "[10.244.0.7 fd00::7]" {
		t.Errorf("pods %+v: %v", pods, err)
	}
	if n := f.asked("/api/v1/pods?fieldSelector=spec.nodeName%3Dnode-1&resourceVersion=0"); n != 1 {
		t.Errorf("asked %d times for the pods of the node", n)
	}
	f.answer(http.StatusForbidden)
	if _, err := c.ListServices(t.Context()); err == nil || !strings.Contains(err.Error(), "refuses") {
		t.Errorf("error %v", err)
	}
}

func TestPodAddresses(t *testing.T) {
	const ip = `"podIPs":[{"ip":"10.244.0.7"}]`
	for _, tc := range []struct{ name, pod, want string }{
		{"running", `{"status":{"phase":"Running",` + ip + `}}`, "[10.244.0.7]"},
		{"about to start", `{"status":{"phase":"Pending"}}`, "[]"},
		{"in the host's network", `{"spec":{"hostNetwork":true},"status":{` + ip + `}}`, "[]"},
		{"ended", `{"status":{"phase":"Succeeded",` + ip + `}}`, "[]"},
		{"failed", `{"status":{"phase":"Failed",` + ip + `}}`, "[]"},
	} {
		var p Pod
		if err := json.Unmarshal([]byte(tc.pod), &p); err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(p.Addresses()); got != tc.want {
			t.Errorf("%s: %s, want %s", tc.name, got, tc.want)
		}
	}
}
