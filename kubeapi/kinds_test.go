package kubeapi

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"math/big"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func certificate(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func TestServiceAddresses(t *testing.T) {
	for _, tc := range []struct{ name, spec, want string }{
		{"one address", `{"clusterIP":"10.96.0.99","ports":[{"name":"dns","protocol":"UDP","port":53}]}`, "10.96.0.99:53"},
		{"two families", `{"clusterIP":"fd00::63","clusterIPs":["fd00::63","10.96.0.99"]}`, "[fd00::63]:53 10.96.0.99:53"},
		{"another port", `{"clusterIP":"10.96.0.99","ports":[{"name":"metrics","port":9153},{"name":"dns-tcp","protocol":"TCP","port":5354},{"name":"dns","protocol":"UDP","port":5353}]}`, "10.96.0.99:5353"},
		{"headless", `{"clusterIP":"None","clusterIPs":["None"]}`, ""},
		{"external name", `{}`, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var s Service
			if err := json.Unmarshal([]byte(`{"spec":`+tc.spec+`}`), &s); err != nil {
				t.Fatal(err)
			}
			check(t, s.Addresses(), tc.want)
		})
	}
}

func check(t *testing.T, got []netip.AddrPort, want string) {
	t.Helper()
	text := ""
	for i, ap := range got {
		if i > 0 {
			text += " "
		}
		text += ap.String()
	}
	if text != want {
		t.Errorf("%q, want %q", text, want)
	}
}

func TestEndpoints(t *testing.T) {
	const ports = `"ports":[{"name":"dns-tcp","protocol":"TCP","port":53},{"name":"metrics","protocol":"TCP","port":9153},{"name":"dns","protocol":"UDP","port":53}]`
	for _, tc := range []struct{ name, slices, want string }{
		{"none", `[]`, ""},
		{"conditions that are not there", `[{` + ports + `,"endpoints":[{"addresses":["10.244.0.3"]}]}]`, "10.244.0.3:53"},
		{"only the ready ones", `[{` + ports + `,"endpoints":[{"addresses":["10.244.0.4"],"conditions":{"ready":true}},{"addresses":["10.244.0.3"],"conditions":{"ready":false,"serving":true,"terminating":true}}]}]`, "10.244.0.4:53"},
		{"none is ready, one still serves", `[{` + ports + `,"endpoints":[{"addresses":["10.244.0.4"],"conditions":{"ready":false,"serving":false}},{"addresses":["10.244.0.3"],"conditions":{"ready":false,"serving":true,"terminating":true}}]}]`, "10.244.0.3:53"},
		{"several slices, sorted, each once", `[{` + ports + `,"endpoints":[{"addresses":["10.244.1.9"]}]},{"ports":[{"name":"dns","protocol":"UDP","port":8053}],"endpoints":[{"addresses":["fd00::1"]},{"addresses":["10.244.0.3"]},{"addresses":["10.244.0.3"]}]}]`, "10.244.0.3:8053 10.244.1.9:53 [fd00::1]:8053"},
		{"the first of several addresses", `[{` + ports + `,"endpoints":[{"addresses":["10.244.0.3","10.244.0.4"]},{"addresses":[]}]}]`, "10.244.0.3:53"},
		{"names", `[{"addressType":"FQDN",` + ports + `,"endpoints":[{"addresses":["dns.example.org"]}]}]`, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var s []EndpointSlice
			if err := json.Unmarshal([]byte(tc.slices), &s); err != nil {
				t.Fatal(err)
			}
			check(t, Addresses(s), tc.want)
		})
	}
}

func TestInCluster(t *testing.T) {
	root := t.TempDir()
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	if _, err := InCluster(root); !errors.Is(err, ErrNotInCluster) {
		t.Errorf("outside of a cluster: error %v", err)
	}
	t.Setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
	t.Setenv("KUBERNETES_SERVICE_PORT", "")
	if _, err := InCluster(root); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without a token: error %v", err)
	}
	if got := Namespace(root); got != "kube-system" {
		t.Errorf("without a namespace: %s", got)
	}
	dir := filepath.Join(root, serviceAccount)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"token": "t", "namespace": "dns\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, err := InCluster(root)
	want := Config{Server: "https://[fd00::1]:443", TokenFile: filepath.Join(dir, "token"), CAFile: filepath.Join(dir, "ca.crt")}
	if diff := cmp.Diff(want, got, cmpopts.EquateErrors()); diff != "" || err != nil {
		t.Errorf("(-want +got):\n%s%v", diff, err)
	}
	if got := Namespace(root); got != "dns" {
		t.Errorf("namespace %s", got)
	}
}
