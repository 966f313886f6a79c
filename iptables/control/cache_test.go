package control

import (
	"errors"
	"net/http"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// caching is an instance with a cache.
type caching struct {
	fake
	err         error
	name, qtype string
	scope       CacheScope
	flushes     int
}

func (c *caching) ShowCache(name, qtype string) (CacheContent, error) {
	c.name, c.qtype = name, qtype
	return CacheContent{Answers: []CachedAnswer{{CacheBlock: CacheBlock{ServerBlock: "dns://.:53"}, Name: name, Uses: 3}}, More: 2}, c.err
}

func (c *caching) FlushCache(scope CacheScope) (CacheRemoved, error) {
	c.scope = scope
	c.flushes++
	return CacheRemoved{Caches: []CacheFlushed{{Positive: 1, Denials: 2, Failures: 3}}}, c.err
}

func TestCacheRequests(t *testing.T) {
	instance := &caching{}
	s := serve(t, filepath.Join(t.TempDir(), "control.sock"), instance)
	c := NewClient(s.Addr())
	const name = `a b&c=\000.example.org.`
	content, err := c.ShowCache(t.Context(), name, "TYPE65")
	want := CacheContent{Process: Self(), Answers: []CachedAnswer{{CacheBlock: CacheBlock{ServerBlock: "dns://.:53"}, Name: name, Uses: 3}}, More: 2}
	if diff := cmp.Diff(want, content); err != nil || diff != "" {
		t.Errorf("error %v (-want +got):\n%s", err, diff)
	}
	if instance.name != name || instance.qtype != "TYPE65" {
		t.Errorf("asked for %q %q", instance.name, instance.qtype)
	}
	for _, scope := range []CacheScope{{}, {Name: name}, {Zone: name}} {
		removed, err := c.FlushCache(t.Context(), scope)
		if err != nil || removed.Process != Self() || removed.Caches[0].Answers() != 6 {
			t.Errorf("%+v: error %v", removed, err)
		}
		if instance.scope != scope {
			t.Errorf("flushed %+v, want %+v", instance.scope, scope)
		}
	}
	// A scope that this version does not know.
	flushes := instance.flushes
	if _, err := c.fetch(t.Context(), http.MethodPost, "cache/flush?tag=x"); err == nil || instance.flushes != flushes {
		t.Errorf("an unknown scope flushed everything: error %v", err)
	}

	instance.err = errors.New("no cache here")
	var refused *RefusedError
	if _, err := c.ShowCache(t.Context(), name, ""); !errors.As(err, &refused) || refused.Reason != "no cache here" {
		t.Errorf("error %v", err)
	}
	if _, err := c.FlushCache(t.Context(), CacheScope{}); !errors.As(err, &refused) || refused.Reason != "no cache here" {
		t.Errorf("error %v", err)
	}
}

// TestCacheOfAnOlderVersion asks an instance that does not know the request.
func TestCacheOfAnOlderVersion(t *testing.T) {
	s := serve(t, filepath.Join(t.TempDir(), "control.sock"), &fake{})
	_, err := NewClient(s.Addr()).ShowCache(t.Context(), "a", "")
	var refused *RefusedError
	if !errors.As(err, &refused) || !refused.Unknown {
		t.Errorf("error %v", err)
	}
}
