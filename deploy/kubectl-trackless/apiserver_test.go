package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/gorilla/websocket"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
)

// An apiServer is what the plugin sees of a cluster.
type apiServer struct {
	*httptest.Server

	nodes []corev1.Node
	ours  []corev1.Pod
	// refused are requests that RBAC forbids, by both ways of asking.
	refused map[request]bool
	// creating answers the creation of a debug pod in place of the server.
	creating func(http.ResponseWriter) (done bool)
	// reading answers the reading of a debug pod in place of the server.
	reading func(http.ResponseWriter) (done bool)
	// state sets the state of a debug pod before it is shown.
	state func(*corev1.Pod)
	// cutOff ends an exec stream in place of the status.
	cutOff bool
	// says is the output of a program on a node.
	says func(node string, command []string) output

	mu      sync.Mutex
	debug   map[string]*corev1.Pod
	made    []*corev1.Pod
	removed []string
	execs   [][]string
	// creationTimeout is what the last creation of a pod may take.
	creationTimeout string
}

// newServer is a cluster with these nodes, in which every program says text.
func newServer(t *testing.T, says func(node string, command []string) output, nodes ...string) *apiServer {
	t.Helper()
	s := &apiServer{says: says, refused: map[request]bool{}, debug: map[string]*corev1.Pod{}}
	for _, n := range nodes {
		s.nodes = append(s.nodes, node(n, true))
	}
	s.state = func(p *corev1.Pod) { ended(p, s.says(p.Spec.NodeName, p.Spec.Containers[0].Command).status) }
	mux := http.NewServeMux()
	mux.HandleFunc("GET /api/v1/nodes", s.listNodes)
	mux.HandleFunc("GET /api/v1/nodes/{name}", s.getNode)
	mux.HandleFunc("GET /api/v1/pods", s.listPods)
	mux.HandleFunc("GET /api/v1/namespaces/{namespace}/pods", s.listPods)
	mux.HandleFunc("POST /api/v1/namespaces/{namespace}/pods", s.createPod)
	mux.HandleFunc("GET /api/v1/namespaces/{namespace}/pods/{name}", s.getPod)
	mux.HandleFunc("DELETE /api/v1/namespaces/{namespace}/pods/{name}", s.deletePod)
	mux.HandleFunc("GET /api/v1/namespaces/{namespace}/pods/{name}/log", s.log)
	mux.HandleFunc("GET /api/v1/namespaces/{namespace}/pods/{name}/exec", s.exec)
	mux.HandleFunc("POST /apis/authorization.k8s.io/v1/selfsubjectaccessreviews", s.review)
	s.Server = httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return s
}

func node(name string, ready bool) corev1.Node {
	status := corev1.ConditionFalse
	if ready {
		status = corev1.ConditionTrue
	}
	n := corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelOSStable: "linux"}}}
	n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: status}}
	return n
}

// ourPod is one of the DaemonSet.
func ourPod(namespace, name, node string) corev1.Pod {
	yes := true
	p := corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		Name: name, Namespace: namespace, Labels: map[string]string{"app.kubernetes.io/name": "trackless"},
		OwnerReferences: []metav1.OwnerReference{{Kind: "DaemonSet", Name: "trackless", Controller: &yes}},
	}}
	p.Spec = corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: containerName}}}
	p.Status.Phase = corev1.PodRunning
	p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: containerName, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}}
	p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
	return p
}

func ended(p *corev1.Pod, status int) {
	p.Status.ContainerStatuses = []corev1.ContainerStatus{{State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: int32(status)}}}}
}

func waiting(p *corev1.Pod, reason, message string) {
	p.Status.ContainerStatuses = []corev1.ContainerStatus{{State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: message}}}}
}

func reply(w http.ResponseWriter, status int, object any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(object) // to a client that may be gone
}

