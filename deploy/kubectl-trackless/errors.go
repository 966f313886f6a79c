package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// A request is what was asked of the API server, in the words of RBAC.
type request struct{ verb, resource, namespace string }

// explain says what to do about an error of the API server at host.
func explain(err error, r request, host string) error {
	var network net.Error
	switch {
	case err == nil:
		return nil
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%s %s%s: %w", r.verb, r.resource, in(r.namespace), err)
	case apierrors.IsForbidden(err) && strings.Contains(err.Error(), "PodSecurity"):
		return fmt.Errorf("make a debug pod%s: %w; the Pod Security level of the namespace forbids the node's network and capabilities: "+
			"name one whose level is privileged by -n, such as %s", in(r.namespace), err, defaultNamespace)
	case strings.Contains(err.Error(), "admission webhook"), strings.Contains(err.Error(), "ValidatingAdmissionPolicy"):
		return fmt.Errorf("%s %s%s: %w; a policy of the cluster forbids it: ask those who keep the policy for an exception, or name another namespace by -n",
			r.verb, r.resource, in(r.namespace), err)
	case apierrors.IsForbidden(err) && strings.Contains(err.Error(), "exceeded quota"):
		return fmt.Errorf("make a debug pod%s: %w; name another namespace by -n", in(r.namespace), err)
	case apierrors.IsForbidden(err):
		return fmt.Errorf("no permission to %s %s%s: %w; ask the administrator of the cluster for a %s with the verb %s on the resource %s%s",
			r.verb, r.resource, in(r.namespace), err, r.role(), r.verb, r.resource, in(r.namespace))
	case apierrors.IsUnauthorized(err):
		return fmt.Errorf("the API server %s does not accept the credentials of this context: %w; log in again, or name another context by --context", host, err)
	case errors.As(err, &network):
		return fmt.Errorf("no answer from the API server %s: %w; see whether the cluster runs and whether --context names the right one", host, err)
	}
	return fmt.Errorf("%s %s%s: %w", r.verb, r.resource, in(r.namespace), err)
}

// role is what can grant the request.
func (r request) role() string {
	if r.namespace == "" {
		return "ClusterRole"
	}
	return "Role"
}
