package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

var update = flag.Bool("update", false, "write the golden files")

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s: got\n%s\nwant\n%s", path, got, want)
	}
}

const healthy = `{
  "time": "2026-01-02T03:04:05Z",
  "worst": "ok",
  "findings": [],
  "entries": 1200,
  "limit": 262144,
  "interval_seconds": 2
}
`

const ill = `{
  "time": "2026-01-02T03:04:05Z",
  "worst": "critical",
  "findings": [
    {
      "id": "table-full",
      "severity": "critical",
      "title": "the table is full",
      "evidence": ["262,140 entries of 262,144", "37 packets were dropped in 2 s"],
      "remedy": ["raise net.netfilter.nf_conntrack_max to 524288"],
      "memory": "96 MiB more when full",
      "risk": "none",
      "symptoms": ["timeouts", "intermittent-dns"]
    },
    {
      "id": "dns-share",
      "severity": "warning",
      "title": "DNS is 61 % of the table",
      "evidence": ["160,000 entries over port 53"],
      "remedy": ["install Trackless"]
    }
  ],
  "missing": ["the kernel's log: permission denied"],
  "entries": 262140,
  "limit": 262144,
  "interval_seconds": 2
}
`

// doctors says that the node n2 is ill, that n3 cannot be measured, and that others
// are healthy.
func doctors(node string, _ []string) output {
	switch node {
	case "n2":
		return output{ill, "trackless: doctor: 1 critical, 1 warnings", 2}
	case "n3":
		return output{"", "trackless: conntrack: dial: operation not permitted (needs CAP_NET_ADMIN)", 3}
	}
	return output{healthy, "", 0}
}

// A node with our pod is asked through it, another through a debug pod, and the text
// has the worst first.
func TestDoctor(t *testing.T) {
	t.Parallel()
	s := newServer(t, doctors, "n1", "n2", "n3", "n4")
	s.nodes[3].Labels[corev1.LabelOSStable] = "windows"
	s.ours = []corev1.Pod{ourPod("kube-system", "trackless-a", "n1"), ourPod("kube-system", "trackless-c", "n3")}
	status, out, errs := s.kubectl(t.Context(), t, "doctor", "--all-nodes")
	if status != exitCritical || !strings.Contains(errs, "of 3 nodes 1 with critical findings, 1 not measured") {
		t.Errorf("status %d, %q", status, errs)
	}
	golden(t, "doctor.txt", out)
	s.empty(t, 1)
	if want := []string{"/trackless", "doctor", "-o", "json", "--interval", "2s", "--ask", "example.org"}; len(s.execs) != 2 || !slices.Equal(s.execs[0], want) {
		t.Errorf("run in our pods: %q, want %q twice", s.execs, want)
	}
}

func TestJSON(t *testing.T) {
	t.Parallel()
	s := newServer(t, doctors, "n1", "n2")
	s.ours = []corev1.Pod{ourPod("dns", "trackless-b", "n2")}
	status, out, errs := s.kubectl(t.Context(), t, "doctor", "--node", "n2", "-A", "-o", "json")
	var got struct {
		Command string
		Status  int
		Nodes   []answer
	}
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		t.Fatalf("%v\n%s%s", err, out, errs)
	}
	if status != exitCritical || got.Status != status || got.Command != "trackless doctor" || len(got.Nodes) != 1 {
		t.Fatalf("status %d, %+v", status, got)
	}
	if a := got.Nodes[0]; a.Node != "n2" || a.Pod != "dns/trackless-b" || a.DebugPod || a.Status != 2 || !strings.Contains(string(a.Report), `"table-full"`) {
		t.Errorf("%+v", a)
	}
}

