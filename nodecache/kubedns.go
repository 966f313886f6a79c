package nodecache

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
)

// KubeDNS is what the ConfigMap of kube-dns says about servers. The zero value
// says nothing.
type KubeDNS struct {
	// StubDomains has the servers of domains, as IP, IP:port or host name.
	StubDomains map[string][]string
	// UpstreamNameservers answer what is not of the cluster, as IP or IP:port;
	// without one those of /etc/resolv.conf do.
	UpstreamNameservers []string
}

// maxUpstreamNameservers is kube-dns's own bound.
const maxUpstreamNameservers = 3

// ReadKubeDNS reads the mounted ConfigMap: one file for each key, of which
// others than stubDomains and upstreamNameservers are left alone. A directory
// that is not there, as of an optional ConfigMap, says nothing.
func ReadKubeDNS(dir string) (KubeDNS, error) {
	files, err := readConfigMap(dir, "stubDomains", "upstreamNameservers")
	if err != nil {
		return KubeDNS{}, err
	}
	var k KubeDNS
	for _, key := range []struct {
		name string
		into any
	}{{"stubDomains", &k.StubDomains}, {"upstreamNameservers", &k.UpstreamNameservers}} {
		value := bytes.TrimSpace(files[key.name])
		if len(value) == 0 {
			continue
		}
		if err := json.Unmarshal(value, key.into); err != nil {
			return KubeDNS{}, fmt.Errorf("%s: not the JSON that kube-dns takes: %w", filepath.Join(dir, key.name), err)
		}
	}
	if err := k.validate(); err != nil {
		return KubeDNS{}, fmt.Errorf("%s: %w", dir, err)
	}
	return k, nil
}

// readConfigMap reads keys of a mounted ConfigMap, all of one version. kubelet
// swaps the link ..data to the directory of a new version and removes the old
// one (pkg/volume/util/atomic_writer.go); a plain directory is read as it is.
func readConfigMap(dir string, keys ...string) (map[string][]byte, error) {
	const attempts = 5
	for attempt := 0; ; attempt++ {
		version := currentVersion(dir)
		files, err := readFiles(filepath.Join(dir, version), keys)
		if err != nil || currentVersion(dir) == version {
			return files, err
		}
		if attempt == attempts {
			return nil, fmt.Errorf("%s changes faster than it can be read", dir)
		}
	}
}

// currentVersion is the directory in dir that ..data names, or empty.
func currentVersion(dir string) string {
	version, _ := os.Readlink(filepath.Join(dir, "..data"))
	return version
}

func readFiles(dir string, names []string) (map[string][]byte, error) {
	out := map[string][]byte{}
	for _, name := range names {
		b, err := os.ReadFile(filepath.Join(dir, name))
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return nil, err
		default:
			out[name] = b
		}
	}
	return out, nil
}

func (k KubeDNS) validate() error {
	for _, domain := range sortedKeys(k.StubDomains) {
		if !isDomain(domain) {
			return fmt.Errorf("stubDomains: %q is not a domain name in lower case", domain)
		}
		if len(k.StubDomains[domain]) == 0 {
			return fmt.Errorf("stubDomains: %s has no server", domain)
		}
		for _, server := range k.StubDomains[domain] {
			if !isServer(server) && !isDomain(server) {
				return fmt.Errorf("stubDomains: %s: %q is neither IP, IP:port nor a host name", domain, server)
			}
		}
	}
	if n := len(k.UpstreamNameservers); n > maxUpstreamNameservers {
		return fmt.Errorf("upstreamNameservers: %d servers, where kube-dns takes %d at most", n, maxUpstreamNameservers)
	}
	for _, server := range k.UpstreamNameservers {
		if !isServer(server) {
			return fmt.Errorf("upstreamNameservers: %q is neither IP nor IP:port", server)
		}
	}
	return nil
}

// domain is a name as Kubernetes takes it (RFC 1123 subdomain).
var domain = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`)

func isDomain(name string) bool { return len(name) <= 253 && domain.MatchString(name) }

func isServer(server string) bool {
	if _, err := netip.ParseAddr(server); err == nil {
		return true
	}
	host, port, err := net.SplitHostPort(server)
	if err != nil {
		return false
	}
	_, portErr := strconv.ParseUint(port, 10, 16)
	_, hostErr := netip.ParseAddr(host)
	return portErr == nil && hostErr == nil
}
