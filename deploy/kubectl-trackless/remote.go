package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/tools/remotecommand"
	utilexec "k8s.io/client-go/util/exec"
	"k8s.io/streaming/pkg/httpstream"
)

// A question is a command line of trackless, and what it needs where it runs.
type question struct {
	args         []string
	capabilities []corev1.Capability
	hostPID      bool              // processes of the node: names of pods, their namespaces
	podLogs      bool              // the names of the folders in /var/log/pods
	ofInstance   bool              // asks a running Trackless: without one there is no answer
	files        map[string][]byte // below filesDir, for a pod without the node's network
}

func (q question) verb() string {
	words := []string{"trackless"}
	for _, arg := range q.args {
		if strings.HasPrefix(arg, "-") {
			break
		}
		words = append(words, arg)
	}
	return strings.Join(words, " ")
}

// An output is what a program wrote, and its exit status.
type output struct {
	stdout, stderr string
	status         int
}

// An answer is that of one node.
type answer struct {
	Node     string          `json:"node"`
	Pod      string          `json:"pod,omitempty"`
	DebugPod bool            `json:"debug_pod"`
	Status   int             `json:"status"`
	Report   json.RawMessage `json:"report,omitempty"`
	Error    string          `json:"error,omitempty"`
}

// ask runs the question on a node.
func (c *cluster) ask(ctx context.Context, t target, q question) answer {
	if ctx.Err() != nil {
		return answer{Node: t.node, Status: exitCannotMeasure, Error: "not asked: interrupted"}
	}
	ctx, cancel := context.WithTimeoutCause(ctx, c.timeout, fmt.Errorf("no answer within %s: --timeout sets it", c.timeout))
	defer cancel()
	a := answer{Node: t.node}
	var out output
	var err error
	switch {
	case t.pod != nil && q.files == nil:
		a.Pod = t.pod.Namespace + "/" + t.pod.Name
		out, err = c.exec(ctx, t.pod, q)
	case c.via == viaExec || q.ofInstance:
		err = fmt.Errorf("no pod of Trackless runs on it%s: -n names its namespace, -A looks in all of them", c.where())
	case !t.ready:
		err = errors.New("it is not ready, and would not start a debug pod: `kubectl describe node " + t.node + "` says why")
	default:
		a.DebugPod = true
		a.Pod, out, err = c.runPod(ctx, t.node, q)
	}
	if err == nil {
		a.Status = out.status
		a.Report, err = report(q, out)
	}
	if err != nil {
		a.Error = err.Error()
		switch cause := context.Cause(ctx); {
		case errors.Is(cause, context.Canceled):
			a.Error = "interrupted: " + a.Error
		case cause != nil:
			a.Error = fmt.Sprintf("%v: %v", cause, err)
		}
	}
	if err != nil && !t.ready && t.pod != nil {
		a.Error += "; the node is not ready: `kubectl describe node " + t.node + "` says why"
	}
	if a.Report == nil || err != nil {
		a.Status = exitCannotMeasure
	}
	return a
}

func (c *cluster) where() string {
	if c.allNamespaces {
		return ""
	}
	return in(c.namespace)
}

// exec runs the question in our pod.
func (c *cluster) exec(ctx context.Context, pod *corev1.Pod, q question) (output, error) {
	to := c.api.ofPods(c.api.core.Post(), pod.Namespace, pod.Name).SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{
			Container: containerName, Command: append([]string{"/trackless"}, q.args...), Stdout: true, Stderr: true,
		}, parameters).URL()
	web, err := remotecommand.NewWebSocketExecutor(c.config, "GET", to.String())
	if err != nil {
		return output{}, err
	}
	// API servers before 1.30, and proxies that know no WebSocket.
	spdy, err := remotecommand.NewSPDYExecutor(c.config, "POST", to)
	if err != nil {
		return output{}, err
	}
	executor, err := remotecommand.NewFallbackExecutor(web, spdy, func(err error) bool {
		return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err)
	})
	if err != nil {
		return output{}, err
	}
	var stdout, stderr bounded
	err = executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: &stdout, Stderr: &stderr})
	out := output{stdout: stdout.String(), stderr: stderr.String()}
	var exit utilexec.CodeExitError
	switch {
	case errors.As(err, &exit):
		out.status, err = exit.Code, nil
	case stdout.full || stderr.full: // the executor only logs it
		return out, errTooMuch
	case err != nil && !apierrors.IsForbidden(err) && ctx.Err() == nil:
		err = fmt.Errorf("%w; the connection to pod %s ended early, as when the pod is replaced or its node is lost: ask again, or ask by --via pod", err, pod.Name)
	}
	return out, explain(err, request{"create", "pods/exec", pod.Namespace}, c.config.Host)
}

// maxOutput is how much a node may answer. Reports have some KiB.
const maxOutput = 32 << 20

var errTooMuch = fmt.Errorf("the node wrote more than %d MiB: that is no report of Trackless", maxOutput>>20)

// A bounded is a buffer for the output of a node, which may not be what we think.
type bounded struct {
	text bytes.Buffer
	full bool
}

func (b *bounded) Write(p []byte) (int, error) {
	if b.full = b.full || b.text.Len()+len(p) > maxOutput; b.full {
		return 0, errTooMuch
	}
	return b.text.Write(p)
}

func (b *bounded) String() string { return b.text.String() }

// report takes the JSON out of what the program wrote.
func report(q question, out output) (json.RawMessage, error) {
	said := strings.TrimSpace(out.stderr)
	if !json.Valid([]byte(out.stdout)) {
		if text := strings.TrimSpace(out.stdout); text != "" {
			said = strings.TrimSpace(fmt.Sprintf("its output is broken, or was cut off after %d bytes: ask again; it ends with %q %s", len(out.stdout), end(text), said))
		}
		return nil, fmt.Errorf("%s: exit status %d: %s", q.verb(), out.status, cmp.Or(said, "it wrote nothing"))
	}
	var short bytes.Buffer
	if err := json.Compact(&short, []byte(out.stdout)); err != nil {
		return nil, err
	}
	// The statuses of doctor are verdicts. Others, as after a signal, are failures.
	if out.status != 0 && (q.args[0] != "doctor" || out.status > exitCannotMeasure) {
		return short.Bytes(), fmt.Errorf("%s: exit status %d: %s", q.verb(), out.status, said)
	}
	return short.Bytes(), nil
}

// end is the last line of a text, shortened.
func end(text string) string {
	const most = 80
	text = text[strings.LastIndexByte(text, '\n')+1:]
	return text[max(0, len(text)-most):]
}
