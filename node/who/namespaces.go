package who

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/kubeapi/names"
	"github.com/trackless-dns/trackless/node/netns"
)

// readNamespaces enters each network namespace of the node but the caller's, and reads its
// addresses. The control group of a process in it has the pod's UID, and kubelet's folder of
// logs has the name for the UID. Other namespaces get the name of a process in it.
func (n Node) readNamespaces() (map[netip.Addr]names.Owner, error) {
	found, err := netns.Find(n.Root)
	if err != nil {
		return nil, err
	}
	var self unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &self); err != nil {
		return nil, fmt.Errorf("find out our own network namespace: %w", err)
	}
	pods := PodsByUID(n.Root)
	owners := map[netip.Addr]names.Owner{}
	var failed error
	for i := range found {
		if found[i].Inode == self.Ino {
			continue
		}
		addresses, err := addressesIn(&found[i])
		if err != nil {
			failed = err
			continue
		}
		owner := ownerIn(&found[i], pods)
		for _, a := range addresses {
			owners[a] = owner
		}
	}
	if len(owners) > 0 {
		failed = nil // a namespace may have ended meanwhile
	}
	return owners, failed
}

func addressesIn(n *netns.Namespace) (out []netip.Addr, err error) {
	ns, err := n.Open()
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	err = ns.Do(func() error {
		for _, a := range names.InterfaceAddresses() {
			// Others are the same in every namespace.
			if !a.IsLoopback() && !a.IsLinkLocalUnicast() {
				out = append(out, a)
			}
		}
		return nil
	})
	return out, err
}

func ownerIn(n *netns.Namespace, pods map[string]names.Owner) names.Owner {
	if owner, ok := pods[n.PodUID]; ok {
		return owner
	}
	switch {
	case n.PodUID != "":
		return names.Owner{Kind: names.Pod, Name: n.PodUID}
	case n.PID != 0:
		return names.Owner{Kind: names.Process, Name: fmt.Sprintf("%s (%d)", n.Process, n.PID)}
	}
	return names.Owner{Kind: names.Process, Name: "netns " + filepath.Base(n.Path)}
}

// PodsByUID reads the names of kubelet's folders of logs: /var/log/pods/NAMESPACE_NAME_UID.
func PodsByUID(root string) map[string]names.Owner {
	pods := map[string]names.Owner{}
	folders, _ := os.ReadDir(filepath.Join(root, "var/log/pods")) // without it UIDs stay
	for _, f := range folders {
		if parts := strings.Split(f.Name(), "_"); len(parts) == 3 {
			pods[parts[2]] = names.Owner{Kind: names.Pod, Namespace: parts[0], Name: parts[1]}
		}
	}
	return pods
}

// ownerOf returns the owner of a name NAMESPACE/NAME.
func ownerOf(kind names.Kind, name string) names.Owner {
	namespace, short, ok := strings.Cut(name, "/")
	if !ok {
		return names.Owner{Kind: kind, Name: name}
	}
	return names.Owner{Kind: kind, Namespace: namespace, Name: short}
}
