package kubeapi

import (
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/trackless-dns/trackless/internal/testwait"
)

// fakeAPI is an API server with one list of objects. Like a real one, it gives each change
// a version, begins a watch at a version, and forgets old versions.
type fakeAPI struct {
	t      *testing.T
	server *httptest.Server

	mu       sync.Mutex
	token    string
	refuse   int // HTTP status of every answer
	version  int
	oldest   int // versions up to this one are forgotten
	objects  map[string]json.RawMessage
	events   []fakeEvent
	change   chan struct{} // closed at a change
	hangUp   chan struct{} // closed to end all watches
	requests []*http.Request
}

type fakeEvent struct {
	version int
	text    string
}

func newFakeAPI(t *testing.T) *fakeAPI {
	f := &fakeAPI{t: t, token: "one", version: 10, objects: map[string]json.RawMessage{}, change: make(chan struct{}), hangUp: make(chan struct{})}
	f.server = httptest.NewUnstartedServer(f)
	f.server.EnableHTTP2 = true
	f.server.StartTLS()
	t.Cleanup(func() {
		f.dropWatches()
		f.server.Close()
	})
	return f
}

// config returns a configuration with the files that kubelet mounts.
func (f *fakeAPI) config() Config {
	dir := f.t.TempDir()
	c := Config{Server: f.server.URL, TokenFile: filepath.Join(dir, "token"), CAFile: filepath.Join(dir, "ca.crt")}
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: f.server.Certificate().Raw})
	for path, text := range map[string]string{c.TokenFile: "one\n", c.CAFile: string(ca)} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			f.t.Fatal(err)
		}
	}
	return c
}

// set adds or changes an object, named NAME or NAMESPACE/NAME and given as the JSON behind
// its metadata; remove deletes it.
func (f *fakeAPI) set(name, rest string) { f.note(name, rest, false) }
func (f *fakeAPI) remove(name string)    { f.note(name, "", true) }

func (f *fakeAPI) note(name, rest string, remove bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.version++
	if rest != "" {
		rest = "," + rest
	}
	namespace, short := path.Split(name)
	namespace = strings.TrimSuffix(namespace, "/")
	o := json.RawMessage(fmt.Sprintf(`{"metadata":{"name":%q,"namespace":%q,"resourceVersion":"%d"}%s}`, short, namespace, f.version, rest))
	kind := "MODIFIED"
	if _, ok := f.objects[name]; !ok {
		kind = "ADDED"
	}
	f.objects[name] = o
	if remove {
		kind = "DELETED"
		delete(f.objects, name)
	}
	f.emit(kind, o)
}

// emit sends an event to the watches. mu is held.
func (f *fakeAPI) emit(kind string, o json.RawMessage) {
	f.events = append(f.events, fakeEvent{f.version, fmt.Sprintf(`{"type":%q,"object":%s}`+"\n", kind, o)})
	close(f.change)
	f.change = make(chan struct{})
}

// bookmark moves the version without a change.
func (f *fakeAPI) bookmark() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.version += 100
	f.emit("BOOKMARK", json.RawMessage(fmt.Sprintf(`{"metadata":{"resourceVersion":"%d"}}`, f.version)))
}

// forget makes all versions up to now too old for a watch.
func (f *fakeAPI) forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.oldest = f.version + 1
	f.version += 2
	f.events = nil
}

func (f *fakeAPI) dropWatches() {
	f.mu.Lock()
	defer f.mu.Unlock()
	close(f.hangUp)
	f.hangUp = make(chan struct{})
}

func (f *fakeAPI) answer(status int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refuse = status
}

// asked returns the number of requests whose URL has the text.
func (f *fakeAPI) asked(text string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, r := range f.requests {
		if strings.Contains(r.URL.String(), text) {
			n++
		}
	}
	return n
}

func (f *fakeAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	f.requests = append(f.requests, r)
	status := f.refuse
	if r.Header.Get("Authorization") != "Bearer "+f.token {
		status = http.StatusUnauthorized
	}
	watching := r.URL.Query().Get("watch") == "true"
	if status == 0 && watching {
		var from int
		_, err := fmt.Sscan(r.URL.Query().Get("resourceVersion"), &from)
		hangUp := f.hangUp
		f.mu.Unlock()
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		f.watch(w, r, from, hangUp)
		return
	}
	defer f.mu.Unlock()
	if status != 0 {
		w.WriteHeader(status)
		fmt.Fprintf(w, `{"kind":"Status","code":%d,"message":"no, %d"}`, status, status)
		return
	}
	var items []string
	for _, o := range f.objects {
		items = append(items, string(o))
	}
	fmt.Fprintf(w, `{"metadata":{"resourceVersion":"%d"},"items":[%s]}`, f.version, strings.Join(items, ","))
}

func (f *fakeAPI) watch(w http.ResponseWriter, r *http.Request, from int, hangUp <-chan struct{}) {
	for sent := from; ; {
		f.mu.Lock()
		change, events, tooOld := f.change, f.events, sent < f.oldest
		f.mu.Unlock()
		if tooOld {
			fmt.Fprint(w, `{"type":"ERROR","object":{"kind":"Status","code":410,"message":"too old resource version"}}`+"\n")
			return
		}
		for _, e := range events {
			if e.version > sent {
				sent = e.version
				fmt.Fprint(w, e.text)
			}
		}
		w.(http.Flusher).Flush()
		select {
		case <-change:
		case <-hangUp:
			return
		case <-r.Context().Done():
			return
		}
	}
}

func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	testwait.True(t, time.Minute, what, holds)
}
