package kubeapi

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// Config is the address of the API and the credentials for it.
type Config struct {
	// Server is the URL of the API, for example https://10.96.0.1:443.
	Server string
	// TokenFile and CAFile are read before each request: kubelet renews tokens, and
	// clusters change their CA.
	TokenFile, CAFile string
}

// serviceAccount is where kubelet mounts the token and the CA.
const serviceAccount = "/var/run/secrets/kubernetes.io/serviceaccount"

// ErrNotInCluster is the error if this process runs in no pod with a service account.
var ErrNotInCluster = errors.New("no Kubernetes API is known: KUBERNETES_SERVICE_HOST is not set")

// InCluster returns the configuration of the pod. root is the root of the file system,
// normally "/".
func InCluster(root string) (Config, error) {
	host, port := os.Getenv("KUBERNETES_SERVICE_HOST"), os.Getenv("KUBERNETES_SERVICE_PORT")
	if host == "" {
		return Config{}, ErrNotInCluster
	}
	if port == "" {
		port = "443"
	}
	dir := filepath.Join(root, serviceAccount)
	c := Config{Server: "https://" + net.JoinHostPort(host, port), TokenFile: filepath.Join(dir, "token"), CAFile: filepath.Join(dir, "ca.crt")}
	if _, err := os.Stat(c.TokenFile); err != nil {
		return Config{}, fmt.Errorf("%w: the pod has no service account token (is automountServiceAccountToken false?)", err)
	}
	return c, nil
}

// Namespace returns the namespace of the pod, or kube-system if this is no pod. root is
// the root of the file system.
func Namespace(root string) string {
	b, err := os.ReadFile(filepath.Join(root, serviceAccount, "namespace"))
	if ns := strings.TrimSpace(string(b)); err == nil && ns != "" {
		return ns
	}
	return "kube-system"
}

// Client sends requests to one API server. [New] makes one. It is safe for concurrent
// use.
type Client struct {
	config Config

	mu        sync.Mutex
	ca        []byte
	transport *http.Transport
}

// New returns a client. It opens no connection.
func New(config Config) *Client { return &Client{config: config} }

// StatusError is an error that the API returned (apimachinery, meta/v1 Status).
type StatusError struct {
	Code    int    // HTTP status
	Message string // the text of the API
}

func (e *StatusError) Error() string {
	switch e.Code {
	case http.StatusForbidden:
		return "the Kubernetes API refuses: " + e.Message + " (a Role and a RoleBinding would allow it)"
	case http.StatusUnauthorized:
		return "the Kubernetes API does not know this service account: " + e.Message
	}
	return fmt.Sprintf("the Kubernetes API answers %d: %s", e.Code, e.Message)
}

// ForNames adds the remedy to an error of a request for the names of pods and Services.
func ForNames(err error) error {
	var refused *StatusError
	if errors.As(err, &refused) && refused.Code == http.StatusForbidden {
		return fmt.Errorf("%w: the chart makes them with the value names.fromAPI=true, Kustomize with the component names", err)
	}
	return err
}

// get sends a GET request. The caller closes the body.
func (c *Client) get(ctx context.Context, path string, query url.Values) (io.ReadCloser, error) {
	transport, err := c.current()
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.config.Server+path+"?"+query.Encode(), nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", "trackless")
	if c.config.TokenFile != "" {
		token, err := os.ReadFile(c.config.TokenFile)
		if err != nil {
			return nil, fmt.Errorf("read the service account token: %w", err)
		}
		req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return nil, fmt.Errorf("ask the Kubernetes API: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close()
		return nil, statusError(resp)
	}
	return resp.Body, nil
}

// maxStatus is how many bytes of the body of an error are read.
const maxStatus = 64 << 10

func statusError(resp *http.Response) error {
	e := &StatusError{Code: resp.StatusCode, Message: resp.Status}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxStatus))
	var status struct{ Message string }
	if err == nil && json.Unmarshal(body, &status) == nil && status.Message != "" {
		e.Message = status.Message
	}
	return e
}

// current returns a transport that trusts the CA that CAFile has now.
func (c *Client) current() (*http.Transport, error) {
	var ca []byte
	if c.config.CAFile != "" {
		var err error
		if ca, err = os.ReadFile(c.config.CAFile); err != nil {
			return nil, fmt.Errorf("read the CA of the Kubernetes API: %w", err)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.transport != nil && bytes.Equal(ca, c.ca) {
		return c.transport, nil
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if ca != nil {
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(ca) {
			return nil, fmt.Errorf("%s: no certificate in it", c.config.CAFile)
		}
	}
	if c.transport != nil {
		c.transport.CloseIdleConnections()
	}
	c.ca = ca
	c.transport = &http.Transport{
		DialContext:           (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 15 * time.Second}).DialContext,
		TLSClientConfig:       config,
		TLSHandshakeTimeout:   10 * time.Second,
		ResponseHeaderTimeout: 30 * time.Second,
		IdleConnTimeout:       90 * time.Second,
		ForceAttemptHTTP2:     true,
		// A watch may be silent for minutes. Pings notice a peer that is gone.
		HTTP2: &http.HTTP2Config{SendPingTimeout: 15 * time.Second, PingTimeout: 15 * time.Second},
	}
	return c.transport, nil
}
