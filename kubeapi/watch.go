package kubeapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"
)

// Meta has the metadata of an object that are used here.
type Meta struct {
	Name            string `json:"name"`
	Namespace       string `json:"namespace"`
	ResourceVersion string `json:"resourceVersion"`
}

// key identifies an object in a list, which may be of all namespaces.
func (m Meta) key() string { return m.Namespace + "/" + m.Name }

// object is a kind that can be watched.
type object interface{ meta() Meta }

// Handler gets the results of a watch. One goroutine calls its functions.
type Handler[T any] struct {
	// Changed gets all objects, sorted by namespace and name, after each list and after
	// each event that changes them.
	Changed func([]T)
	// Failed gets an error when the watch fails, and nil when it works again. The last
	// objects that Changed got stay valid.
	Failed func(error)
}

// pace has the times of retries. Tests have others.
type pace struct {
	first, max time.Duration // the wait after a failed attempt, at first and at most
	watch      time.Duration // how long a watch lasts at least
}

var defaultPace = pace{first: time.Second, max: 30 * time.Second, watch: 5 * time.Minute}

// errGone: the API no longer knows the version from which to watch.
var errGone = errors.New("the resource version is too old")

// watcher watches the objects of one list.
type watcher[T object] struct {
	client  *Client
	path    string
	query   url.Values
	handler Handler[T]
	pace    pace

	objects map[string]T
	version string // the resource version from which to watch; empty: list first
	failing bool
}

func (w *watcher[T]) run(ctx context.Context) {
	delay := w.pace.first
	for ctx.Err() == nil {
		began := time.Now()
		err := w.round(ctx)
		if ctx.Err() != nil {
			return
		}
		if errors.Is(err, errGone) {
			w.version, err = "", nil
		}
		lasted := time.Since(began)
		if err == nil && lasted >= w.pace.first {
			delay = w.pace.first
			continue // the server ended the watch after its time
		}
		if lasted >= w.pace.max {
			delay = w.pace.first // it has worked for a while
		}
		if err != nil {
			w.failed(err)
		}
		// Between half and all of the delay, so that nodes do not ask at the same time.
		wait := delay/2 + rand.N(delay/2+1)
		delay = min(2*delay, w.pace.max)
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// round lists if there is no version, and watches until the server ends the watch.
func (w *watcher[T]) round(ctx context.Context) error {
	if w.version == "" {
		if err := w.list(ctx); err != nil {
			return err
		}
	}
	return w.watch(ctx)
}

func (w *watcher[T]) failed(err error) {
	if err == nil && !w.failing {
		return
	}
	w.failing = err != nil
	w.handler.Failed(err)
}

func (w *watcher[T]) changed() {
	objects := make([]T, 0, len(w.objects))
	for _, key := range slices.Sorted(maps.Keys(w.objects)) {
		objects = append(objects, w.objects[key])
	}
	w.handler.Changed(objects)
}

func (w *watcher[T]) list(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	objects := map[string]T{}
	version, err := list(ctx, w.client, w.path, w.query, func(o T) { objects[o.meta().key()] = o })
	if err != nil {
		return err
	}
	if version == "" {
		return fmt.Errorf("the Kubernetes API's list of %s has no resource version", w.path)
	}
	w.version, w.objects = version, objects
	w.failed(nil)
	w.changed()
	return nil
}

// watch applies the events since w.version and advances it.
func (w *watcher[T]) watch(ctx context.Context) error {
	hold := w.pace.watch + rand.N(w.pace.watch)
	ctx, cancel := context.WithTimeout(ctx, hold+30*time.Second)
	defer cancel()
	query := url.Values{}
	maps.Copy(query, w.query)
	query.Set("watch", "true")
	query.Set("allowWatchBookmarks", "true")
	query.Set("resourceVersion", w.version)
	query.Set("timeoutSeconds", strconv.Itoa(max(int(hold/time.Second), 1)))
	body, err := w.client.get(ctx, w.path, query)
	if err != nil {
		return gone(err)
	}
	defer body.Close()
	w.failed(nil)
	decoder := json.NewDecoder(body)
	for {
		var event struct {
			Type   string          `json:"type"`
			Object json.RawMessage `json:"object"`
		}
		err := decoder.Decode(&event)
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("watch %s: %w", w.path, err)
		}
		if err := w.apply(event.Type, event.Object); err != nil {
			return err
		}
	}
}

func (w *watcher[T]) apply(kind string, raw json.RawMessage) error {
	if kind == "ERROR" {
		var status struct {
			Code    int
			Message string
		}
		if err := json.Unmarshal(raw, &status); err != nil {
			return fmt.Errorf("watch %s: %w", w.path, err)
		}
		return gone(&StatusError{Code: status.Code, Message: status.Message})
	}
	var o T
	if err := json.Unmarshal(raw, &o); err != nil {
		return fmt.Errorf("watch %s: %w", w.path, err)
	}
	m := o.meta()
	if m.ResourceVersion != "" {
		w.version = m.ResourceVersion
	}
	switch kind {
	case "ADDED", "MODIFIED":
		w.objects[m.key()] = o
	case "DELETED":
		delete(w.objects, m.key())
	default:
		return nil // BOOKMARK, or an event of a later version of the API
	}
	w.changed()
	return nil
}

// gone turns "410 Gone" into errGone.
func gone(err error) error {
	var status *StatusError
	if errors.As(err, &status) && status.Code == http.StatusGone {
		return errGone
	}
	return err
}
