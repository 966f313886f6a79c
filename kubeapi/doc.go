// Package kubeapi follows single objects of the Kubernetes API: a Service, and
// the EndpointSlices of one.
//
// It is a list and watch (Kubernetes API concepts, "Efficient detection of
// changes") over HTTPS with the pod's service account, and nothing else: no
// cache, no other verbs. What was seen last stays valid while the API is away.
package kubeapi