func fail(w http.ResponseWriter, code int32, reason metav1.StatusReason, message string) {
	reply(w, int(code), metav1.Status{
		TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusFailure, Code: code, Reason: reason, Message: message,
	})
}

// decode reads an object, whatever its encoding is.
func decode(r *http.Request, into runtime.Object) error {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return err
	}
	_, _, err = serializer.NewCodecFactory(types).UniversalDeserializer().Decode(body, nil, into)
	return err
}

// forbids answers a request that RBAC forbids.
func (s *apiServer) forbids(w http.ResponseWriter, r request) bool {
	if s.refused[r] {
		fail(w, http.StatusForbidden, metav1.StatusReasonForbidden, r.resource+` is forbidden: User "dev" cannot `+r.verb+` resource "`+r.resource+`"`)
	}
	return s.refused[r]
}

func (s *apiServer) listNodes(w http.ResponseWriter, r *http.Request) {
	if s.forbids(w, request{"list", "nodes", ""}) {
		return
	}
	list := corev1.NodeList{TypeMeta: metav1.TypeMeta{Kind: "NodeList", APIVersion: "v1"}}
	for _, n := range s.nodes {
		key, value, given := strings.Cut(r.URL.Query().Get("labelSelector"), "=")
		if !given || n.Labels[key] == value {
			list.Items = append(list.Items, n)
		}
	}
	reply(w, http.StatusOK, list)
}

func (s *apiServer) getNode(w http.ResponseWriter, r *http.Request) {
	if s.forbids(w, request{"get", "nodes", ""}) {
		return
	}
	for _, n := range s.nodes {
		if n.Name == r.PathValue("name") {
			n.TypeMeta = metav1.TypeMeta{Kind: "Node", APIVersion: "v1"}
			reply(w, http.StatusOK, n)
			return
		}
	}
	fail(w, http.StatusNotFound, metav1.StatusReasonNotFound, "not found")
}

func (s *apiServer) listPods(w http.ResponseWriter, r *http.Request) {
	namespace := r.PathValue("namespace")
	if s.forbids(w, request{"list", "pods", namespace}) {
		return
	}
	list := corev1.PodList{TypeMeta: metav1.TypeMeta{Kind: "PodList", APIVersion: "v1"}}
	key, value, _ := strings.Cut(r.URL.Query().Get("labelSelector"), "=")
	for _, p := range s.ours {
		if (namespace == "" || p.Namespace == namespace) && p.Labels[key] == value {
			list.Items = append(list.Items, p)
		}
	}
	reply(w, http.StatusOK, list)
}

func (s *apiServer) createPod(w http.ResponseWriter, r *http.Request) {
	if s.forbids(w, request{"create", "pods", r.PathValue("namespace")}) {
		return
	}
	p := &corev1.Pod{}
	if err := decode(r, p); err != nil {
		fail(w, http.StatusBadRequest, metav1.StatusReasonBadRequest, err.Error())
		return
	}
	s.mu.Lock()
	s.debug[p.Name] = p
	s.made = append(s.made, p)
	s.creationTimeout = r.URL.Query().Get("timeout")
	s.mu.Unlock()
	if s.creating == nil || !s.creating(w) {
		reply(w, http.StatusCreated, p)
	}
}

func (s *apiServer) getPod(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.reading != nil && s.reading(w) {
		return
	}
	p := s.debug[r.PathValue("name")]
	if p == nil {
		fail(w, http.StatusNotFound, metav1.StatusReasonNotFound, "not found")
		return
	}
	s.state(p)
	p.TypeMeta = metav1.TypeMeta{Kind: "Pod", APIVersion: "v1"}
	reply(w, http.StatusOK, p)
}

func (s *apiServer) deletePod(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	name := r.PathValue("name")
	p := s.debug[name]
	if p == nil {
		fail(w, http.StatusNotFound, metav1.StatusReasonNotFound, "not found")
		return
	}
	delete(s.debug, name)
	s.removed = append(s.removed, name)
	reply(w, http.StatusOK, p)
}

