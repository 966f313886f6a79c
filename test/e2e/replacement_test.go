//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// The load on each node. Names that are cached are asked for so often that the cache
// refreshes them ahead, and new names make a steady rate upstream.
const (
	cachedNames = 300
	// refreshed is how long an answer stays in the cache: 80 % of its TTL, and until the next query.
	refreshed = 25 * time.Second

	cachedEvery = 2500 * time.Microsecond
	newEvery    = 16 * time.Millisecond
	tcpEvery    = 50 * time.Millisecond
)

// The bars.
const (
	// firstMoments is how long a successor is looked at.
	firstMoments = 5 * time.Second
	// moreUpstream is by how much the queries upstream may rise then.
	moreUpstream = 1.1
	// hitRatioKept is the part of the hit ratio that is there then.
	hitRatioKept = 0.98
)

// TestReplacement updates the pods of both nodes under load. No query is lost, and no
// successor asks for answers that its predecessor had.
func TestReplacement(t *testing.T) {
	nextImage(t)
	manifest := overlay(t, "cluster-ip")
	apply(t, manifest)
	rolledOut(t, "trackless")
	serves(t, clusterDNS)
	defer func() {
		if t.Failed() {
			describe(t)
		}
	}()

	began := time.Now()
	loads := map[string]func() load{}
	for _, node := range nodes {
		cached := "*.cached." + node + ".example.org"
		for what, args := range map[string][]string{
			"cached names": {"-name", cached, "-names", fmt.Sprint(cachedNames), "-fill", refreshed.String(), "-every", cachedEvery.String()},
			"new names":    {"-name", "*.new." + node + ".example.org", "-every", newEvery.String()},
			"TCP":          {"-name", cached, "-names", fmt.Sprint(cachedNames), "-fill", refreshed.String(), "-every", tcpEvery.String(), "-proto", "tcp"},
		} {
			loads[node+", "+what] = lab.startLoad(t, node, append([]string{"-server", clusterDNS}, args...)...)
		}
	}
	upstream := watchUpstream(t)
	time.Sleep(2 * refreshed) // until each name was refreshed
	steadySince := time.Now()
	time.Sleep(refreshed)
	steady := map[string]float64{}
	for _, node := range nodes {
		steady[node] = upstream.rate(t, node, steadySince)
		t.Logf("%s: %.1f queries a second upstream, in the worst %s %.1f", node, steady[node], firstMoments, upstream.worst(t, node, steadySince))
	}

	worst := map[string]map[string]float64{}
	replace := func(what string, args ...string) {
		t.Helper()
		since := time.Now()
		lab.must(t, append([]string{"-n", namespace}, args...)...)
		rolledOut(t, "trackless")
		time.Sleep(firstMoments)
		worst[what] = map[string]float64{}
		for _, node := range nodes {
			worst[what][node] = upstream.worst(t, node, since)
			t.Logf("%s, %s to %s: in the worst %s %.1f queries a second upstream", what, since.UTC().Format(time.TimeOnly), time.Now().UTC().Format(time.TimeOnly), firstMoments, worst[what][node])
			for line := range strings.Lines(lab.must(t, "-n", namespace, "logs", tracklessPod(t, node))) {
				if strings.Contains(line, " start: ") {
					t.Logf("%s: %s", node, line)
				}
			}
		}
	}
	const restart, otherImage, cold = "restart", "another image", "cold"
	replace(restart, "rollout", "restart", "daemonset/trackless")
	replace(otherImage, "set", "image", "daemonset/trackless", "trackless="+repository+":"+nextTag)
	// For comparison.
	coldManifest := strings.Replace(manifest, "    notrack\n", "    notrack {\n            warm off\n        }\n", 1)
	if out, err := lab.kubectlWith(t.Context(), coldManifest, "apply", "-f", "-"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	replace(cold, "rollout", "restart", "daemonset/trackless")

	asked := map[string]float64{}
	lasted := time.Since(began)
	for what, result := range loads {
		r := result()
		t.Logf("%s: %d asked, longest gap %d ms", what, r.Sent, r.GapMS)
		if r.Lost+r.Failed > 0 {
			t.Errorf("%s: of %d queries %d were lost and %d failed: %v, asked at %v", what, r.Sent, r.Lost, r.Failed, r.Errors, r.FailedAt)
		}
		node, _, _ := strings.Cut(what, ",")
		asked[node] += float64(r.Sent) / lasted.Seconds()
	}
	for _, node := range nodes {
		before := 1 - steady[node]/asked[node]
		for what, of := range worst {
			more := of[node] / steady[node]
			after := 1 - of[node]/asked[node]
			t.Logf("%s: %s: %.2f times the queries upstream, hit ratio %.3f, before %.3f", node, what, more, after, before)
			if bad := more > moreUpstream || after < before*hitRatioKept; bad != (what == cold) {
				t.Errorf("%s: %s: %.1f of %.0f queries a second went upstream, and %.1f before", node, what, of[node], asked[node], steady[node])
			}
		}
	}
}

// upstreamCount is how many queries of each node the server outside the cluster has had.
// kube-dns caches nothing.
type upstreamCount struct {
	mu      sync.Mutex
	samples []sample
}

type sample struct {
	at    time.Time
	asked map[string]float64 // by node
}

// watchUpstream counts queries below NODE.example.org until the end of the test.
func watchUpstream(t *testing.T) *upstreamCount {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, network, address string) (conn net.Conn, err error) {
			err = inside("k8-cp", func() (err error) {
				conn, err = new(net.Dialer).DialContext(ctx, network, address)
				return err
			})
			return conn, err
		},
	}}
	u := &upstreamCount{}
	if err := u.look(t.Context(), client); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var done sync.WaitGroup
	done.Go(func() {
		tick := time.NewTicker(200 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
			if err := u.look(ctx, client); err != nil && ctx.Err() == nil {
				t.Errorf("metrics of the server outside the cluster: %v", err)
				return
			}
		}
	})
	t.Cleanup(func() {
		cancel()
		done.Wait()
		client.CloseIdleConnections()
	})
	return u
}

