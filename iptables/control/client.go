package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"sync/atomic"
	"syscall"
)

// Client asks one instance; [NewClient] makes one. Its methods are safe for
// concurrent use.
type Client struct {
	socket string
	pid    atomic.Int64 // of the server, as seen from here
	http   http.Client
}

// NewClient returns a client of the socket; nothing is opened yet.
func NewClient(socket string) *Client {
	c := &Client{socket: socket}
	c.http.Transport = &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			dialer := net.Dialer{Timeout: dialTimeout}
			conn, err := dialer.DialContext(ctx, "unix", socket)
			if err != nil {
				return nil, err
			}
			// Any process can take an abstract name.
			p := peerOf(conn)
			if err := p.trusted(); err != nil {
				return nil, errors.Join(fmt.Errorf("%w: %w", errStranger, err), conn.Close())
			}
			c.pid.Store(int64(p.pid))
			return conn, nil
		},
	}
	return c
}

// errStranger is matched by errors about a socket on which another program listens.
var errStranger = errors.New("the process that listens there is not an instance of Trackless")

// Socket returns the path, or @ and the abstract name.
func (c *Client) Socket() string { return c.socket }

// PID returns the process id of the instance in our pid namespace, after a request
// was made; 0 if it is not visible there.
func (c *Client) PID() int { return int(c.pid.Load()) }

// Status asks for the state of the instance.
func (c *Client) Status(ctx context.Context) (Status, error) {
	return askSigned[Status](ctx, c, http.MethodGet, "status")
}

// Attach asks the instance to untrack queries again; see [Controlled].
func (c *Client) Attach(ctx context.Context) (Status, error) {
	return askSigned[Status](ctx, c, http.MethodPost, "attach")
}

// Detach asks the instance to leave queries to the cluster's DNS.
func (c *Client) Detach(ctx context.Context) (Status, error) {
	return askSigned[Status](ctx, c, http.MethodPost, "detach")
}

// RefusedError is the answer of an instance that did not do what it was asked.
type RefusedError struct {
	// Reason is the error of the instance.
	Reason string
	// Unknown tells that the version of the instance does not know the request.
	Unknown bool
}

func (e *RefusedError) Error() string { return e.Reason }

// ask makes a request and decodes its answer.
func ask[T any](ctx context.Context, c *Client, method, verb string) (T, error) {
	var answer T
	body, err := c.fetch(ctx, method, verb)
	if err != nil {
		return answer, err
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return answer, fmt.Errorf("%w: %w", c.stranger(verb), err)
	}
	return answer, nil
}

// signed is an answer that names the process that gave it.
type signed interface{ signature() Process }

func (s Status) signature() Process       { return s.Process }
func (h Health) signature() Process       { return h.Process }
func (c CacheContent) signature() Process { return c.Process }
func (r CacheRemoved) signature() Process { return r.Process }

// askSigned makes a request whose answer only an instance can give.
func askSigned[T signed](ctx context.Context, c *Client, method, verb string) (T, error) {
	answer, err := ask[T](ctx, c, method, verb)
	if err == nil && answer.signature().PID == 0 {
		err = c.stranger(verb)
	}
	return answer, err
}

// stranger is the error for an answer that no instance gives.
func (c *Client) stranger(verb string) error {
	return fmt.Errorf("control socket %s: %s: the answer is not from an instance of Trackless", c.socket, verb)
}

// maxAnswer bounds how much is read of an answer. The largest answer is a log.
const maxAnswer = 8 << 20

// unanswered replaces the URL in the error, which means nothing on a unix socket, by
// the reason and the remedy.
func unanswered(err error) error {
	var request *url.Error
	if errors.As(err, &request) {
		err = request.Err
	}
	const remedy = "an instance listens on the file that -control of `trackless serve` names"
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w; %s", err, remedy)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w: no process listens there, or the instance has ended; %s", err, remedy)
	}
	return err
}

// fetch returns the body of a successful answer.
func (c *Client) fetch(ctx context.Context, method, verb string) ([]byte, error) {
	// The host of the URL has no meaning on a unix socket.
	req, err := http.NewRequestWithContext(ctx, method, "http://trackless/v1/"+verb, nil)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, fmt.Errorf("control socket %s: %s: %w", c.socket, verb, unanswered(err))
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("control socket %s: %s: %w", c.socket, verb, err)
	}
	if resp.StatusCode == http.StatusNotFound {
		return nil, fmt.Errorf("control socket %s: %s: %w", c.socket, verb, &RefusedError{
			Reason: "HTTP status " + resp.Status + ": the version of the instance does not know this request; update it", Unknown: true,
		})
	}
	if resp.StatusCode != http.StatusOK {
		var f failure
		if json.Unmarshal(body, &f) != nil || f.Error == "" {
			return nil, fmt.Errorf("control socket %s: %s: HTTP status %s", c.socket, verb, resp.Status)
		}
		return nil, fmt.Errorf("control socket %s: %s: %w", c.socket, verb, &RefusedError{Reason: f.Error})
	}
	return body, nil
}
