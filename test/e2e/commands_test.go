//go:build e2e

package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/trackless-dns/trackless/test/e2e/docs"
)

// stockName is the image in Kubernetes' manifest. The nodes have ours under
// that name too, as node-cache's own is not to be had from the module proxy.
const stockName = "registry.k8s.io/dns/k8s-dns-node-cache:1.26.8"

// TestCommands types every command of the pages, as it stands there, in the
// order of the page, on what the page says there is.
func TestCommands(t *testing.T) {
	sessions, err := docs.Sessions("../..")
	if err != nil {
		t.Fatal(err)
	}
	sections := map[string]bool{}
	for _, session := range sessions {
		for _, run := range session.Runs {
			for _, block := range run.Blocks {
				sections[section(block)] = true
			}
		}
	}
	for name := range outcomes {
		if !sections[name] {
			t.Errorf("%s: no command of it is run; is it called otherwise?", name)
		}
	}
	for _, session := range sessions {
		t.Run(session.Name, func(t *testing.T) {
			r := newReader(t)
			for _, run := range session.Runs {
				t.Run(run.State, func(t *testing.T) {
					begin, ok := states[run.State]
					if !ok {
						t.Fatalf("%s is run on %q, and nothing here makes that", run.Blocks[0], run.State)
					}
					t.Cleanup(func() { withoutRules(t) })
					func() {
						// Before what begin applied is taken away, and also if it fails.
						defer t.Cleanup(func() { uninstallAll(t) })
						begin(t, r)
					}()
					for i, block := range run.Blocks {
						r.types(t, block)
						last := i+1 == len(run.Blocks) || section(run.Blocks[i+1]) != section(block)
						if check := outcomes[section(block)]; check != nil && last {
							check(t)
						}
					}
				})
			}
		})
	}
}

func section(block docs.Block) string { return block.Page + ": " + block.Section }

// states are what makes those of docs.States.
var states = map[string]func(*testing.T, *reader){
	"cluster": func(*testing.T, *reader) {},
	"cluster with Prometheus operator": func(t *testing.T, _ *reader) {
		apply(t, prometheusKinds)
		lab.must(t, "wait", "--for=condition=Established", "crd", "-l", "test=e2e", "--timeout=30s")
	},
	"kustomize": func(t *testing.T, r *reader) {
		r.does(t, "docs/install.md", "Kustomize")
		rolledOut(t, "trackless")
	},
	"kustomize, changed": func(t *testing.T, r *reader) {
		r.does(t, "docs/install.md", "Kustomize")
		rolledOut(t, "trackless")
		lab.must(t, "-n", namespace, "rollout", "restart", "daemonset/trackless")
		rolledOut(t, "trackless")
	},
	"chart": func(t *testing.T, r *reader) {
		r.does(t, "docs/install.md", "Chart")
		rolledOut(t, "trackless")
	},
	"chart, changed": func(t *testing.T, r *reader) {
		r.does(t, "docs/install.md", "Chart")
		rolledOut(t, "trackless")
		if out, err := helm(t.Context(), "upgrade", "trackless", "../../deploy/helm/trackless", "--reuse-values", "--set", "podLabels.changed=yes", "--wait"); err != nil {
			t.Fatalf("helm upgrade: %v\n%s", err, out)
		}
	},
	"chart, uninstalled from link-local": func(t *testing.T, _ *reader) {
		install(t, "mode=both")
		if out, err := helm(t.Context(), "uninstall", "trackless", "--wait"); err != nil {
			t.Fatalf("helm uninstall: %v\n%s", err, out)
		}
		lab.podsGone(t, ours...)
	},
	"NodeLocal DNSCache": func(t *testing.T, _ *reader) {
		apply(t, stock(t, stockName))
		rolledOut(t, "node-local-dns")
	},
	"NodeLocal DNSCache, our image": func(t *testing.T, r *reader) {
		apply(t, stock(t, stockName))
		r.does(t, "docs/migrate.md", "The image only")
	},
	"NodeLocal DNSCache, second instance": func(t *testing.T, _ *reader) {
		apply(t, secondInstance(t))
		rolledOut(t, "nodelocaldns-second")
	},
	"release folder": func(t *testing.T, r *reader) {
		folder, _, _, _ := releaseOnNodes(t)
		r.run(t, "a shell in the folder", "cd "+quote(folder))
		t.Cleanup(func() { r.run(t, "a shell in the tree", "cd "+quote(r.tree)) })
	},
	"host": func(*testing.T, *reader) {},
	"host with Trackless": func(t *testing.T, r *reader) {
		r.does(t, "docs/install.md", "A plain host")
		// As the unit does it.
		r.run(t, "the unit's program", `
			/usr/local/bin/trackless serve -conf /etc/trackless/Corefile >"$OUT/serve.log" 2>&1 &
			service=$!
			for i in $(seq 100); do trackless rules show >/dev/null 2>&1 && break; sleep .1; done
			trackless rules show`)
		t.Cleanup(func() {
			r.run(t, "the end of the unit", `kill $service; wait $service || { cat "$OUT/serve.log"; false; }`)
		})
	},
}

