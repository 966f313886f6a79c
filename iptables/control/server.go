package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Server serves the control socket of one instance.
type Server struct {
	listener *net.UnixListener
	inode    uint64 // of the file of the socket; 0 for an abstract name
	fallback error
	http     http.Server
	done     chan struct{}
}

// Listen opens the control socket at path and serves it in the background.
//
// A path that starts with @ is an abstract name. Listen replaces the socket of a dead
// process. If a live instance listens there it takes the name beside it:
// control-PID.sock for control.sock. If the file system cannot hold a socket it takes
// an abstract name; Fallback returns the reason. [Server.Addr] returns the name that
// it took.
func Listen(path string, c Instance) (*Server, error) {
	l, fallback, err := listen(path)
	if err != nil {
		return nil, err
	}
	s := &Server{listener: l, fallback: fallback, done: make(chan struct{})}
	if name := s.Addr(); !strings.HasPrefix(name, "@") {
		s.inode = inodeOf(name)
	}
	s.http = http.Server{
		Handler:           onlyPeers(handler(c)),
		ReadHeaderTimeout: 5 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    8 << 10,
		ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
			return context.WithValue(ctx, peerKey{}, peerOf(conn))
		},
	}
	go func() {
		defer close(s.done)
		// It returns when Close is called.
		_ = s.http.Serve(l)
	}()
	return s, nil
}

// Addr returns the socket's path, or @ and its abstract name.
func (s *Server) Addr() string { return s.listener.Addr().String() }

// Fallback returns why the socket has an abstract name instead of its path, or nil.
func (s *Server) Fallback() error { return s.fallback }

// Close ends all connections and removes the socket. Requests under way see
// their context end.
func (s *Server) Close() error {
	var err error
	if name := s.Addr(); s.inode != 0 {
		// While we listen only an operator replaces the file.
		if unlock, lockErr := lockDirectory(filepath.Dir(name)); lockErr == nil {
			defer unlock()
		}
		if inodeOf(name) == s.inode {
			err = os.Remove(name)
		}
	}
	err = errors.Join(err, s.http.Close())
	<-s.done
	return err
}

func inodeOf(name string) uint64 {
	var st unix.Stat_t
	if unix.Lstat(name, &st) != nil {
		return 0
	}
	return st.Ino
}

func handler(c Instance) http.Handler {
	mux := http.NewServeMux()
	status := func() Status {
		s := c.Status()
		s.Process = Self()
		return s
	}
	change := func(do func(context.Context) error) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if err := do(r.Context()); err != nil {
				reply(w, http.StatusConflict, failure{Error: err.Error()})
				return
			}
			reply(w, http.StatusOK, status())
		}
	}
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, http.StatusOK, status())
	})
	mux.HandleFunc("POST /v1/attach", change(c.Attach))
	mux.HandleFunc("POST /v1/detach", change(c.Detach))
	if p, ok := c.(Prober); ok {
		probes(mux, p)
	}
	if q, ok := c.(QueryCounter); ok {
		queries(mux, q)
	}
	if h, ok := c.(CacheHolder); ok {
		caches(mux, h)
	}
	mux.HandleFunc("GET /v1/figures", show(c.Figures))
	mux.HandleFunc("GET /v1/corefile", show(c.Corefile))
	mux.HandleFunc("GET /v1/log", show(func() (logText, error) { return logText{string(c.Log())}, nil }))
	return mux
}

// show answers with the value that read returns.
func show[T any](read func() (T, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		answer, err := read()
		if err != nil {
			reply(w, http.StatusConflict, failure{Error: err.Error()})
			return
		}
		reply(w, http.StatusOK, answer)
	}
}

// failure is the body of an answer with an error.
type failure struct {
	Error string `json:"error"`
}

func reply(w http.ResponseWriter, code int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	// An error here means that the client is gone.
	_ = json.NewEncoder(w).Encode(body)
}

type peerKey struct{}

// onlyPeers refuses peers that are not trusted. A socket that is a file has its mode
// and its directory for that; an abstract name has neither.
func onlyPeers(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p, _ := r.Context().Value(peerKey{}).(peer)
		if err := p.trusted(); err != nil {
			reply(w, http.StatusForbidden, failure{Error: fmt.Sprintf("the control socket is for root and the user of the instance, in its container or with CAP_NET_ADMIN: %v; ask from inside the container (kubectl exec), or give the instance a directory for its socket (an emptyDir at /run/trackless, or -control FILE)", err)})
			return
		}
		next.ServeHTTP(w, r)
	})
}
