package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/rest"
)

// A cluster is where nodes are looked for and asked. It may be used by many
// goroutines.
type cluster struct {
	api           api
	config        *rest.Config
	namespace     string
	allNamespaces bool
	image         string
	via           string
	timeout       time.Duration
}

// A target is a node, and the pod of Trackless on it if there is one.
type target struct {
	node  string
	ready bool
	pod   *corev1.Pod
}

// containerName is that of the container in our pods.
const containerName = "trackless"

// ours are the labels of our pods: those of the manifests, and those that the chart
// gives pods under another name as well.
var ours = []string{"app.kubernetes.io/name=trackless", "app.kubernetes.io/part-of=trackless"}

// targets finds the nodes that were asked for, and our pods on them.
func (c *cluster) targets(ctx context.Context, o *options) ([]target, error) {
	nodes, err := c.nodes(ctx, o)
	if err != nil {
		return nil, err
	}
	pods := map[string]*corev1.Pod{}
	if c.via != viaPod {
		if pods, err = c.pods(ctx); err != nil {
			return nil, err
		}
	}
	var found []target
	for _, n := range nodes {
		found = append(found, target{node: n.Name, ready: isReady(n), pod: pods[n.Name]})
	}
	slices.SortFunc(found, func(a, b target) int { return cmp.Compare(a.node, b.node) })
	return found, nil
}

func isReady(n corev1.Node) bool {
	return slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	})
}

func (c *cluster) nodes(ctx context.Context, o *options) ([]corev1.Node, error) {
	if len(o.nodes) > 0 {
		return c.named(ctx, o.nodes)
	}
	if _, err := labels.Parse(o.selector); err != nil {
		return nil, fmt.Errorf("-l %q is no selector of labels: %w", o.selector, err)
	}
	list, err := c.api.nodes(ctx, o.selector)
	if err != nil {
		return nil, explain(err, request{"list", "nodes", ""}, c.config.Host)
	}
	nodes := slices.DeleteFunc(list.Items, func(n corev1.Node) bool { return systemOf(n) != linux })
	if len(nodes) == 0 && o.selector != "" {
		return nil, fmt.Errorf("no node that runs Linux has the labels %s: `kubectl get nodes --show-labels` shows those that there are", o.selector)
	}
	if len(nodes) == 0 {
		return nil, errors.New("the cluster has no node that runs Linux")
	}
	return nodes, nil
}

const linux = string(corev1.Linux)

// systemOf is the operating system of a node. A node that does not say it is taken
// for Linux.
func systemOf(n corev1.Node) string {
	return cmp.Or(n.Labels[corev1.LabelOSStable], n.Status.NodeInfo.OperatingSystem, linux)
}

// named gets nodes by name, each once.
func (c *cluster) named(ctx context.Context, names []string) ([]corev1.Node, error) {
	var nodes []corev1.Node
	for _, name := range slices.Compact(slices.Sorted(slices.Values(names))) {
		n, err := c.api.node(ctx, name)
		switch {
		case apierrors.IsNotFound(err):
			return nil, fmt.Errorf("the cluster has no node %s: `kubectl get nodes` shows the names", name)
		case err != nil:
			return nil, explain(err, request{"get", "nodes", ""}, c.config.Host)
		case systemOf(*n) != linux:
			return nil, fmt.Errorf("node %s runs %s: Trackless reads the tables of Linux", name, systemOf(*n))
		}
		nodes = append(nodes, *n)
	}
	return nodes, nil
}

// pods finds our pods by node. While two are on a node, as in an update, it takes
// one that is ready, and of these the younger.
func (c *cluster) pods(ctx context.Context) (map[string]*corev1.Pod, error) {
	namespace := c.namespace
	if c.allNamespaces {
		namespace = ""
	}
	found, namespaces := map[string]*corev1.Pod{}, map[string]bool{}
	for _, label := range ours {
		list, err := c.api.pods(ctx, namespace, label)
		if err != nil {
			return nil, explain(err, request{"list", "pods", namespace}, c.config.Host)
		}
		for i := range list.Items {
			p := &list.Items[i]
			if !serves(p) {
				continue
			}
			namespaces[p.Namespace] = true
			if have := found[p.Spec.NodeName]; have == nil || preferred(p, have) {
				found[p.Spec.NodeName] = p
			}
		}
	}
	// Anybody may give pods our labels: which of them are ours is not guessed.
	if len(namespaces) > 1 {
		return nil, fmt.Errorf("pods with the labels of Trackless are in the namespaces %s: name the right one by -n, without -A",
			strings.Join(slices.Sorted(maps.Keys(namespaces)), ", "))
	}
	return found, nil
}

// serves says whether a pod is of our DaemonSet, and its container runs. That of a
// pod which crashes again and again mostly does not, in the phase Running.
func serves(p *corev1.Pod) bool {
	owner := metav1.GetControllerOf(p)
	return owner != nil && owner.Kind == "DaemonSet" && p.DeletionTimestamp == nil &&
		slices.ContainsFunc(p.Status.ContainerStatuses, func(s corev1.ContainerStatus) bool {
			return s.Name == containerName && s.State.Running != nil
		})
}

func preferred(p, to *corev1.Pod) bool {
	if a, b := podReady(p), podReady(to); a != b {
		return a
	}
	return p.CreationTimestamp.After(to.CreationTimestamp.Time)
}

func podReady(p *corev1.Pod) bool {
	return slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

// in names a namespace in a sentence.
func in(namespace string) string {
	if namespace == "" {
		return ""
	}
	return " in namespace " + namespace
}
