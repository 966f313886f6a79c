package cache

import (
	"context"

	"github.com/coredns/coredns/plugin/metadata"

	"github.com/trackless-dns/trackless/plugin/cache/engine"
)

// fromLabels are the metadata labels under which plugins publish the upstream that they
// asked: "upstream" and CoreDNS's "forward".
var fromLabels = []string{"upstream/address", "forward/upstream"}

// asking is a query that goes upstream.
type asking struct {
	ctx        context.Context // the context of the query, with metadata
	generation engine.Generation
}

// asking returns the state before a query goes upstream.
func (c *Cache) asking(ctx context.Context) asking {
	return asking{ctx, c.engine.Generation()}
}

// asked returns the facts about the query when its response is there.
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

// withMetadata returns a context in which plugins below can publish the upstream that
// they asked, also if the Corefile has no directive metadata.
func withMetadata(ctx context.Context) context.Context {
	if metadata.ValueFuncs(ctx) != nil {
		return ctx
	}
	return metadata.ContextWithMetadata(ctx)
}
