package main

import (
	"github.com/trackless-dns/trackless/node/instance"
	"github.com/trackless-dns/trackless/node/measure"
	"github.com/trackless-dns/trackless/node/rules"
)

// nodeRules are those of the node on which we run.
var nodeRules = measure.Rules{Instances: instance.Kernel{}.Instances, Listeners: rules.Listeners}
