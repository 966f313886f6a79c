package lab

import (
	"context"
	"errors"
	"os"
)

// Missing builds a small node and gives it up again, and returns an error that
// says what this machine lacks for that, if anything.
func Missing(options Options) error {
	options.Pods, options.WithoutKubeDNS, options.WithoutKubeProxy = 1, true, false
	node, err := NewNode(context.Background(), options)
	if err != nil {
		return err
	}
	watch, err := node.Watch(WatchOptions{})
	if err == nil {
		_, err = watch.Stop()
	}
	return errors.Join(err, node.Close())
}

// HasIPv6 reports whether this machine's kernel has IPv6 at all: not one that
// was booted with ipv6.disable=1.
func HasIPv6() bool {
	_, err := os.Stat("/proc/sys/net/ipv6/conf/default/accept_dad")
	return err == nil
}
