package kubeapi

import (
	"context"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// seen is what a handler got last.
type seen struct {
	mu      sync.Mutex
	names   []string
	lists   int
	err     error
	failed  int
	stopped chan struct{}
}

func (s *seen) has(names ...string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Equal(s.names, names) && s.lists > 0
}

func (s *seen) failure() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		return ""
	}
	return s.err.Error()
}

// follow watches the fake API until the test ends.
func follow(t *testing.T, config Config) *seen {
	t.Helper()
	s := &seen{stopped: make(chan struct{})}
	w := &watcher[Service]{
		client: New(config), path: "/api/v1/namespaces/kube-system/services", query: url.Values{"fieldSelector": {"metadata.name=x"}},
		pace: pace{first: 5 * time.Millisecond, max: 50 * time.Millisecond, watch: time.Minute},
		handler: Handler[Service]{
			Changed: func(services []Service) {
				s.mu.Lock()
				defer s.mu.Unlock()
				s.names, s.lists = nil, s.lists+1
				for _, o := range services {
					s.names = append(s.names, o.Metadata.Name+o.Spec.ClusterIP)
				}
			},
			Failed: func(err error) {
				s.mu.Lock()
				defer s.mu.Unlock()
				s.err = err
				s.failed++
			},
		},
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		defer close(s.stopped)
		w.run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		select {
		case <-s.stopped:
		case <-time.After(time.Minute):
			t.Error("the watch does not end with its context")
		}
	})
	return s
}