// log mixes both outputs by lines, as a kubelet does: the messages come amid the
// document.
func (s *apiServer) log(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.debug[r.PathValue("name")]
	out := s.says(p.Spec.NodeName, p.Spec.Containers[0].Command)
	first, rest, _ := strings.Cut(out.stdout, "\n")
	if first != "" {
		first += "\n"
	}
	if out.stderr != "" {
		out.stderr += "\n"
	}
	_, _ = fmt.Fprint(w, first, out.stderr, rest)
}

func (s *apiServer) exec(w http.ResponseWriter, r *http.Request) {
	if s.forbids(w, request{"create", "pods/exec", r.PathValue("namespace")}) {
		return
	}
	command := r.URL.Query()["command"]
	nodeName := ""
	for _, p := range s.ours {
		if p.Name == r.PathValue("name") {
			nodeName = p.Spec.NodeName
		}
	}
	s.mu.Lock()
	s.execs = append(s.execs, command)
	s.mu.Unlock()
	upgrader := websocket.Upgrader{Subprotocols: []string{"v5.channel.k8s.io"}}
	conn, err := upgrader.Upgrade(w, r, nil)
	if err != nil {
		return
	}
	defer conn.Close()
	out := s.says(nodeName, command)
	status := metav1.Status{Status: metav1.StatusSuccess}
	if out.status != 0 {
		status = metav1.Status{Status: metav1.StatusFailure, Reason: "NonZeroExitCode", Details: &metav1.StatusDetails{
			Causes: []metav1.StatusCause{{Type: "ExitCode", Message: fmt.Sprint(out.status)}},
		}}
	}
	text, _ := json.Marshal(status)
	if s.cutOff {
		_ = conn.WriteMessage(websocket.BinaryMessage, []byte("\x01"+out.stdout[:len(out.stdout)/2]))
		return
	}
	for _, m := range []string{"\x01" + out.stdout, "\x02" + out.stderr, "\x03" + string(text)} {
		_ = conn.WriteMessage(websocket.BinaryMessage, []byte(m))
	}
	_ = conn.WriteMessage(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""))
}

func (s *apiServer) review(w http.ResponseWriter, r *http.Request) {
	review := authorizationv1.SelfSubjectAccessReview{}
	if err := decode(r, &review); err != nil {
		fail(w, http.StatusBadRequest, metav1.StatusReasonBadRequest, err.Error())
		return
	}
	a := review.Spec.ResourceAttributes
	resource := a.Resource
	if a.Subresource != "" {
		resource += "/" + a.Subresource
	}
	review.TypeMeta = metav1.TypeMeta{Kind: "SelfSubjectAccessReview", APIVersion: "authorization.k8s.io/v1"}
	review.Status.Allowed = !s.refused[request{a.Verb, resource, a.Namespace}]
	reply(w, http.StatusCreated, review)
}

// kubectl runs the plugin on the cluster.
func (s *apiServer) kubectl(ctx context.Context, t *testing.T, args ...string) (status int, out, errs string) {
	t.Helper()
	config := filepath.Join(t.TempDir(), "kubeconfig")
	text := fmt.Sprintf(`{apiVersion: v1, kind: Config, current-context: c,
  clusters: [{name: c, cluster: {server: %q}}], contexts: [{name: c, context: {cluster: c}}]}`, s.URL)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var o, e bytes.Buffer
	status = run(ctx, append(args, "--kubeconfig", config), &o, &e)
	return status, o.String(), e.String()
}

// empty fails if a debug pod is left.
func (s *apiServer) empty(t *testing.T, made int) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.debug) != 0 || len(s.removed) != made || len(s.made) != made {
		t.Errorf("%d debug pods made, %d removed, %d left; want %d made and none left", len(s.made), len(s.removed), len(s.debug), made)
	}
}