// outcomes are what must be so at the end of a section's commands, besides that
// none failed.
var outcomes = map[string]func(*testing.T){
	"README.md: Run it on Kubernetes": func(t *testing.T) { rolledOut(t, "trackless"); serves(t, clusterDNS) },
	"docs/install.md: Kustomize":      func(t *testing.T) { rolledOut(t, "trackless"); serves(t, clusterDNS) },
	"docs/install.md: Chart":          func(t *testing.T) { rolledOut(t, "trackless"); serves(t, clusterDNS) },
	"docs/install.md: From a release": func(t *testing.T) { rolledOut(t, "trackless"); serves(t, clusterDNS) },
	"docs/migrate.md: The image only": func(t *testing.T) {
		image := lab.must(t, "-n", namespace, "get", "daemonset", "node-local-dns", "-o", "jsonpath={.spec.template.spec.containers[0].image}")
		if !strings.HasPrefix(image, docs.Repository+":") {
			t.Errorf("node-local-dns runs %s", image)
		}
		serves(t, linkLocal, clusterDNS)
	},
	"docs/migrate.md: Kubespray's second instance": func(t *testing.T) {
		rolledOut(t, "nodelocaldns-second")
		hook := lab.must(t, "-n", namespace, "get", "daemonset", "nodelocaldns-second", "-o", "jsonpath={.spec.template.spec.containers[0].lifecycle.preStop}")
		if hook != `{"sleep":{"seconds":3}}` {
			t.Errorf("preStop is %s", hook)
		}
	},
	"docs/migrate.md: To our own manifests": func(t *testing.T) { serves(t, linkLocal, clusterDNS) },
	"docs/monitoring.md: Monitoring": func(t *testing.T) {
		lab.must(t, "-n", namespace, "get", "podmonitor/trackless", "prometheusrule/trackless")
		if rules := lab.must(t, "-n", "monitoring", "get", "prometheusrules", "-o", "name"); rules == "" {
			t.Error("no PrometheusRule in the namespace monitoring")
		}
	},
	"docs/uninstall.md: Mode cluster-ip":           nothingLeft,
	"docs/uninstall.md: Modes link-local and both": nothingLeft,
	"docs/upgrade.md: Rollback":                    func(t *testing.T) { rolledOut(t, "trackless"); serves(t, clusterDNS) },
	"docs/upgrade.md: Give it up for a while":      func(t *testing.T) { tracked(t, "n1", clusterDNS) },
}

// reader is an operator's shell on node n1, in a copy of the tree, with the
// cluster's kubectl and helm. /etc, /usr/local/bin, /run/trackless and processes
// are its own, and github.com is the copy.
type reader struct {
	tree, work string
	shell      *exec.Cmd
	in         *os.File
	out        *os.File
	blocks     int
}