func TestStatus(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		of   []int
		want int
	}{
		{"all healthy", []int{0, 0}, 0},
		{"a warning", []int{0, 1}, exitWarnings},
		{"critical counts most", []int{1, 3, 2}, exitCritical},
		{"findings count before a node that was not measured", []int{3, 1}, exitWarnings},
		{"nothing found, a node not measured", []int{0, 3}, exitCannotMeasure},
	} {
		var answers []answer
		for _, status := range test.of {
			answers = append(answers, answer{Status: status})
		}
		if got := statusOf(answers); got != test.want {
			t.Errorf("%s: %d, want %d", test.name, got, test.want)
		}
	}
}

// The debug pod has what the question needs, and no more.
func TestDebugPod(t *testing.T) {
	t.Parallel()
	c := &cluster{namespace: "ops", image: "registry.invalid/trackless:1"}
	for _, test := range []struct {
		name         string
		q            question
		capabilities string
		escalation   bool // not forbidden
		hostPID      bool
		hostNetwork  bool
	}{
		{"doctor", doctorQuestion(time.Second, "example.org"), "NET_ADMIN SYS_PTRACE SYS_ADMIN", true, true, true},
		{"doctor that asks no server", doctorQuestion(time.Second, "off"), "NET_ADMIN SYS_PTRACE", false, true, true},
		{"nothing of the node", question{args: []string{"compare"}, files: map[string][]byte{"a": []byte("{}")}}, "", false, false, false},
	} {
		p := c.debugPod("n1", test.q, 90*time.Second)
		spec, container := p.Spec, p.Spec.Containers[0]
		var added []string
		for _, capability := range container.SecurityContext.Capabilities.Add {
			added = append(added, string(capability))
		}
		if got := strings.Join(added, " "); got != test.capabilities || !slices.Equal(container.SecurityContext.Capabilities.Drop, []corev1.Capability{"ALL"}) {
			t.Errorf("%s: capabilities %q, want %q", test.name, got, test.capabilities)
		}
		if (container.SecurityContext.AllowPrivilegeEscalation == nil) != test.escalation || container.SecurityContext.Privileged != nil {
			t.Errorf("%s: %+v", test.name, container.SecurityContext)
		}
		if spec.HostPID != test.hostPID || spec.HostNetwork != test.hostNetwork || spec.HostIPC {
			t.Errorf("%s: host PID %t, network %t", test.name, spec.HostPID, spec.HostNetwork)
		}
		if spec.NodeName != "n1" || *spec.AutomountServiceAccountToken || *spec.ActiveDeadlineSeconds != 90 ||
			spec.RestartPolicy != corev1.RestartPolicyNever || spec.Tolerations[0].Operator != corev1.TolerationOpExists || container.Image != c.image || p.Namespace != "ops" {
			t.Errorf("%s: %+v", test.name, spec)
		}
	}
}

// Whatever happens to a debug pod, it is removed, and the error says what happened.
func TestDebugPodIsRemoved(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name     string
		state    func(*corev1.Pod)
		creating func(http.ResponseWriter) bool
		timeout  string
		made     int
		want     string
	}{
		{"it ends", nil, nil, "1m", 1, ""},
		{"no such image", func(p *corev1.Pod) { waiting(p, "ErrImagePull", "not found") }, nil, "1m", 1, "cannot pull the image registry.invalid/x:1: ErrImagePull: not found; name one that it can pull by --image"},
		{"it cannot be started", func(p *corev1.Pod) { waiting(p, "CreateContainerError", "no space left") }, nil, "1m", 1, "cannot start the debug pod: CreateContainerError: no space left"},
		{"the node refuses it", func(p *corev1.Pod) {
			p.Status.Phase, p.Status.Reason, p.Status.Message = corev1.PodFailed, "OutOfpods", "110 of 110"
		}, nil, "1m", 1, "did not run the debug pod to its end: OutOfpods: 110 of 110"},
		{"it never ends", func(p *corev1.Pod) {
			p.Status.ContainerStatuses = []corev1.ContainerStatus{{State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}}
		}, nil, "1s", 1, "no answer within 1s: --timeout sets it: debug pod"},
		{"the answer to its creation is lost", nil, func(w http.ResponseWriter) bool {
			fail(w, http.StatusInternalServerError, metav1.StatusReasonInternalError, "etcd is away")
			return true
		}, "1m", 1, "etcd is away"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := newServer(t, doctors, "n1")
			if test.state != nil {
				s.state = test.state
			}
			s.creating = test.creating
			status, out, errs := s.kubectl(t.Context(), t, "doctor", "--node", "n1", "--image", "registry.invalid/x:1", "--timeout", test.timeout, "--interval", "500ms")
			if want := map[bool]int{true: 0, false: exitCannotMeasure}[test.want == ""]; status != want || !strings.Contains(out, test.want) {
				t.Errorf("status %d, want %d and %q:\n%s%s", status, want, test.want, out, errs)
			}
			s.empty(t, test.made)
		})
	}
}

