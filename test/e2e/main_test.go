//go:build e2e

package e2e

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/trackless-dns/trackless/test/e2e/docs"
)

var keep = flag.Bool("keep", false, "use a cluster that is up, and leave it up at the end; cluster/down.sh takes it down")

// lab is the cluster that all tests share, one after the other.
var lab *cluster

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(func() int {
		if os.Geteuid() != 0 {
			fmt.Fprintln(os.Stderr, "e2e: needs root privileges")
			return 1
		}
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
		defer cancel()
		var err error
		if lab, err = startCluster(ctx); err != nil {
			fmt.Fprintf(os.Stderr, "e2e: %v\n", err)
			if lab != nil && !*keep {
				lab.stop()
			}
			return 1
		}
		if !*keep {
			defer lab.stop()
		}
		return m.Run()
	}())
}

// startCluster starts the nodes, puts the images on them, and waits for the
// cluster's DNS and the client pods.
func startCluster(ctx context.Context) (*cluster, error) {
	scripts, err := filepath.Abs("cluster")
	if err != nil {
		return nil, err
	}
	c := &cluster{scripts: scripts, home: os.Getenv("K8S_LAB_HOME")}
	if c.home == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			return nil, err
		}
		c.home = filepath.Join(cache, "k8s-lab")
	}
	images, err := os.MkdirTemp("", "trackless-e2e-images-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(images)
	if err := c.makeImages(ctx, images); err != nil {
		return nil, err
	}
	if _, err := os.Stat(filepath.Join(c.home, "run")); !*keep || err != nil {
		if err := command(ctx, filepath.Join(scripts, "up.sh")); err != nil {
			return c, err
		}
	}
	tars, err := filepath.Glob(filepath.Join(images, "*.tar"))
	if err != nil {
		return c, err
	}
	released, err := docs.Image("../..")
	if err != nil {
		return c, err
	}
	for _, node := range nodes {
		images := []string{"-a", containerdSocket(node), "-n", "k8s.io", "images"}
		for _, tar := range tars {
			if err := command(ctx, filepath.Join(c.home, "bin/ctr"), append(images, "import", "--local", tar)...); err != nil {
				return c, err
			}
		}
		// As if it had been pulled from where the pages say.
		if err := command(ctx, filepath.Join(c.home, "bin/ctr"), append(images, "tag", "--force", image, released, stockName)...); err != nil {
			return c, err
		}
	}
	c.program = filepath.Join(c.home, "run/trackless")
	if err := command(ctx, "install", "-m", "755", filepath.Join(images, "trackless"), c.program); err != nil {
		return c, err
	}
	for _, args := range [][]string{
		{"apply", "-f", "testdata/workload.yaml"},
		{"-n", "kube-system", "rollout", "status", "deployment/coredns", "--timeout=3m"},
		{"rollout", "status", "daemonset/client", "--timeout=3m"},
	} {
		if out, err := c.kubectl(ctx, args...); err != nil {
			return c, fmt.Errorf("%w\n%s", err, out)
		}
	}
	return c, nil
}

// makeImages builds the three images of the cluster: the product, the client,
// and CoreDNS.
func (c *cluster) makeImages(ctx context.Context, dir string) error {
	arch := runtime.GOARCH
	for _, p := range []struct{ name, pkg, link string }{
		{"trackless", "./cmd/trackless", "node-cache"},
		{"client", "./test/e2e/client", ""},
		{"coredns", "", ""},
	} {
		binary := filepath.Join(c.home, "bin", p.name)
		if p.pkg != "" {
			binary = filepath.Join(dir, p.name)
			build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w -X main.version=e2e", "-o", binary, p.pkg)
			build.Dir = "../.."
			build.Env = append(os.Environ(), "CGO_ENABLED=0")
			if out, err := build.CombinedOutput(); err != nil {
				return fmt.Errorf("build %s: %w\n%s", p.pkg, err, out)
			}
		}
		if err := command(ctx, "go", "-C", "../../deploy/image", "run", ".", "-o", filepath.Join(dir, p.name+".d"),
			"-program", p.name, "-link", p.link, "-version", "e2e", "-ref", "local.invalid/"+p.name, arch+"="+binary); err != nil {
			return err
		}
		if err := os.Rename(filepath.Join(dir, p.name+".d", p.name+"-"+arch+".tar"), filepath.Join(dir, p.name+".tar")); err != nil {
			return err
		}
	}
	return nil
}

// command runs a program; its output is in the error.
func command(ctx context.Context, name string, args ...string) error {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %v: %w\n%s", filepath.Base(name), args, err, out)
	}
	return nil
}
