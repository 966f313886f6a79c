package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/rand"
)

const (
	// debugLabel finds debug pods that were left behind, as after SIGKILL.
	debugLabel = "app.kubernetes.io/name"
	debugName  = "kubectl-trackless"
	// filesDir is where a pod has the files of a question.
	filesDir = "/files"
	// A request that must not be given up halfway has this long. The API server gives
	// up the creation of a pod before us: afterwards it would come after the removal.
	patience      = 15 * time.Second
	creationLimit = patience - 5*time.Second
	// pollEvery is how often the state of a debug pod is read.
	pollEvery = 400 * time.Millisecond
	// maxFailures is how many readings in a row may fail.
	maxFailures = 12
)

// debugPod describes the pod for a question to a node. It ends by itself after
// deadline, whatever becomes of us.
func (c *cluster) debugPod(node string, q question, deadline time.Duration) *corev1.Pod {
	no, yes := false, true
	root := int64(0)
	seconds := int64(deadline / time.Second)
	security := &corev1.SecurityContext{
		RunAsUser: &root, RunAsGroup: &root, ReadOnlyRootFilesystem: &yes,
		Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}, Add: q.capabilities},
	}
	// Kubernetes does not allow both: CAP_SYS_ADMIN can always gain privileges.
	if !slices.Contains(q.capabilities, "SYS_ADMIN") {
		security.AllowPrivilegeEscalation = &no
	}
	container := corev1.Container{
		Name: containerName, Image: c.image, ImagePullPolicy: corev1.PullIfNotPresent,
		Command: append([]string{"/trackless"}, q.args...),
		Env:     []corev1.EnvVar{{Name: "NODE_NAME", Value: node}},
		Resources: corev1.ResourceRequirements{
			Requests: corev1.ResourceList{"cpu": resource.MustParse("10m"), "memory": resource.MustParse("32Mi")},
			Limits:   corev1.ResourceList{"memory": resource.MustParse("256Mi")},
		},
		SecurityContext: security,
	}
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			// The name is ours, so that the pod can be removed although the answer to
			// its creation was lost.
			Name: debugName + "-" + rand.String(8), Namespace: c.namespace,
			Labels: map[string]string{debugLabel: debugName, "app.kubernetes.io/managed-by": debugName},
		},
		Spec: corev1.PodSpec{
			NodeName: node, OS: &corev1.PodOS{Name: corev1.Linux}, HostNetwork: q.files == nil, HostPID: q.hostPID,
			RestartPolicy: corev1.RestartPolicyNever, ActiveDeadlineSeconds: &seconds,
			AutomountServiceAccountToken: &no, EnableServiceLinks: &no,
			DNSPolicy:       corev1.DNSDefault,
			Tolerations:     []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
			SecurityContext: &corev1.PodSecurityContext{SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}},
		},
	}
	if q.podLogs {
		mount(pod, &container, "pod-logs", "/var/log/pods", corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/var/log/pods"}})
	}
	if q.files != nil {
		mount(pod, &container, "files", filesDir, filesVolume(pod, q.files))
	}
	pod.Spec.Containers = []corev1.Container{container}
	return pod
}

func mount(pod *corev1.Pod, container *corev1.Container, name, path string, source corev1.VolumeSource) {
	pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: name, VolumeSource: source})
	container.VolumeMounts = append(container.VolumeMounts, corev1.VolumeMount{Name: name, MountPath: path, ReadOnly: true})
}

// filesVolume carries files in annotations of the pod: they need no further object
// that could be left behind, and no further permission.
func filesVolume(pod *corev1.Pod, files map[string][]byte) corev1.VolumeSource {
	pod.Annotations = map[string]string{}
	source := &corev1.DownwardAPIVolumeSource{}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		key := "kubectl-trackless/" + name
		pod.Annotations[key] = string(files[name])
		source.Items = append(source.Items, corev1.DownwardAPIVolumeFile{
			Path: name, FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.annotations['" + key + "']"},
		})
	}
	return corev1.VolumeSource{DownwardAPI: source}
}

// runPod makes a debug pod, waits for its end, and removes it, whatever happens.
func (c *cluster) runPod(ctx context.Context, node string, q question) (name string, out output, err error) {
	pod := c.debugPod(node, q, c.timeout+patience)
	name = c.namespace + "/" + pod.Name
	if err := ctx.Err(); err != nil {
		return "", out, err
	}
	// A creation that is given up may still happen after the removal.
	creating, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer cancel()
	err = c.api.createPod(creating, pod, creationLimit)
	if refused(err) {
		return name, out, explain(err, request{"create", "pods", c.namespace}, c.config.Host)
	}
	defer func() { err = errors.Join(err, c.remove(ctx, pod.Name)) }()
	if err != nil {
		return name, out, explain(err, request{"create", "pods", c.namespace}, c.config.Host)
	}
	status, err := c.wait(ctx, pod.Name)
	if err != nil {
		return name, out, err
	}
	log, err := c.api.podLog(ctx, c.namespace, pod.Name)
	if err != nil {
		return name, out, explain(err, request{"get", "pods/log", c.namespace}, c.config.Host)
	}
	defer func() { _ = log.Close() }()
	var text bounded
	if _, err := io.Copy(&text, log); err != nil {
		return name, out, fmt.Errorf("read the log of %s: %w", name, err)
	}
	out = splitLog(text.String())
	out.status = status
	return name, out, nil
}