// Ctrl-C while debug pods run, and while one is being made, leaves none behind.
func TestInterrupt(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"while they run", "while one is made"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newServer(t, doctors, "n1", "n2", "n3")
			ctx, interrupt := context.WithCancel(t.Context())
			defer interrupt()
			made := 2 // as many as are asked at a time
			if name == "while one is made" {
				s.creating = func(http.ResponseWriter) bool {
					interrupt()
					return false
				}
				made = 1
			}
			s.state = func(p *corev1.Pod) {
				p.Status.ContainerStatuses = []corev1.ContainerStatus{{State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}}
				if len(s.debug) == 2 {
					interrupt()
				}
			}
			status, out, errs := s.kubectl(ctx, t, "doctor", "--all-nodes", "--parallel", map[int]string{1: "1", 2: "2"}[made])
			if status != exitCannotMeasure || !strings.Contains(out, "not asked: interrupted") || !strings.Contains(out, "interrupted: debug pod kubectl-trackless-") {
				t.Errorf("status %d\n%s%s", status, out, errs)
			}
			s.empty(t, made)
		})
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name    string
		args    string
		refused request
		prepare func(*apiServer)
		want    string
	}{
		{"no node named", "doctor", request{}, nil, "no node is named: give --node NAME, -l LABELS, or --all-nodes"},
		{"two ways to name nodes", "doctor --all-nodes --node n1", request{}, nil, "exclude each other"},
		{"no such node", "doctor --node n9", request{}, nil, "the cluster has no node n9: `kubectl get nodes` shows the names"},
		{"no such label", "doctor -l pool=web", request{}, nil, "no node that runs Linux has the labels pool=web"},
		{"no selector", "doctor -l =", request{}, nil, "is no selector of labels"},
		{"a node of Windows", "doctor --node n1", request{}, func(s *apiServer) {
			s.nodes[0].Labels = nil
			s.nodes[0].Status.NodeInfo.OperatingSystem = "windows"
		}, "node n1 runs windows: Trackless reads the tables of Linux"},
		{"only nodes of Windows", "doctor --all-nodes", request{}, func(s *apiServer) { s.nodes[0].Labels[corev1.LabelOSStable] = "windows" }, "no node that runs Linux"},
		{"our labels in two namespaces", "doctor --all-nodes -A", request{}, func(s *apiServer) {
			s.ours = []corev1.Pod{ourPod("kube-system", "trackless-a", "n1"), ourPod("dev", "trackless-b", "n1")}
		}, "pods with the labels of Trackless are in the namespaces dev, kube-system: name the right one by -n"},
		{"watched for longer than a node may take", "doctor --all-nodes --interval 3m", request{}, nil, "--interval 3m0s does not fit into the time that a node may take: --timeout 2m0s"},
		{"may not read pods", "doctor --all-nodes", request{"get", "pods", "kube-system"}, nil, "no permission to get pods in namespace kube-system; ask the administrator"},
		{"may not read logs", "doctor --all-nodes", request{"get", "pods/log", "kube-system"}, nil, "no permission to get pods/log in namespace kube-system; ask the administrator"},
		{"may not get a node", "doctor --node n1", request{"get", "nodes", ""}, nil, "for a ClusterRole with the verb get on the resource nodes"},
		{"a policy forbids it", "doctor --all-nodes", request{}, func(s *apiServer) {
			s.creating = func(w http.ResponseWriter) bool {
				clear(s.debug)
				s.made = nil
				fail(w, http.StatusForbidden, metav1.StatusReasonForbidden, `admission webhook "pods.invalid" denied the request: no host network`)
				return true
			}
		}, "no host network; a policy of the cluster forbids it: ask those who keep the policy"},
		{"our pod on a node that is not ready", "doctor --all-nodes", request{"create", "pods/exec", ""}, func(s *apiServer) {
			s.nodes[0] = node("n1", false)
			s.ours = []corev1.Pod{ourPod("kube-system", "trackless-a", "n1")}
			s.says = func(string, []string) output { return output{"", "no route to host", 3} }
		}, "no route to host; the node is not ready: `kubectl describe node n1` says why"},
		{"an unknown format", "doctor --all-nodes -o yaml", request{}, nil, "it takes table or json"},
		{"may not list nodes", "doctor --all-nodes", request{"list", "nodes", ""}, nil, "ask the administrator of the cluster for a ClusterRole with the verb list on the resource nodes"},
		{"may not list pods", "doctor --all-nodes", request{"list", "pods", "kube-system"}, nil, "for a Role with the verb list on the resource pods in namespace kube-system"},
		{"may not exec", "doctor --all-nodes", request{"create", "pods/exec", "kube-system"}, func(s *apiServer) {
			s.ours = []corev1.Pod{ourPod("kube-system", "trackless-a", "n1")}
		}, "no permission to create pods/exec in namespace kube-system; ask the administrator"},
		{"may not make pods", "doctor --all-nodes", request{"create", "pods", "kube-system"}, nil, "no permission to create pods in namespace kube-system; ask the administrator"},
		{"may make pods and not remove them", "doctor --all-nodes -n ops", request{"delete", "pods", "ops"}, nil, "no permission to delete pods in namespace ops; ask the administrator"},
		{"the namespace forbids it", "doctor --all-nodes", request{}, func(s *apiServer) {
			s.creating = func(w http.ResponseWriter) bool {
				clear(s.debug)
				s.made = nil
				fail(w, http.StatusForbidden, metav1.StatusReasonForbidden, `violates PodSecurity "baseline:latest"`)
				return true
			}
		}, "name one whose level is privileged by -n"},
		{"exec only, and no pod of ours", "doctor --all-nodes --via exec", request{}, nil, "no pod of Trackless runs on it in namespace kube-system: -n names its namespace"},
		{"the node is not ready", "doctor --all-nodes", request{}, func(s *apiServer) { s.nodes[0] = node("n1", false) }, "it is not ready, and would not start a debug pod"},
		{"the API server is away", "doctor --all-nodes", request{}, func(s *apiServer) { s.Close() }, "no answer from the API server http://127.0.0.1"},
		{"no such context", "doctor --all-nodes --context other", request{}, nil, `context "other" does not exist`},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := newServer(t, doctors, "n1")
			s.refused[test.refused] = true
			if test.prepare != nil {
				test.prepare(s)
			}
			status, out, errs := s.kubectl(t.Context(), t, strings.Fields(test.args)...)
			if status != exitCannotMeasure || !strings.Contains(out+errs, test.want) {
				t.Errorf("status %d, want %q:\n%s%s", status, test.want, out, errs)
			}
			s.empty(t, 0)
		})
	}
}

