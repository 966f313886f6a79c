package who

import (
	"errors"
	"fmt"
	"net/netip"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/trackless-dns/trackless/kubeapi/names"
)

// These are messages of the Container Runtime Interface v1 (kubernetes/cri-api,
// pkg/apis/runtime/v1/api.proto), as far as names need them. The generated code for all its
// messages would add half a megabyte to the program.

// readySandboxes returns a ListPodSandboxRequest: filter (1), state (2). The state in it is
// SANDBOX_READY, 0, which is not encoded.
func readySandboxes() []byte {
	filter := protowire.AppendBytes(protowire.AppendTag(nil, 2, protowire.BytesType), nil)
	return protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), filter)
}

// sandboxStatus returns a PodSandboxStatusRequest: pod_sandbox_id (1).
func sandboxStatus(id string) []byte {
	return protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), id)
}

// A sandbox is a pod that the container runtime runs.
type sandbox struct {
	id    string
	owner names.Owner
}

// decodeSandboxes reads a ListPodSandboxResponse: items (1), each with id (1) and
// metadata (2), and in that name (1) and namespace (3).
func decodeSandboxes(response []byte) ([]sandbox, error) {
	var out []sandbox
	var failed error
	err := at(response, func(item field) {
		s := sandbox{owner: names.Owner{Kind: names.Pod}}
		failed = errors.Join(failed,
			at(item.bytes, func(f field) { s.id = string(f.bytes) }, 1),
			at(item.bytes, func(f field) { s.owner.Name = string(f.bytes) }, 2, 1),
			at(item.bytes, func(f field) { s.owner.Namespace = string(f.bytes) }, 2, 3))
		out = append(out, s)
	}, 1)
	return out, errors.Join(err, failed)
}

// networkOfNode is NamespaceMode_NODE.
const networkOfNode = 2

// decodeAddresses reads the addresses that are the pod's alone from a
// PodSandboxStatusResponse: status (1) with network (5) and linux (6). The first has ip (1)
// and additional_ips (2), the second namespaces (1), options (2), network (1).
func decodeAddresses(response []byte) ([]netip.Addr, error) {
	var out []netip.Addr
	address := func(f field) {
		if a, err := netip.ParseAddr(string(f.bytes)); err == nil { // a pod may have none yet
			out = append(out, a)
		}
	}
	mode := uint64(0)
	err := errors.Join(
		at(response, address, 1, 5, 1),
		at(response, address, 1, 5, 2, 1),
		at(response, func(f field) { mode = f.value }, 1, 6, 1, 2, 1))
	if err != nil || mode == networkOfNode {
		return nil, err
	}
	return out, nil
}

// A field of a message has bytes or a value.
type field struct {
	bytes []byte
	value uint64
}

// at calls f for each field to which a path of field numbers leads.
func at(message []byte, f func(field), path ...protowire.Number) error {
	for len(message) > 0 {
		number, kind, n := protowire.ConsumeTag(message)
		if n < 0 {
			return fmt.Errorf("decode a message of the container runtime: %w", protowire.ParseError(n))
		}
		message = message[n:]
		var v field
		switch kind {
		case protowire.BytesType:
			v.bytes, n = protowire.ConsumeBytes(message)
		case protowire.VarintType:
			v.value, n = protowire.ConsumeVarint(message)
		default:
			n = protowire.ConsumeFieldValue(number, kind, message)
		}
		if n < 0 {
			return fmt.Errorf("decode field %d of a message of the container runtime: %w", number, protowire.ParseError(n))
		}
		message = message[n:]
		switch {
		case number != path[0]:
		case len(path) == 1:
			f(v)
		default:
			if err := at(v.bytes, f, path[1:]...); err != nil {
				return err
			}
		}
	}
	return nil
}
