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

// KubeDNS has the servers in the ConfigMap of kube-dns. The zero value has none.
type KubeDNS struct {
	// StubDomains has the servers of each domain, as IP, IP:port or host name.
	StubDomains map[string][]string
	// UpstreamNameservers are the servers for names outside of the cluster, as IP or
	// IP:port. Without one, those of /etc/resolv.conf are asked.
	UpstreamNameservers []string
}

// maxUpstreamNameservers is the limit of kube-dns.
const maxUpstreamNameservers = 3

// ReadKubeDNS reads the mounted ConfigMap, which has one file for each key. It reads the
// keys stubDomains and upstreamNameservers. It returns the zero value if there is no
// directory, as with an optional ConfigMap.
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
			return KubeDNS{}, fmt.Errorf("%s: not the JSON that kube-dns accepts: %w", filepath.Join(dir, key.name), err)
		}
	}
	if err := k.validate(); err != nil {
		return KubeDNS{}, fmt.Errorf("%s: %w", dir, err)
	}
	return k, nil
}

// readConfigMap reads keys of a mounted ConfigMap, all from the same version. kubelet
// moves the link ..data to the directory of a new version and then removes the old one
// (pkg/volume/util/atomic_writer.go). A directory without that link has one version.
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

// currentVersion returns the directory that the link ..data in dir names, or "".
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
		return fmt.Errorf("upstreamNameservers: %d servers, but kube-dns accepts %d at most", n, maxUpstreamNameservers)
	}
	for _, server := range k.UpstreamNameservers {
		if !isServer(server) {
			return fmt.Errorf("upstreamNameservers: %q is neither IP nor IP:port", server)
		}
	}
	return nil
}

// domain matches a name that Kubernetes accepts (RFC 1123 subdomain).
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
