package names

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"github.com/trackless-dns/trackless/kubeapi"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func TestBook(t *testing.T) {
	t.Parallel()
	b := New(
		map[netip.Addr]Owner{addr("192.0.2.1"): {Kind: Node, Name: "node-1"}, addr("10.96.0.10"): {Kind: Node, Name: "node-1"}},
		map[netip.Addr]Owner{
			addr("10.244.0.7"): {Pod, "shop", "cart-1"}, addr("fd00::7"): {Pod, "shop", "cart-1"},
			addr("10.244.0.8"): {Pod, "shop", "cart-2"}, addr("10.244.0.9"): {Pod, "test", "cart-1"},
			addr("10.244.0.10"): {Kind: Pod, Name: "3a7f"},
		},
		map[netip.Addr]Owner{addr("10.96.0.10"): {Service, "kube-system", "kube-dns"}},
	)
	for a, want := range map[string]string{
		"10.244.0.7": "pod shop/cart-1", "10.244.0.10": "pod 3a7f", "192.0.2.1": "node node-1",
		"10.96.0.10": "service kube-system/kube-dns", // also an address of the node, which listens there
		"10.1.1.1":   " ",
	} {
		if o := b.Owner(addr(a)); o.Kind.String()+" "+o.String() != want {
			t.Errorf("%s is of %s %s, want %s", a, o.Kind, o, want)
		}
	}
	if !b.HasPods() || new(Book).HasPods() || New(nil).HasPods() {
		t.Error("HasPods is wrong")
	}
	for pattern, want := range map[string]string{
		"shop/cart-1": "shop/cart-1[10.244.0.7 fd00::7]",
		"cart-1":      "shop/cart-1[10.244.0.7 fd00::7] test/cart-1[10.244.0.9]",
		"shop/*":      "shop/cart-1[10.244.0.7 fd00::7] shop/cart-2[10.244.0.8]",
		"cart-[23]":   "shop/cart-2[10.244.0.8]",
		"kube-dns":    "", "art-1": "", "3a7f": "3a7f[10.244.0.10]",
	} {
		found, err := b.Pods(pattern)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, m := range found {
			got = append(got, m.Owner.String()+fmt.Sprint(m.Addresses))
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s: %s, want %s", pattern, got, want)
		}
	}
	if _, err := b.Pods("["); err == nil {
		t.Error("a broken pattern is no error")
	}
}

// The last names stay while one of the two may not be read.
func TestFollow(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/api/v1/services":
			w.WriteHeader(http.StatusForbidden)
		case r.URL.Query().Get("watch") == "":
			fmt.Fprint(w, `{"metadata":{"resourceVersion":"1"},"items":[{"metadata":{"name":"a","namespace":"x"},"status":{"podIPs":[{"ip":"10.0.0.1"}]}}]}`)
		default:
			fmt.Fprint(w, `{"type":"ADDED","object":{"metadata":{"name":"b","namespace":"x","resourceVersion":"2"},"status":{"podIPs":[{"ip":"10.0.0.2"}]}}}`)
		}
	}))
	defer server.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var got []map[netip.Addr]Owner
	Follow(ctx, kubeapi.New(kubeapi.Config{Server: server.URL}), "node-1", func(pods, services map[netip.Addr]Owner) {
		got = append(got, pods)
		if services != nil {
			t.Errorf("Services %v, though nobody may list them", services)
		}
		if len(got) == 2 {
			cancel()
		}
	})
	if len(got) != 2 || len(got[0]) != 1 || len(got[1]) != 2 || got[1][addr("10.0.0.2")] != (Owner{Pod, "x", "b"}) {
		t.Errorf("names %v", got)
	}
}