// Which of the pods on a node is asked.
func TestOurPods(t *testing.T) {
	t.Parallel()
	pod := func(name string, change func(*corev1.Pod)) corev1.Pod {
		p := ourPod("kube-system", name, "n1")
		change(&p)
		return p
	}
	asked := func(*corev1.Pod) {}
	for _, test := range []struct {
		name string
		pods []corev1.Pod
		want string
	}{
		{"one", []corev1.Pod{pod("a", asked)}, "a"},
		{"the chart under another name", []corev1.Pod{pod("a", func(p *corev1.Pod) {
			p.Labels = map[string]string{"app.kubernetes.io/name": "dns", "app.kubernetes.io/part-of": "trackless"}
		})}, "a"},
		{"of an update, the ready one", []corev1.Pod{pod("a", asked), pod("b", func(p *corev1.Pod) {
			p.CreationTimestamp = metav1.NewTime(time.Unix(9, 0))
			p.Status.Conditions = nil
		})}, "a"},
		{"of two that are ready, the younger", []corev1.Pod{pod("a", asked), pod("b", func(p *corev1.Pod) { p.CreationTimestamp = metav1.NewTime(time.Unix(9, 0)) })}, "b"},
		{"none that is being deleted", []corev1.Pod{pod("a", func(p *corev1.Pod) { p.DeletionTimestamp = &metav1.Time{Time: time.Unix(9, 0)} })}, ""},
		{"none that does not run", []corev1.Pod{pod("a", func(p *corev1.Pod) { p.Status.Phase, p.Status.ContainerStatuses = corev1.PodPending, nil })}, ""},
		{"none that crashes again and again", []corev1.Pod{pod("a", func(p *corev1.Pod) {
			p.Status.ContainerStatuses[0].State = corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff"}}
		})}, ""},
		{"none of another namespace", []corev1.Pod{pod("a", func(p *corev1.Pod) { p.Namespace = "dev" })}, ""},
		{"none of somebody else", []corev1.Pod{pod("a", func(p *corev1.Pod) { p.OwnerReferences = nil })}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := newServer(t, doctors, "n1")
			s.ours = test.pods
			_, out, errs := s.kubectl(t.Context(), t, "doctor", "--node", "n1", "-o", "json")
			var got struct{ Nodes []answer }
			if err := json.Unmarshal([]byte(out), &got); err != nil {
				t.Fatalf("%v\n%s%s", err, out, errs)
			}
			want := "kube-system/" + test.want
			if a := got.Nodes[0]; a.DebugPod != (test.want == "") || (!a.DebugPod && a.Pod != want) {
				t.Errorf("asked through %s, debug pod %t; want %q", a.Pod, a.DebugPod, test.want)
			}
		})
	}
}