// refused says that the API server did not make an object. After other errors it may
// have made it.
func refused(err error) bool {
	return apierrors.IsForbidden(err) || apierrors.IsInvalid(err) || apierrors.IsBadRequest(err) || apierrors.IsUnauthorized(err) ||
		apierrors.IsNotFound(err) || apierrors.IsAlreadyExists(err)
}

// remove deletes a debug pod. It goes on after ctx has ended, since that is when it
// matters.
func (c *cluster) remove(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer cancel()
	second := int64(1)
	err := c.api.deletePod(ctx, c.namespace, name, &metav1.DeleteOptions{GracePeriodSeconds: &second})
	if err == nil || apierrors.IsNotFound(err) {
		return nil
	}
	return fmt.Errorf("%w; the debug pod may be left: `kubectl -n %s delete pod %s` removes it",
		explain(err, request{"delete", "pods", c.namespace}, c.config.Host), c.namespace, name)
}

// wait returns the exit status of the container of a debug pod.
func (c *cluster) wait(ctx context.Context, name string) (int, error) {
	every := time.NewTicker(pollEvery)
	defer every.Stop()
	last, failures := "it was not started", 0
	for {
		pod, err := c.api.pod(ctx, c.namespace, name)
		switch {
		case err == nil:
			status, ended, err := stateOf(pod)
			if ended || err != nil {
				return status, err
			}
			last, failures = waitsFor(pod), 0
		case ctx.Err() != nil:
		case apierrors.IsNotFound(err):
			return 0, fmt.Errorf("debug pod %s was deleted by somebody else before it ended", name)
		case refused(err), failures == maxFailures:
			return 0, explain(err, request{"get", "pods", c.namespace}, c.config.Host)
		default:
			failures++ // an API server that restarts is back in a moment
		}
		select {
		case <-ctx.Done():
			return 0, fmt.Errorf("debug pod %s: %s", name, last)
		case <-every.C:
		}
	}
}

// stateOf says whether a debug pod has ended, and how; an error says that it will
// not start.
func stateOf(pod *corev1.Pod) (status int, ended bool, err error) {
	for _, s := range pod.Status.ContainerStatuses {
		if t := s.State.Terminated; t != nil {
			if t.Reason == "OOMKilled" {
				return 0, false, errors.New("the debug pod was killed: it needed more memory than its limit")
			}
			return int(t.ExitCode), true, nil
		}
		w := s.State.Waiting
		if w == nil {
			continue
		}
		switch w.Reason {
		case "ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable", "ImageInspectError", "SignatureValidationFailed":
			return 0, false, fmt.Errorf("the node cannot pull the image %s: %s: %s; name one that it can pull by --image", pod.Spec.Containers[0].Image, w.Reason, w.Message)
		case "CreateContainerConfigError", "CreateContainerError", "RunContainerError", "StartError":
			return 0, false, fmt.Errorf("the node cannot start the debug pod: %s: %s", w.Reason, w.Message)
		}
	}
	if pod.Status.Phase == corev1.PodFailed {
		return 0, false, fmt.Errorf("the node did not run the debug pod to its end: %s: %s", pod.Status.Reason, pod.Status.Message)
	}
	return 0, false, nil
}

// waitsFor says what a debug pod is doing.
func waitsFor(pod *corev1.Pod) string {
	for _, s := range pod.Status.ContainerStatuses {
		switch {
		case s.State.Running != nil:
			return "it still ran"
		case s.State.Waiting != nil:
			return "it waited: " + s.State.Waiting.Reason
		}
	}
	return "the node has not started it; phase " + string(pod.Status.Phase)
}

// splitLog takes a log apart, in which both outputs are mixed by lines. The document
// is indented JSON: its lines begin with a space or a bracket, those of messages with
// a letter.
func splitLog(log string) output {
	var document, messages strings.Builder
	for line := range strings.Lines(log) {
		if strings.ContainsAny(line[:1], " {}[]") {
			document.WriteString(line)
		} else {
			messages.WriteString(line)
		}
	}
	return output{stdout: document.String(), stderr: messages.String()}
}
