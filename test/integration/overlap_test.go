//go:build privileged

package integration

import (
	"context"
	"net"
	"strings"
	"testing"

	"github.com/trackless-dns/trackless/lab"
)

// An instance that hangs keeps its sockets and programs. Its successor attaches all the same,
// and gets the queries.
func TestSuccessorOfOneThatHangs(t *testing.T) {
	t.Parallel()
	for _, row := range []struct{ name, extra string }{
		{"kernel on", "fastpath {\nkernel on\n}"}, {"sockets", "fastpath"}, {"sockets off", "fastpath {\nsockets off\n}"},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			node := newNode(t)
			pod := node.Pods[0].Namespace
			text := corefile(steady, row.extra, node.ClusterDNS()...)
			hung, err := node.Serve(strings.ReplaceAll(text, metricsAddress, metricsOf(1)))
			if err != nil {
				t.Fatal(err)
			}
			awaitAttached(t, hung, metricsOf(1))
			eventually(t, "the first one answers", responds(t, pod, lab.Trackless))
			stop(t, hung)
			eventually(t, "kube-dns answers", responds(t, pod, lab.KubeDNS))
			server := serve(t, node, text)
			eventually(t, "the successor answers each time", func() error {
				for range 20 {
					if err := responds(t, pod, lab.Trackless)(); err != nil {
						return err
					}
				}
				return nil
			})
			if row.name == "kernel on" {
				rises(t, server, pod, lab.ClusterDNS4)
			}
		})
	}
}

// Without bind the listeners are at the wildcard address. A successor attaches all the same, and
// serves alone at last.
func TestSuccessorAtTheWildcardAddress(t *testing.T) {
	t.Parallel()
	node := newNode(t)
	pod := node.Pods[0].Namespace
	text := corefile(steady, "", node.ClusterDNS()...)
	before, behind, _ := strings.Cut(text, "bind ")
	addresses, behind, _ := strings.Cut(behind, "\n")
	text = strings.Replace(before+"\n"+behind, "notrack", "notrack "+addresses, 1)
	old, err := node.Serve(strings.ReplaceAll(text, metricsAddress, metricsOf(1)))
	if err != nil {
		t.Fatal(err)
	}
	awaitAttached(t, old, metricsOf(1))
	serve(t, node, text)
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	if err := responds(t, pod, lab.Trackless)(); err != nil {
		t.Error(err)
	}
}

// The kernel chooses no listener for multipath TCP by a program, and moves no connection from
// one to another. Go opens such listeners by default.
func TestNoListenerIsMultipath(t *testing.T) {
	t.Parallel()
	node := newNode(t)
	serve(t, node, corefile(steady, "health 127.0.0.1:8080\nready 127.0.0.1:8181\nfastpath", node.ClusterDNS()...))
	list := func(option string) []string { return strings.Fields(run(t, node.Namespace, "ss", "-Hln", option)) }
	plain := strings.Join(list("-t"), " ")
	for _, want := range []string{lab.ClusterDNS4.String() + ":53", "[" + lab.ClusterDNS6.String() + "]:53", metricsAddress, "127.0.0.1:8080", "127.0.0.1:8181"} {
		if !strings.Contains(plain, want) {
			t.Errorf("no listener at %s: %s", want, plain)
		}
	}
	if got := list("-M"); len(got) > 0 {
		t.Errorf("listeners for multipath TCP: %s", got)
	}
	var multipath net.Listener
	err := node.Namespace.Do(func() (err error) {
		lc := net.ListenConfig{}
		lc.SetMultipathTCP(true)
		multipath, err = lc.Listen(context.Background(), "tcp", "127.0.0.1:0")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer multipath.Close()
	if len(list("-M")) == 0 {
		t.Skip("this kernel has no multipath TCP, or does not list it")
	}
}