// The progress is one line, which is empty in the end; without a terminal there is none.
func TestProgress(t *testing.T) {
	t.Parallel()
	for shown, want := range map[bool]string{true: "\r\x1b[K1 of 3 nodes answered\r\x1b[K", false: ""} {
		var b bytes.Buffer
		p := progress{out: &b, of: 3, shown: shown}
		p.one()
		p.clear()
		if b.String() != want {
			t.Errorf("shown %t: %q, want %q", shown, b.String(), want)
		}
	}
}

// One node with a broken answer does not cost the answers of others, in text and in
// JSON, and is not taken for healthy.
func TestBrokenAnswers(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name   string
		broken output
		cutOff bool
		want   string
	}{
		{"cut off", output{healthy[:40], "", 0}, false, "its output is broken, or was cut off after 40 bytes: ask again"},
		{"no output", output{"", "", 137}, false, "trackless doctor: exit status 137: it wrote nothing"},
		{"killed after its report", output{healthy, "", 137}, false, "trackless doctor: exit status 137"},
		{"a report of another form", output{`{"findings": 3}`, "", 0}, false, "its report has another form"},
		{"no object", output{`[]`, "", 0}, false, "its report has another form"},
		{"without end", output{strings.Repeat(" ", maxOutput+1), "", 0}, false, "the node wrote more than 32 MiB"},
		{"the stream dies", output{healthy, "", 0}, true, "the connection to pod trackless-a ended early"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := newServer(t, func(node string, _ []string) output {
				if node == "n1" {
					return test.broken
				}
				return output{ill, "", 2}
			}, "n1", "n2")
			s.cutOff = test.cutOff
			s.ours = []corev1.Pod{ourPod("kube-system", "trackless-a", "n1")}
			status, out, errs := s.kubectl(t.Context(), t, "doctor", "--all-nodes")
			if status != exitCritical || !strings.Contains(out, test.want) || !strings.Contains(out, "the table is full") || !strings.Contains(errs, "1 not measured") {
				t.Errorf("status %d, want %q:\n%s%s", status, test.want, out, errs)
			}
			if len(out) > 10000 {
				t.Errorf("%d bytes of text", len(out))
			}
			_, out, _ = s.kubectl(t.Context(), t, "doctor", "--node", "n1", "-o", "json")
			var got struct{ Nodes []answer }
			if err := json.Unmarshal([]byte(out), &got); err != nil || len(got.Nodes) != 1 || got.Nodes[0].Status != exitCannotMeasure || !strings.Contains(got.Nodes[0].Error, test.want) {
				t.Errorf("%v: %+v", err, got)
			}
		})
	}
}

