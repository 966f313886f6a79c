package who

import (
	"os"
	"slices"
	"testing"

	"github.com/trackless-dns/trackless/kubeapi/names"
)

// recorded returns a response of a container runtime, in the encoding of the generated code.
func recorded(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// The ids of the sandboxes in the recorded list.
const (
	cartID  = "6f1c0d2e3b4a5968778695a4b3c2d1e0f1e2d3c4b5a69788796a5b4c3d2e1f00"
	proxyID = "0a1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7e8f9"
	goneID  = "ffeeddccbbaa99887766554433221100ffeeddccbbaa99887766554433221100"
)

func TestDecodeSandboxes(t *testing.T) {
	got, err := decodeSandboxes(recorded(t, "list.bin"))
	want := []sandbox{
		{cartID, names.Owner{Kind: names.Pod, Namespace: "shop", Name: "cart"}},
		{proxyID, names.Owner{Kind: names.Pod, Namespace: "kube-system", Name: "kube-proxy"}},
		{goneID, names.Owner{Kind: names.Pod, Namespace: "shop", Name: "old"}},
	}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
}

func TestDecodeAddresses(t *testing.T) {
	for _, tc := range []struct {
		name, file string
		want       []string
	}{
		{"a pod of two families", "status-cart.bin", []string{"10.244.0.7", "fd00::7", "10.245.0.7"}},
		{"a pod in the host's network", "status-kube-proxy.bin", nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			addresses, err := decodeAddresses(recorded(t, tc.file))
			var got []string
			for _, a := range addresses {
				got = append(got, a.String())
			}
			if err != nil || !slices.Equal(got, tc.want) {
				t.Errorf("%q, %v; want %q", got, err, tc.want)
			}
		})
	}
}

// A response that is cut off inside a field is an error, and no panic.
func TestDecodeBrokenMessages(t *testing.T) {
	list, status := recorded(t, "list.bin"), recorded(t, "status-cart.bin")
	for cut := 1; cut < 300; cut++ { // inside the first sandbox
		if _, err := decodeSandboxes(list[:cut]); err == nil {
			t.Errorf("a list of %d bytes is read", cut)
		}
	}
	for cut := 1; cut < 100; cut++ { // inside the status
		if _, err := decodeAddresses(status[:cut]); err == nil {
			t.Errorf("a status of %d bytes is read", cut)
		}
	}
}
