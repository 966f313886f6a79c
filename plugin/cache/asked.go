package cache

import (
	"context"

	"github.com/coredns/coredns/plugin/metadata"

	"github.com/trackless-dns/trackless/plugin/cache/engine"
)

// fromLabels are the metadata under which plugins that forward say whom they
// asked: "upstream" and CoreDNS's "forward".
var fromLabels = []string{"upstream/address", "forward/upstream"}

// asking is a query that goes upstream.
type asking struct {
	ctx        context.Context // of the query, with metadata
	generation engine.Generation
}

// asking notes that a query goes upstream now.
func (c *Cache) asking(ctx context.Context) asking {
	return asking{ctx, c.engine.Generation()}
}

// asked is what is known of the query when there is a response.
func (a asking) asked() engine.Asked {
	asked := engine.Asked{Generation: a.generation}
	for _, label := range fromLabels {
		if f := metadata.ValueFunc(a.ctx, label); f != nil {
			asked.From = f()
			break
		}
	}
	return asked
}

// withMetadata returns a context in which plugins below can say whom they asked,
// also where the Corefile has no directive metadata.
func withMetadata(ctx context.Context) context.Context {
	if metadata.ValueFuncs(ctx) != nil {
		return ctx
	}
	return metadata.ContextWithMetadata(ctx)
}
