package main

import (
	"context"
	"io"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"
)

// The typed clients of client-go bring every group of the API: twice the time to
// compile, for nodes, pods and access reviews.
var (
	types      = newScheme()
	codecs     = serializer.NewCodecFactory(types).WithoutConversion()
	parameters = runtime.NewParameterCodec(types)
)

func newScheme() *runtime.Scheme {
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, authorizationv1.AddToScheme} {
		if err := add(s); err != nil {
			panic(err) // two types of one name
		}
	}
	metav1.AddToGroupVersion(s, schema.GroupVersion{Version: "v1"}) // Status, the document of errors
	return s
}

// An api is a client of the API server.
type api struct{ core, authorization rest.Interface }

func newAPI(config *rest.Config) (a api, err error) {
	client := func(path string, group schema.GroupVersion) (rest.Interface, error) {
		of := rest.CopyConfig(config)
		of.APIPath, of.GroupVersion, of.NegotiatedSerializer = path, &group, codecs
		return rest.RESTClientFor(of)
	}
	if a.core, err = client("/api", corev1.SchemeGroupVersion); err != nil {
		return a, err
	}
	a.authorization, err = client("/apis", authorizationv1.SchemeGroupVersion)
	return a, err
}

func (a api) nodes(ctx context.Context, selector string) (*corev1.NodeList, error) {
	list := &corev1.NodeList{}
	return list, a.core.Get().Resource("nodes").VersionedParams(&metav1.ListOptions{LabelSelector: selector}, parameters).Do(ctx).Into(list)
}

func (a api) node(ctx context.Context, name string) (*corev1.Node, error) {
	n := &corev1.Node{}
	return n, a.core.Get().Resource("nodes").Name(name).Do(ctx).Into(n)
}

func (a api) pods(ctx context.Context, namespace, selector string) (*corev1.PodList, error) {
	list := &corev1.PodList{}
	return list, a.ofPods(a.core.Get(), namespace, "").VersionedParams(&metav1.ListOptions{LabelSelector: selector}, parameters).Do(ctx).Into(list)
}

// createPod makes a pod. The API server, which may wait for admission webhooks, gives
// up after limit.
func (a api) createPod(ctx context.Context, p *corev1.Pod, limit time.Duration) error {
	return a.ofPods(a.core.Post(), p.Namespace, "").Timeout(limit).Body(p).Do(ctx).Error()
}

func (a api) pod(ctx context.Context, namespace, name string) (*corev1.Pod, error) {
	p := &corev1.Pod{}
	return p, a.ofPods(a.core.Get(), namespace, name).Do(ctx).Into(p)
}

func (a api) deletePod(ctx context.Context, namespace, name string, options *metav1.DeleteOptions) error {
	return a.ofPods(a.core.Delete(), namespace, name).Body(options).Do(ctx).Error()
}

func (a api) podLog(ctx context.Context, namespace, name string) (io.ReadCloser, error) {
	return a.ofPods(a.core.Get(), namespace, name).SubResource("log").
		VersionedParams(&corev1.PodLogOptions{Container: containerName}, parameters).Stream(ctx)
}

// ofPods names the pod, or all of a namespace; an empty one is all namespaces.
func (a api) ofPods(r *rest.Request, namespace, name string) *rest.Request {
	r = r.NamespaceIfScoped(namespace, namespace != "").Resource("pods")
	if name != "" {
		r = r.Name(name)
	}
	return r
}

func (a api) review(ctx context.Context, r *authorizationv1.SelfSubjectAccessReview) (*authorizationv1.SelfSubjectAccessReview, error) {
	answer := &authorizationv1.SelfSubjectAccessReview{}
	return answer, a.authorization.Post().Resource("selfsubjectaccessreviews").Body(r).Do(ctx).Into(answer)
}