func TestWatch(t *testing.T) {
	for _, tc := range []struct {
		name string
		play func(t *testing.T, f *fakeAPI, s *seen, c Config)
	}{
		{"events", func(t *testing.T, f *fakeAPI, s *seen, _ Config) {
			f.set("b", "")
			eventually(t, "added", func() bool { return s.has("a1", "b") })
			f.set("b", `"spec":{"clusterIP":"2"}`)
			eventually(t, "modified", func() bool { return s.has("a1", "b2") })
			f.remove("a")
			eventually(t, "deleted", func() bool { return s.has("b2") })
			if n := f.asked("fieldSelector"); n != 2 {
				t.Errorf("%d requests, want a list and a watch", n)
			}
		}},
		{"one name in two namespaces", func(t *testing.T, f *fakeAPI, s *seen, _ Config) {
			f.set("x/a", `"spec":{"clusterIP":"2"}`)
			f.set("y/a", `"spec":{"clusterIP":"3"}`)
			eventually(t, "both added", func() bool { return s.has("a1", "a2", "a3") })
			f.remove("x/a")
			eventually(t, "one deleted", func() bool { return s.has("a1", "a3") })
		}},
		{"a watch that ends is taken up where it was", func(t *testing.T, f *fakeAPI, s *seen, _ Config) {
			eventually(t, "the watch", func() bool { return f.asked("watch=true") == 1 })
			f.bookmark()
			f.set("b", "")
			eventually(t, "added", func() bool { return s.has("a1", "b") })
			f.dropWatches()
			eventually(t, "the next watch", func() bool { return f.asked("resourceVersion=112") >= 1 })
			f.set("c", "")
			eventually(t, "added", func() bool { return s.has("a1", "b", "c") })
			if s.failure() != "" {
				t.Errorf("an ordinary end is a failure: %s", s.failure())
			}
		}},
		{"bookmarks move the version", func(t *testing.T, f *fakeAPI, _ *seen, _ Config) {
			eventually(t, "the watch", func() bool { return f.asked("watch=true") == 1 })
			f.bookmark()
			eventually(t, "taken up behind the bookmark", func() bool {
				f.dropWatches()
				return f.asked("resourceVersion=111") > 0
			})
		}},
		{"a version that is too old", func(t *testing.T, f *fakeAPI, s *seen, _ Config) {
			eventually(t, "the watch", func() bool { return f.asked("watch=true") == 1 })
			f.forget()
			f.mu.Lock()
			delete(f.objects, "a") // nobody is told
			f.mu.Unlock()
			f.set("b", "")
			f.dropWatches()
			eventually(t, "listed again", func() bool { return s.has("b") })
			f.set("c", "")
			eventually(t, "watched again", func() bool { return s.has("b", "c") })
		}},
		{"410 as HTTP status", func(t *testing.T, f *fakeAPI, s *seen, _ Config) {
			f.answer(http.StatusGone)
			f.dropWatches()
			before := f.asked("")
			eventually(t, "asked again", func() bool { return f.asked("") > before+1 })
			f.answer(0)
			f.set("b", "")
			eventually(t, "followed again", func() bool { return s.has("a1", "b") })
		}},
		{"the API is away", func(t *testing.T, f *fakeAPI, s *seen, _ Config) {
			f.answer(http.StatusServiceUnavailable)
			f.dropWatches()
			eventually(t, "it is said", func() bool { return strings.Contains(s.failure(), "answers 503: no, 503") })
			if !s.has("a1") {
				t.Errorf("what was known is forgotten: %v", s.names)
			}
			f.answer(0)
			f.set("b", "")
			eventually(t, "followed again", func() bool { return s.has("a1", "b") && s.failure() == "" })
		}},
		{"no permission", func(t *testing.T, f *fakeAPI, s *seen, _ Config) {
			f.answer(http.StatusForbidden)
			f.dropWatches()
			eventually(t, "it is said", func() bool { return strings.Contains(s.failure(), "Role and a RoleBinding") })
		}},
		{"the token is renewed", func(t *testing.T, f *fakeAPI, s *seen, c Config) {
			f.mu.Lock()
			f.token = "two"
			f.mu.Unlock()
			f.dropWatches()
			eventually(t, "the old one is refused", func() bool { return strings.Contains(s.failure(), "does not know this service account") })
			if err := os.WriteFile(c.TokenFile, []byte("two"), 0o600); err != nil {
				t.Fatal(err)
			}
			f.set("b", "")
			eventually(t, "followed again", func() bool { return s.has("a1", "b") && s.failure() == "" })
		}},
		{"the CA is another one", func(t *testing.T, f *fakeAPI, s *seen, c Config) {
			right, err := os.ReadFile(c.CAFile)
			if err != nil {
				t.Fatal(err)
			}
			wrong := certificate(t)
			if err := os.WriteFile(c.CAFile, wrong, 0o600); err != nil {
				t.Fatal(err)
			}
			f.dropWatches()
			eventually(t, "it is not trusted", func() bool { return strings.Contains(s.failure(), "x509") })
			if err := os.WriteFile(c.CAFile, right, 0o600); err != nil {
				t.Fatal(err)
			}
			f.set("b", "")
			eventually(t, "followed again", func() bool { return s.has("a1", "b") && s.failure() == "" })
		}},
		{"a stream that breaks off", func(t *testing.T, f *fakeAPI, s *seen, _ Config) {
			eventually(t, "the watch", func() bool { return f.asked("watch=true") == 1 })
			f.server.CloseClientConnections()
			f.set("b", "")
			eventually(t, "followed again", func() bool { return s.has("a1", "b") })
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := newFakeAPI(t)
			f.set("a", `"spec":{"clusterIP":"1"}`)
			config := f.config()
			s := follow(t, config)
			// Only a watch that has begun can be dropped.
			eventually(t, "watched", func() bool { return s.has("a1") && f.asked("watch=true") > 0 })
			tc.play(t, f, s, config)
		})
	}
}

func TestAnAPIThatComesLater(t *testing.T) {
	f := newFakeAPI(t)
	f.answer(http.StatusBadGateway)
	s := follow(t, f.config())
	eventually(t, "it is said", func() bool { return s.failure() != "" })
	if s.has() {
		t.Error("an API that does not answer has an empty list")
	}
	f.answer(0)
	f.set("a", "")
	eventually(t, "listed", func() bool { return s.has("a") })
}

func TestNobodyAnswers(t *testing.T) {
	f := newFakeAPI(t)
	config := f.config()
	f.server.Close()
	s := follow(t, config)
	eventually(t, "it is said", func() bool { return strings.Contains(s.failure(), "ask the Kubernetes API") })
}