// An API server that is away for a moment costs nothing, one that stays away and one
// that has lost the pod end the question.
func TestReadingFails(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name   string
		times  int
		code   int32
		reason metav1.StatusReason
		status int
		want   string
	}{
		{"for a moment", 2, http.StatusInternalServerError, metav1.StatusReasonInternalError, 0, ""},
		{"for good", 1 << 30, http.StatusInternalServerError, metav1.StatusReasonInternalError, exitCannotMeasure, "get pods in namespace kube-system: away"},
		{"somebody deleted it", 1 << 30, http.StatusNotFound, metav1.StatusReasonNotFound, exitCannotMeasure, "was deleted by somebody else before it ended"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := newServer(t, doctors, "n1")
			failed := 0
			s.reading = func(w http.ResponseWriter) bool {
				if failed++; failed > test.times {
					return false
				}
				fail(w, test.code, test.reason, "away")
				return true
			}
			status, out, errs := s.kubectl(t.Context(), t, "doctor", "--node", "n1")
			if status != test.status || !strings.Contains(out, test.want) {
				t.Errorf("status %d, want %d and %q:\n%s%s", status, test.status, test.want, out, errs)
			}
			s.empty(t, 1)
		})
	}
}

// The API server must not make a debug pod after we have given up and removed it.
func TestCreationEndsBeforeWeGiveUp(t *testing.T) {
	t.Parallel()
	s := newServer(t, doctors, "n1")
	if status, out, errs := s.kubectl(t.Context(), t, "doctor", "--node", "n1"); status != 0 {
		t.Fatalf("status %d\n%s%s", status, out, errs)
	}
	limit, err := time.ParseDuration(s.creationTimeout)
	if err != nil || limit <= 0 || limit >= patience {
		t.Errorf("creation has the timeout %q, want one below %s", s.creationTimeout, patience)
	}
}

// Names that a node reports cannot command the terminal, or add rows.
func TestPrintable(t *testing.T) {
	t.Parallel()
	s := newServer(t, func(string, []string) output {
		return output{`{"entries": 1, "limit": 2, "groups": [{"name": "a\u001b]0;x\u0007\nn9\tb", "entries": 1}], "notes": ["c\u009b2J\rd"]}`, "", 0}
	}, "n1")
	status, out, errs := s.kubectl(t.Context(), t, "top", "--node", "n1")
	if status != 0 || strings.ContainsAny(out, "\x1b\x07\t\r\u009b") || !strings.Contains(out, "a\ufffd]0;x\ufffd\ufffdn9\ufffdb") {
		t.Errorf("status %d: %q %s", status, out, errs)
	}
}