// look takes a sample.
func (u *upstreamCount) look(ctx context.Context, client *http.Client) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://172.31.77.1:9153/metrics", nil)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	page, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	s := sample{time.Now(), map[string]float64{}}
	for _, node := range nodes {
		if s.asked[node], err = sum(string(page), "coredns_dns_requests_total", fmt.Sprintf("zone=%q", node+".example.org.")); err != nil {
			return err
		}
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.samples = append(u.samples, s)
	return nil
}

// since returns the samples from a time on.
func (u *upstreamCount) since(t *testing.T, begin time.Time) []sample {
	t.Helper()
	u.mu.Lock()
	defer u.mu.Unlock()
	for i, s := range u.samples {
		if !s.at.Before(begin) && i < len(u.samples)-1 {
			return u.samples[i:]
		}
	}
	t.Fatalf("no samples since %s", begin)
	return nil
}

// rate is how many queries of a node were asked a second.
func (u *upstreamCount) rate(t *testing.T, node string, begin time.Time) float64 {
	t.Helper()
	samples := u.since(t, begin)
	return rate(node, samples[0], samples[len(samples)-1])
}

// worst is the highest rate of any firstMoments.
func (u *upstreamCount) worst(t *testing.T, node string, begin time.Time) (highest float64) {
	t.Helper()
	samples := u.since(t, begin)
	first := 0
	for _, last := range samples {
		for last.at.Sub(samples[first+1].at) >= firstMoments {
			first++
		}
		if last.at.Sub(samples[first].at) >= firstMoments {
			highest = max(highest, rate(node, samples[first], last))
		}
	}
	return highest
}

func rate(node string, first, last sample) float64 {
	return (last.asked[node] - first.asked[node]) / last.at.Sub(first.at).Seconds()
}
