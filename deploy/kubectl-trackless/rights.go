package main

import (
	"context"
	"fmt"
	"strings"

	authorizationv1 "k8s.io/api/authorization/v1"
)

// mayAsk says all at once what the user has no permission to. Above all it makes no
// debug pod that could not be removed afterwards.
func (c *cluster) mayAsk(ctx context.Context, targets []target, q question) error {
	var needed []request
	seen := map[request]bool{}
	need := func(r request) {
		if !seen[r] {
			seen[r] = true
			needed = append(needed, r)
		}
	}
	for _, t := range targets {
		switch {
		case t.pod != nil && q.files == nil:
			need(request{"create", "pods/exec", t.pod.Namespace})
		case c.via != viaExec && !q.ofInstance && t.ready:
			need(request{"create", "pods", c.namespace})
			need(request{"get", "pods", c.namespace})
			need(request{"get", "pods/log", c.namespace})
			need(request{"delete", "pods", c.namespace})
		}
	}
	var missing []string
	for _, r := range needed {
		allowed, err := c.allowed(ctx, r)
		if err != nil {
			return explain(err, request{"create", "selfsubjectaccessreviews", ""}, c.config.Host)
		}
		if !allowed {
			missing = append(missing, fmt.Sprintf("%s %s%s", r.verb, r.resource, in(r.namespace)))
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("no permission to %s; ask the administrator of the cluster for a Role with these verbs and resources, such as that of docs/kubectl.md; nothing was made",
			strings.Join(missing, ", to "))
	}
	return nil
}

// allowed asks the API server whether the user may do that.
func (c *cluster) allowed(ctx context.Context, r request) (bool, error) {
	resource, sub, _ := strings.Cut(r.resource, "/")
	review, err := c.api.review(ctx, &authorizationv1.SelfSubjectAccessReview{
		Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &authorizationv1.ResourceAttributes{
			Namespace: r.namespace, Verb: r.verb, Resource: resource, Subresource: sub,
		}},
	})
	if err != nil {
		return false, err
	}
	return review.Status.Allowed, nil
}
