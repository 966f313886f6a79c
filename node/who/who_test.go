package who

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/trackless-dns/trackless/internal/testwait"
	"github.com/trackless-dns/trackless/kubeapi"
	"github.com/trackless-dns/trackless/kubeapi/names"
)

// fakeRuntime is a container runtime with three sandboxes, one of which ends before it is
// asked for.
type fakeRuntime struct {
	t     *testing.T
	fails bool
}

func (f *fakeRuntime) serve(_ any, stream grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(stream)
	var request []byte
	if err := stream.RecvMsg(&request); err != nil {
		return err
	}
	switch call := method + " " + string(request); {
	case f.fails:
	case call == "/runtime.v1.RuntimeService/ListPodSandbox \n\x02\x12\x00":
		return stream.SendMsg(recorded(f.t, "list.bin"))
	case call == "/runtime.v1.RuntimeService/PodSandboxStatus \n@"+cartID:
		return stream.SendMsg(recorded(f.t, "status-cart.bin"))
	case call == "/runtime.v1.RuntimeService/PodSandboxStatus \n@"+proxyID:
		return stream.SendMsg(recorded(f.t, "status-kube-proxy.bin"))
	case call != "/runtime.v1.RuntimeService/PodSandboxStatus \n@"+goneID:
		f.t.Errorf("the container runtime is asked %q", call)
	}
	return os.ErrNotExist
}

// withRuntime returns a root with the socket of a container runtime.
func withRuntime(t *testing.T, fake *fakeRuntime) string {
	t.Helper()
	root := t.TempDir()
	socket := filepath.Join(root, "run/crio/crio.sock")
	if err := os.MkdirAll(filepath.Dir(socket), 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.UnknownServiceHandler(fake.serve), grpc.ForceServerCodec(encoded{}))
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	if err := os.MkdirAll(filepath.Join(root, "proc"), 0o755); err != nil {
		t.Fatal(err)
	}
	return root
}

// withAPI returns an API server that answers each path with a status.
func withAPI(t *testing.T, pods, services int) func() (kubeapi.Config, error) {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/api/v1/pods":
			w.WriteHeader(pods)
			if r.URL.Query().Get("fieldSelector") == "spec.nodeName=node-1" {
				fmt.Fprint(w, `{"metadata":{"resourceVersion":"1"},"items":[{"metadata":{"name":"api","namespace":"shop"},"status":{"podIPs":[{"ip":"10.244.0.7"}]}}]}`)
			}
		case "/api/v1/services":
			w.WriteHeader(services)
			fmt.Fprint(w, `{"metadata":{"resourceVersion":"1"},"items":[{"metadata":{"name":"kube-dns","namespace":"kube-system"},"spec":{"clusterIP":"10.96.0.10"}}]}`)
		}
	}))
	t.Cleanup(server.Close)
	return func() (kubeapi.Config, error) { return kubeapi.Config{Server: server.URL}, nil }
}

func outside() (kubeapi.Config, error) { return kubeapi.Config{}, kubeapi.ErrNotInCluster }

func TestFind(t *testing.T) {
	for _, tc := range []struct {
		name           string
		api            func() (kubeapi.Config, error)
		runtime        *fakeRuntime
		pods           string // where the names are from
		of7, of10, of1 string // the owners of 10.244.0.7, 10.96.0.10 and 192.0.2.1
		notes          []string
	}{
		{"the API", withAPI(t, http.StatusOK, http.StatusOK), nil, FromAPI, "shop/api", "kube-system/kube-dns", "", nil},
		{"the API comes first", withAPI(t, http.StatusOK, http.StatusOK), &fakeRuntime{t: t}, FromAPI, "shop/api", "kube-system/kube-dns", "", nil},
		{"the API may not be asked for pods", withAPI(t, http.StatusForbidden, http.StatusOK), &fakeRuntime{t: t}, FromRuntime, "shop/cart", "kube-system/kube-dns", "", []string{"the value names.fromAPI=true"}},
		{"no API", outside, &fakeRuntime{t: t}, FromRuntime, "shop/cart", "", "", nil},
		{"a runtime that fails", outside, &fakeRuntime{t: t, fails: true}, "", "", "", "", []string{"crio.sock"}},
		{"nothing", outside, nil, "", "", "", "", nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			root := t.TempDir()
			if tc.runtime != nil {
				root = withRuntime(t, tc.runtime)
			} else if err := os.Mkdir(filepath.Join(root, "proc"), 0o755); err != nil {
				t.Fatal(err)
			}
			f := Node{Root: root, Name: "node-1", inCluster: tc.api}.Find(t.Context())
			if f.Pods != tc.pods {
				t.Errorf("pods from %q, want %q: %q", f.Pods, tc.pods, f.Notes)
			}
			for a, want := range map[string]string{"10.244.0.7": tc.of7, "10.96.0.10": tc.of10, "192.0.2.1": tc.of1} {
				if got := f.Book.Owner(netip.MustParseAddr(a)).String(); got != want {
					t.Errorf("%s is of %q, want %q", a, got, want)
				}
			}
			for _, want := range tc.notes {
				if !slices.ContainsFunc(f.Notes, func(n string) bool { return strings.Contains(n, want) }) {
					t.Errorf("no %q in %q", want, f.Notes)
				}
			}
			if own := f.Book.Owner(netip.MustParseAddr("127.0.0.1")); own != (names.Owner{Kind: names.Node, Name: "node-1"}) {
				t.Errorf("our own address is of %+v", own)
			}
		})
	}
}

// A name that is new in the API is seen without asking for all of them again.
func TestFollow(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		const pod = `{"metadata":{"name":%q,"namespace":"shop","resourceVersion":"2"},"status":{"podIPs":[{"ip":%q}]}}`
		switch {
		case r.URL.Path != "/api/v1/pods":
			w.WriteHeader(http.StatusForbidden)
		case r.URL.Query().Get("watch") == "true":
			fmt.Fprintf(w, `{"type":"ADDED","object":`+pod+`}`, "new", "10.244.0.8")
		default:
			fmt.Fprintf(w, `{"metadata":{"resourceVersion":"1"},"items":[`+pod+`]}`, "old", "10.244.0.7")
		}
	}))
	defer server.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	n := Node{Root: t.TempDir(), Name: "node-1", inCluster: func() (kubeapi.Config, error) { return kubeapi.Config{Server: server.URL}, nil }}
	f := n.Follow(ctx)
	testwait.True(t, time.Minute, "the new pod", func() bool {
		return f.Current(ctx).Book.Owner(netip.MustParseAddr("10.244.0.8")).Name == "new"
	})
	b := f.Current(ctx).Book
	if b.Owner(netip.MustParseAddr("10.244.0.7")).Name != "old" || b.Owner(netip.MustParseAddr("127.0.0.1")).Kind != names.Node {
		t.Errorf("followed to %+v", b)
	}
}

// Without the API the node is read again.
func TestFollowTheNode(t *testing.T) {
	n := Node{Root: withRuntime(t, &fakeRuntime{t: t}), inCluster: outside}
	f := n.Follow(t.Context())
	f.found.Book = new(names.Book)
	if f.Current(t.Context()).Book.HasPods() {
		t.Error("the node is read again at once")
	}
	f.at = f.at.Add(-refreshInterval)
	if !f.Current(t.Context()).Book.HasPods() {
		t.Error("the node is not read again")
	}
}
