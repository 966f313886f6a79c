// Package kubeapi watches few objects of the Kubernetes API: a Service, the EndpointSlices
// of a Service, the pods of a node, all Services.
//
// It lists and watches (Kubernetes API concepts, "Efficient detection of changes") over
// HTTPS with the pod's service account. It has no cache and no other verbs. While the API
// is away, the objects that were seen last stay valid.
package kubeapi
