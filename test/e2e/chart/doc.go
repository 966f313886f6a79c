// Package chart tests deploy/helm and deploy/kustomize without a cluster: what
// they render is in testdata, valid by the schemas of Kubernetes' own API
// description, and values that make no sense are refused with a reason.
//
// The tests have the build tag e2e, since helm, kubeconform and kubectl come
// with the cluster of test/e2e; `make test-chart` runs them.
package chart
