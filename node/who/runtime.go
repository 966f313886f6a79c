package who

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/trackless-dns/trackless/kubeapi/names"
)

// runtimeSockets are where container runtimes listen for kubelet: containerd, that of k3s and
// RKE2, that of MicroK8s, CRI-O, Docker's shim.
var runtimeSockets = []string{
	"run/containerd/containerd.sock",
	"run/k3s/containerd/containerd.sock",
	"var/snap/microk8s/common/run/containerd.sock",
	"run/crio/crio.sock",
	"run/cri-dockerd.sock",
}

// errNoRuntime is the error where no socket of a container runtime is mounted.
var errNoRuntime = errors.New("there is no socket of a container runtime")

// askRuntime asks the container runtime for the pods that run, over the interface that
// kubelet uses.
func askRuntime(ctx context.Context, root string) (map[netip.Addr]names.Owner, error) {
	for _, s := range runtimeSockets {
		socket := filepath.Join(root, s)
		if info, err := os.Stat(socket); err != nil || info.Mode().Type() != os.ModeSocket {
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, askTimeout)
		defer cancel()
		owners, err := listSandboxes(ctx, socket)
		if err != nil {
			return nil, fmt.Errorf("ask the container runtime at %s: %w", socket, err)
		}
		return owners, nil
	}
	return nil, errNoRuntime
}

func listSandboxes(ctx context.Context, socket string) (map[netip.Addr]names.Owner, error) {
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	client := cri.NewRuntimeServiceClient(conn)
	list, err := client.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{
		Filter: &cri.PodSandboxFilter{State: &cri.PodSandboxStateValue{State: cri.PodSandboxState_SANDBOX_READY}},
	})
	if err != nil {
		return nil, err
	}
	owners := map[netip.Addr]names.Owner{}
	for _, sandbox := range list.GetItems() {
		status, err := client.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: sandbox.GetId()})
		if err != nil {
			continue // it ended meanwhile
		}
		m := sandbox.GetMetadata()
		owner := names.Owner{Kind: names.Pod, Namespace: m.GetNamespace(), Name: m.GetName()}
		for _, a := range sandboxAddresses(status.GetStatus()) {
			owners[a] = owner
		}
	}
	return owners, ctx.Err()
}

// sandboxAddresses returns the addresses that are the pod's alone.
func sandboxAddresses(s *cri.PodSandboxStatus) []netip.Addr {
	if s.GetLinux().GetNamespaces().GetOptions().GetNetwork() == cri.NamespaceMode_NODE {
		return nil
	}
	texts := []string{s.GetNetwork().GetIp()}
	for _, further := range s.GetNetwork().GetAdditionalIps() {
		texts = append(texts, further.GetIp())
	}
	var out []netip.Addr
	for _, text := range texts {
		if a, err := netip.ParseAddr(text); err == nil {
			out = append(out, a)
		}
	}
	return out
}
