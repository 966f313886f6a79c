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

// Meta is the part of an object's metadata that is used here.
type Meta struct {
	Name            string `json:"name"`
	Namespace       string `json:"namespace"`
	ResourceVersion string `json:"resourceVersion"`
}

// object is a kind that can be watched.
type object interface{ meta() Meta }

// Handler is told what a watch finds out. Its functions are called by one
// goroutine.
type Handler[T any] struct {
	// Changed gets all objects there are, ordered by name, after each list and
	// each event that changes them.
	Changed func([]T)
	// Failed gets what went wrong, nil when all is well again. What Changed got
	// last stays valid.
	Failed func(error)
}

// Times of retries; tests have others.
type pace struct {
	first, max time.Duration // between two attempts that failed
	watch      time.Duration // how long the server holds a watch at least
}

var defaultPace = pace{first: time.Second, max: 30 * time.Second, watch: 5 * time.Minute}

// maxList bounds the body of a list.
const maxList = 32 << 20

// errGone says that the API no longer knows the version from which to watch.
var errGone = errors.New("the resource version is too old")

// watcher follows the objects of one list.
type watcher[T object] struct {
	client  *Client
	path    string
	query   url.Values
	handler Handler[T]
	pace    pace

	objects map[string]T
	version string // from which to watch
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
			delay = w.pace.first // it went well for a while
		}
		if err != nil {
			w.failed(err)
		}
		// Between half and all of it, so that nodes do not ask at once.
		wait := delay/2 + rand.N(delay/2+1)
		delay = min(2*delay, w.pace.max)
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// round lists if need be, and watches until the server ends that.
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
	for _, name := range slices.Sorted(maps.Keys(w.objects)) {
		objects = append(objects, w.objects[name])
	}
	w.handler.Changed(objects)
}

func (w *watcher[T]) list(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	body, err := w.client.get(ctx, w.path, w.query)
	if err != nil {
		return err
	}
	defer body.Close()
	var list struct {
		Metadata Meta `json:"metadata"`
		Items    []T  `json:"items"`
	}
	if err := json.NewDecoder(io.LimitReader(body, maxList)).Decode(&list); err != nil {
		return fmt.Errorf("read the Kubernetes API's list of %s: %w", w.path, err)
	}
	w.version = list.Metadata.ResourceVersion
	if w.version == "" {
		return fmt.Errorf("the Kubernetes API's list of %s has no resource version", w.path)
	}
	w.objects = map[string]T{}
	for _, o := range list.Items {
		w.objects[o.meta().Name] = o
	}
	w.failed(nil)
	w.changed()
	return nil
}

// watch follows events from w.version on and moves it forward.
func (w *watcher[T]) watch(ctx context.Context) error {
	hold := w.pace.watch + rand.N(w.pace.watch)
	ctx, cancel := context.WithTimeout(ctx, hold+30*time.Second)
	defer cancel()
	query := maps.Clone(w.query)
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
		w.objects[m.Name] = o
	case "DELETED":
		delete(w.objects, m.Name)
	default:
		return nil // BOOKMARK, and what later versions may have
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
