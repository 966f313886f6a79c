package who

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

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
	list, err := call(ctx, conn, "ListPodSandbox", readySandboxes())
	if err != nil {
		return nil, err
	}
	sandboxes, err := decodeSandboxes(list)
	if err != nil {
		return nil, err
	}
	owners := map[netip.Addr]names.Owner{}
	for _, s := range sandboxes {
		status, err := call(ctx, conn, "PodSandboxStatus", sandboxStatus(s.id))
		if err != nil {
			continue // it ended meanwhile
		}
		addresses, err := decodeAddresses(status)
		if err != nil {
			return nil, err
		}
		for _, a := range addresses {
			owners[a] = s.owner
		}
	}
	return owners, ctx.Err()
}

// call calls a method of the runtime with an encoded request, and returns the response as
// it came.
func call(ctx context.Context, conn *grpc.ClientConn, method string, request []byte) (response []byte, err error) {
	err = conn.Invoke(ctx, "/runtime.v1.RuntimeService/"+method, request, &response, grpc.ForceCodec(encoded{}))
	return response, err
}

// encoded is the codec of messages that are bytes already.
type encoded struct{}

func (encoded) Marshal(v any) ([]byte, error) {
	b, ok := v.([]byte)
	if !ok {
		return nil, fmt.Errorf("a request to the container runtime is %T, not bytes", v)
	}
	return b, nil
}

func (encoded) Unmarshal(data []byte, v any) error {
	b, ok := v.(*[]byte)
	if !ok {
		return fmt.Errorf("a response of the container runtime goes to %T, not to bytes", v)
	}
	*b = bytes.Clone(data)
	return nil
}

func (encoded) Name() string { return "proto" }