func newReader(t *testing.T) *reader {
	t.Helper()
	work, err := os.MkdirTemp(filepath.Join(lab.home, "run"), "reader-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(work) })
	r := &reader{work: work, tree: filepath.Join(work, "trackless")}
	t.Cleanup(r.close)
	copyTree(t, "../..", r.tree)
	for _, dir := range []string{"etc", "etc.work", "bin", "bin.work", "out", "programs"} {
		if err := os.Mkdir(filepath.Join(work, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	// The program, for those pages that have it on the node already.
	if err := os.Symlink(lab.program, filepath.Join(work, "programs/trackless")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir("/run/trackless", 0o700); err == nil {
		t.Cleanup(func() { os.Remove("/run/trackless") })
	} else if !errors.Is(err, os.ErrExist) {
		t.Fatal(err)
	}
	return r
}

// copyTree copies what is under version control or could be, as a repository
// with the tag of the released version.
func copyTree(t *testing.T, from, to string) {
	t.Helper()
	version, err := docs.Image(from)
	if err != nil {
		t.Fatal(err)
	}
	_, version, _ = strings.Cut(version, ":")
	script := `
		set -euo pipefail
		mkdir "$2"
		git -C "$1" ls-files -z --cached --others --exclude-standard --deduplicate |
			(cd "$1" && xargs -0 sh -c 'for f; do [ ! -e "$f" ] || printf "%s\0" "$f"; done' -) |
			tar -C "$1" --null --files-from=- -c | tar -C "$2" -x
		cd "$2"
		git init -q
		git add -A
		git -c user.name=e2e -c user.email=e2e@example.org -c commit.gpgsign=false commit -q -m "the tree under test"
		git tag "v$3"`
	if err := command(t.Context(), "bash", "-c", script, "-", from, to, version); err != nil {
		t.Fatal(err)
	}
}

// start opens the shell, if none is open.
func (r *reader) start(t *testing.T) {
	t.Helper()
	if r.shell != nil {
		return
	}
	const setup = `
		set -euo pipefail
		hostname n1
		mount -t overlay own -o lowerdir=/etc,upperdir="$WORK/etc",workdir="$WORK/etc.work" /etc
		mount -t overlay own -o lowerdir=/usr/local/bin,upperdir="$WORK/bin",workdir="$WORK/bin.work" /usr/local/bin
		mount -t tmpfs -o mode=0700 tmpfs /run/trackless
		set -a
		exec bash -euo pipefail -a`
	in, stdin, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	defer out.Close()
	cmd := exec.Command("nsenter", "--net=/run/netns/k8-n1",
		"unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc", "bash", "-c", setup)
	cmd.Dir, cmd.Stdin, cmd.Stdout, cmd.Stderr = r.tree, in, out, out
	cmd.Env = append(os.Environ(),
		"WORK="+r.work, "OUT="+filepath.Join(r.work, "out"),
		"PATH="+filepath.Join(lab.home, "bin")+":/usr/local/bin:"+os.Getenv("PATH")+":"+filepath.Join(r.work, "programs"),
		"KUBECONFIG="+filepath.Join(lab.home, "run/admin.kubeconfig"),
		"CONTAINERD_ADDRESS="+containerdSocket("n1"),
		"KUBECACHEDIR="+filepath.Join(r.work, "kube"),
		"HELM_CACHE_HOME="+filepath.Join(r.work, "helm"), "HELM_CONFIG_HOME="+filepath.Join(r.work, "helm"), "HELM_DATA_HOME="+filepath.Join(r.work, "helm"),
		"GIT_CONFIG_COUNT=2",
		"GIT_CONFIG_KEY_0=url.file://"+r.tree+".insteadOf", "GIT_CONFIG_VALUE_0=https://github.com/trackless-dns/trackless",
		"GIT_CONFIG_KEY_1=safe.directory", "GIT_CONFIG_VALUE_1=*",
	)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r.shell, r.in, r.out = cmd, stdin, stdout
}

// types runs a block of a page.
func (r *reader) types(t *testing.T, block docs.Block) {
	t.Helper()
	script := block.Text
	switch {
	case block.Endless:
		// 124 is what timeout says of a command that it ended.
		script = fmt.Sprintf("timeout --signal=INT --kill-after=10 3 bash -euo pipefail -c %s || [ $? = 124 ]\n", quote(block.Text))
	case block.MayFail != "":
		script = fmt.Sprintf("bash -euo pipefail -c %s || [ $? = 1 ]\n", quote(block.Text))
	}
	r.run(t, block.String(), script)
}

// does runs the commands of a page's section, as the state in which another
// begins.
func (r *reader) does(t *testing.T, page, section string) {
	t.Helper()
	blocks, err := docs.Read("../..", page)
	if err != nil {
		t.Fatal(err)
	}
	ran := false
	for _, block := range blocks {
		if block.Section == section && block.Shell() && block.NotRun == "" {
			r.types(t, block)
			ran = true
		}
	}
	if !ran {
		t.Fatalf("%s has no commands in a section %q", page, section)
	}
}

func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// run has the shell run a script, and fails the test if one of its commands
// fails or it does not end.
func (r *reader) run(t *testing.T, name, script string) {
	t.Helper()
	r.start(t)
	r.blocks++
	file := filepath.Join(r.work, fmt.Sprintf("block-%d.sh", r.blocks))
	if err := os.WriteFile(file, []byte(script), 0o644); err != nil {
		t.Fatal(err)
	}
	end := fmt.Sprintf("end of block %d of %d", r.blocks, os.Getpid())
	began := time.Now()
	if _, err := fmt.Fprintf(r.in, ". %s </dev/null\nprintf '\\n%%s\\n' '%s'\n", file, end); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	if err := r.out.SetReadDeadline(began.Add(3 * time.Minute)); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	buf := make([]byte, 64<<10)
	for !strings.HasSuffix(out.String(), end+"\n") {
		n, err := r.out.Read(buf)
		out.Write(buf[:n])
		if err != nil {
			r.close()
			t.Fatalf("%s: %v after %s\n%s\nIts commands:\n%s", name, err, time.Since(began).Round(time.Second), out.String(), script)
		}
	}
	said := out.String()
	if len(said) > 4000 {
		said = said[:2000] + "\n...\n" + said[len(said)-2000:]
	}
	t.Logf("%s, in %s:\n%s%s", name, time.Since(began).Round(100*time.Millisecond), script, strings.TrimSuffix(said, "\n"+end+"\n"))
}

// close ends the shell. What it does not wait for ends with its namespaces.
func (r *reader) close() {
	if r.shell == nil {
		return
	}
	r.in.Close()
	_ = r.shell.Process.Kill() // it may have ended by itself
	_ = r.shell.Wait()
	r.out.Close()
	r.shell = nil
}

// uninstallAll takes away what the commands of a run installed.
func uninstallAll(t *testing.T) {
	t.Helper()
	ctx, cancel := testContext()
	defer cancel()
	if out, err := helm(ctx, "uninstall", "trackless", "--ignore-not-found", "--wait"); err != nil {
		t.Errorf("helm uninstall: %v\n%s", err, out)
	}
	if out, err := lab.kubectl(ctx, "delete", "-k", "../../deploy/kustomize/overlays/cluster-ip", "--ignore-not-found", "--timeout=90s"); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	// The stock manifest goes later.
	lab.podsGone(t, ofTheChart)
}

// withoutRules removes the failover table of the nodes, where one is left.
func withoutRules(t *testing.T) {
	t.Helper()
	ctx, cancel := testContext()
	defer cancel()
	for _, node := range nodes {
		out, err := lab.runInNode(ctx, node, "nft", "list", "tables")
		if err != nil {
			t.Error(err)
		}
		if strings.Contains(out, "trackless") {
			lab.rulesRemove(t, node)
		}
	}
}

// prometheusKinds are those of the Prometheus operator that the chart makes
// objects of, with any content.
const prometheusKinds = `apiVersion: v1
kind: Namespace
metadata: {name: monitoring}
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: podmonitors.monitoring.coreos.com, labels: {test: e2e}}
spec:
  group: monitoring.coreos.com
  scope: Namespaced
  names: {kind: PodMonitor, plural: podmonitors, singular: podmonitor}
  versions:
    - {name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: prometheusrules.monitoring.coreos.com, labels: {test: e2e}}
spec:
  group: monitoring.coreos.com
  scope: Namespaced
  names: {kind: PrometheusRule, plural: prometheusrules, singular: prometheusrule}
  versions:
    - {name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}
`

// secondInstance is the stock manifest with the name and the hook that
// kubespray gives its second instance.
func secondInstance(t *testing.T) string {
	t.Helper()
	const (
		daemonset = "kind: DaemonSet\nmetadata:\n  name: node-local-dns\n"
		container = "      - name: node-cache\n"
	)
	manifest := stock(t, image)
	for _, what := range []string{daemonset, container} {
		if strings.Count(manifest, what) != 1 {
			t.Fatalf("%q is not once in the stock manifest", what)
		}
	}
	manifest = strings.Replace(manifest, daemonset, strings.Replace(daemonset, "node-local-dns", "nodelocaldns-second", 1), 1)
	return strings.Replace(manifest, container, container+
		"        lifecycle: {preStop: {exec: {command: [sh, -c, \"sleep 5 && kill -9 1\"]}}}\n", 1)
}
