//go:build e2e

package chart

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write testdata from what is rendered now")

const chartDir = "../../../deploy/helm/trackless"

// program returns the path of one that test/e2e/cluster/build.sh made.
func program(t *testing.T, name string) string {
	t.Helper()
	home := os.Getenv("K8S_LAB_HOME")
	if home == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			t.Fatal(err)
		}
		home = filepath.Join(cache, "k8s-lab")
	}
	path := filepath.Join(home, "bin", name)
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%v; test/e2e/cluster/build.sh builds it", err)
	}
	return path
}

// run returns what a program prints, and its exit as an error with its complaints.
func run(t *testing.T, stdin, name string, args ...string) (out, complaints string, err error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program(t, name), args...)
	var o, e bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &o, &e
	cmd.Env = append(os.Environ(), "HELM_CACHE_HOME="+t.TempDir(), "HELM_CONFIG_HOME="+t.TempDir(), "HELM_DATA_HOME="+t.TempDir())
	err = cmd.Run()
	return o.String(), e.String(), err
}

// template renders the chart as it would be installed with these arguments.
func template(t *testing.T, args ...string) (out, complaints string, err error) {
	t.Helper()
	return run(t, "", "helm", append([]string{"template", "trackless", chartDir, "--namespace", "kube-system"}, args...)...)
}

// releases are the ways to install the chart that are in testdata. Together
// they use every value.
var releases = []struct {
	name string
	args []string
}{
	{"default", nil},
	{"link-local", []string{"--set", "mode=link-local"}},
	{"both", []string{"-f", "testdata/both.values.yaml"}},
	{"endpoints", []string{"--set", "upstream.endpoints=true"}},
	{"cilium", []string{"--set", "mode=cilium"}},
	{"iptables", []string{"--set", "notrack.backend=iptables,notrack.xtablesLock=true,image.tag=iptables"}},
	{"monitoring", []string{"-f", "testdata/monitoring.values.yaml", "--api-versions", "monitoring.coreos.com/v1/PodMonitor", "--api-versions", "monitoring.coreos.com/v1/PrometheusRule"}},
	{"names", []string{"-f", "testdata/names.values.yaml"}},
	{"tls", []string{"-f", "testdata/tls.values.yaml", "--api-versions", "monitoring.coreos.com/v1/PodMonitor"}},
	{"ca-of-the-node", []string{"-f", "testdata/ca-of-the-node.values.yaml"}},
	{"own-corefile", []string{"-f", "testdata/own-corefile.values.yaml", "--namespace", "elsewhere"}},
}

func TestGolden(t *testing.T) {
	for _, r := range releases {
		t.Run(r.name, func(t *testing.T) {
			got, complaints, err := template(t, r.args...)
			if err != nil {
				t.Fatalf("%v\n%s", err, complaints)
			}
			golden(t, r.name+".golden.yaml", got)
		})
	}
}

// The component that names pods grants what the chart grants for it.
func TestNamesSameAsKustomize(t *testing.T) {
	chart, complaints, err := template(t, "--set", "names.fromAPI=true")
	if err != nil {
		t.Fatalf("%v\n%s", err, complaints)
	}
	for _, text := range []string{chart, composed(t, "components: [%s]", "components/names")} {
		rules, subject := false, false
		for document := range strings.SplitSeq(text, "\n---\n") {
			rules = rules || strings.Contains(document, "kind: ClusterRole\n") && strings.Contains(document, "name: trackless-names") &&
				strings.Contains(document, "pods") && !strings.Contains(document, "namespace:")
			subject = subject || strings.Contains(document, "kind: ClusterRoleBinding\n") && strings.Contains(document, "namespace: kube-system")
		}
		if !rules || !subject {
			t.Errorf("rules %t, subject %t in\n%s", rules, subject, text)
		}
	}
}

// The component that takes away the kernel's answers changes nothing but capabilities.
func TestNoFastPath(t *testing.T) {
	with := composed(t, "resources: [%s]", "overlays/cluster-ip")
	want := strings.Replace(with, "            - BPF\n", "", 1)
	got := composed(t, "resources: [%s]\ncomponents: [%s]", "overlays/cluster-ip", "components/no-fast-path")
	if diff := cmp.Diff(want, got); diff != "" || want == with {
		t.Errorf("without the component BPF is there: %t; with it (-want +got):\n%s", want != with, diff)
	}
}

// composed renders a kustomization of folders below deploy/kustomize.
func composed(t *testing.T, text string, folders ...string) string {
	t.Helper()
	folder := t.TempDir()
	var relative []any
	for _, name := range folders {
		to, err := filepath.Abs(filepath.Join("../../../deploy/kustomize", name))
		if err == nil {
			to, err = filepath.Rel(folder, to)
		}
		if err != nil {
			t.Fatal(err)
		}
		relative = append(relative, to)
	}
	if err := os.WriteFile(filepath.Join(folder, "kustomization.yaml"), fmt.Appendf(nil, text+"\n", relative...), 0o600); err != nil {
		t.Fatal(err)
	}
	out, complaints, err := run(t, "", "kubectl", "kustomize", folder)
	if err != nil {
		t.Fatalf("%v\n%s", err, complaints)
	}
	return out
}

func TestKustomizeGolden(t *testing.T) {
	for _, overlay := range []string{"cluster-ip", "link-local", "cilium"} {
		t.Run(overlay, func(t *testing.T) {
			golden(t, "kustomize-"+overlay+".golden.yaml", kustomize(t, overlay))
		})
	}
}

func kustomize(t *testing.T, overlay string) string {
	t.Helper()
	out, complaints, err := run(t, "", "kubectl", "kustomize", "../../../deploy/kustomize/overlays/"+overlay)
	if err != nil || complaints != "" {
		t.Fatalf("%v\n%s", err, complaints)
	}
	return out
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got); `make test-chart CHART_FLAGS=-update` if it should be so:\n%s", path, diff)
	}
}

func TestLint(t *testing.T) {
	for _, r := range releases {
		t.Run(r.name, func(t *testing.T) {
			// lint asks no cluster, and takes no --api-versions.
			args := slices.DeleteFunc(slices.Clone(r.args), func(arg string) bool {
				return arg == "--api-versions" || strings.HasPrefix(arg, "monitoring.coreos.com/")
			})
			if len(args) < len(r.args) {
				args = append(args, "--set", "metrics.podMonitor.enabled=false,metrics.prometheusRule.enabled=false")
			}
			out, complaints, err := run(t, "", "helm", append([]string{"lint", "--strict", chartDir, "--namespace", "kube-system"}, args...)...)
			if err != nil {
				t.Errorf("%v\n%s%s", err, out, complaints)
			}
		})
	}
}

// TestSameAsKustomize holds the two ways to install to the same Corefile and
// the same pod, in what both have.
func TestSameAsKustomize(t *testing.T) {
	for _, mode := range []string{"cluster-ip", "link-local", "cilium"} {
		t.Run(mode, func(t *testing.T) {
			chart, _, err := template(t, "--set", "mode="+mode)
			if err != nil {
				t.Fatal(err)
			}
			ours, theirs := pod(t, chart), pod(t, kustomize(t, mode))
			if diff := cmp.Diff(theirs, ours); diff != "" {
				t.Errorf("pod (-kustomize +chart):\n%s", diff)
			}
		})
	}
}

func TestBadValues(t *testing.T) {
	for _, tc := range []struct {
		name, set string
		want      string
	}{
		{"misspelt key", "imgae.tag=x", "additional properties 'imgae' not allowed"},
		{"misspelt inner key", "notrack.leese=1s", "additional properties 'leese' not allowed"},
		{"mode", "mode=clusterip", "at '/mode': value must be one of 'cluster-ip', 'link-local', 'both', 'cilium'"},
		{"pull policy", "image.pullPolicy=Sometimes", "at '/image/pullPolicy': value must be one of"},
		{"no repository", "image.repository=", "at '/image/repository': '' does not match pattern"},
		{"address", "linkLocal={169.254.20}", "at '/linkLocal/0': '169.254.20' is not valid ipv4"},
		{"no address", "linkLocal=null,mode=both", "linkLocal is empty, and mode is both"},
		{"kube-dns address", "kubeDNS.addresses={kube-dns}", "'kube-dns' is not valid ipv6"},
		{"Service name", "kubeDNS.service=Kube_DNS", "at '/kubeDNS/service': 'Kube_DNS' does not match pattern"},
		{"target port", "upstream.targetPort=70000", "at '/upstream/targetPort': maximum: got 70,000, want 65,535"},
		{"boolean", "upstream.create=maybe", "at '/upstream/create': got string, want boolean"},
		{"servers", "external.servers={1.1.1.1 8.8.8.8}", "at '/external/servers/0'"},
		{"cache size", "cache.size=64MB", "at '/cache/size': '64MB' does not match pattern"},
		{"capacity", "cache.success.capacity=5", "at '/cache/success/capacity': minimum: got 5, want 1,024"},
		{"ttl", "cache.denial.ttl=0", "at '/cache/denial/ttl': minimum: got 0, want 1"},
		{"stale", "cache.serveStale=forever", "at '/cache/serveStale': 'forever' does not match pattern"},
		{"backend", "notrack.backend=ebpf", "at '/notrack/backend': value must be one of 'auto', 'nftables', 'iptables'"},
		{"lease without unit", "notrack.lease=10", "at '/notrack/lease': got number, want string"},
		{"lease", "notrack.lease=soon", "at '/notrack/lease': 'soon' does not match pattern"},
		{"lease beyond the directive's", "notrack.lease=10s", "at '/notrack/lease': '10s' does not match pattern"},
		{"lease below the directive's", "notrack.lease=100ms", "at '/notrack/lease': '100ms' does not match pattern"},
		{"lease just below it", "notrack.lease=249ms", "at '/notrack/lease': '249ms' does not match pattern"},
		{"lease just beyond it", "notrack.lease=5001ms", "at '/notrack/lease': '5001ms' does not match pattern"},
		{"lease in minutes", "notrack.lease=1m", "at '/notrack/lease': '1m' does not match pattern"},
		{"lease of xt_recent", "notrack.backend=iptables,notrack.lease=2s", "notrack.lease is 2s, and with notrack.backend iptables it can be 1s only"},
		{"sync below the directive's", "notrack.sync=100ms", "at '/notrack/sync': '100ms' does not match pattern"},
		{"sync beyond the directive's", "notrack.sync=2h", "at '/notrack/sync': '2h' does not match pattern"},
		{"local beside a prefix", "notrack.sources={local,10.0.0.0/8}", "at '/notrack/sources'"},
		{"volume without a name", "extraVolumes[0].emptyDir.medium=Memory", "at '/extraVolumes/0': missing property 'name'"},
		{"volume of ours", "extraVolumes[0].name=run", "at '/extraVolumes/0/name'"},
		{"mount without a path", "extraVolumeMounts[0].name=certs", "at '/extraVolumeMounts/0': missing property 'mountPath'"},
		{"PodMonitor without the operator", "metrics.podMonitor.enabled=true", "metrics.podMonitor.enabled is true, and the cluster knows no PodMonitor"},
		{"PrometheusRule without the operator", "metrics.prometheusRule.enabled=true", "metrics.prometheusRule.enabled is true, and the cluster knows no PrometheusRule"},
		{"metrics by pod", "metrics.byPod=2000", "at '/metrics/byPod': maximum: got 2,000, want 1,000"},
		{"names", "names.fromAPI=yes please", "at '/names/fromAPI': got string, want boolean"},
		{"digest", "image.digest=sha256:abc", "at '/image/digest': 'sha256:abc' does not match pattern"},
		{"digest in the tag", "image.tag=1@sha256:abc", "at '/image/tag'"},
		{"tag in the repository", "image.repository=ghcr.io/x@sha256:abc", "at '/image/repository'"},
		{"name", "fullnameOverride=Node_DNS", "at '/fullnameOverride': 'Node_DNS' does not match pattern"},
		{"short name", "nameOverride=a/b", "at '/nameOverride': 'a/b' does not match pattern"},
		{"namespace", "namespaceOverride=kube.system", "at '/namespaceOverride': 'kube.system' does not match pattern"},
		{"label", "commonLabels.team=a b", "at '/commonLabels/team': 'a b' does not match pattern"},
		{"label that is no text", "podLabels.a=1", "at '/podLabels/a': got number, want string"},
		{"annotation that is no text", "annotations.a=true", "at '/annotations/a': got boolean, want string"},
		{"account's annotation", "serviceAccount.annotations.a=1", "at '/serviceAccount/annotations/a': got number, want string"},
		{"variable without a name", "extraEnv[0].value=x", "at '/extraEnv/0': missing property 'name'"},
		{"variable of ours", "extraEnv[0].name=NODE_NAME", "at '/extraEnv/0/name'"},
		{"lifecycle", "lifecycle.preStart.exec.command={x}", "at '/lifecycle': additional properties 'preStart' not allowed"},
		{"resources", "resources.limit.memory=1Gi", "at '/resources': additional properties 'limit' not allowed"},
		{"update", "updateStrategy.rollingUpdate.maxSurge=one", "at '/updateStrategy/rollingUpdate/maxSurge'"},
		{"affinity", "affinity.node=x", "at '/affinity': additional properties 'node' not allowed"},
		{"toleration", "tolerations[0].effect=Never", "at '/tolerations/0/effect': value must be one of"},
		{"name to test", "helmTest.name=a b", "at '/helmTest/name': 'a b' does not match pattern"},
		{"server's scheme", "external.servers={http://192.0.2.1}", "at '/external/servers/0'"},
		{"TLS without an authority", "external.servers={tls://192.0.2.1}", "external.servers has tls://192.0.2.1, and no authority is trusted"},
		{"authority without TLS", "external.servers={192.0.2.1},external.tls.ca.secret=ca", "external.tls is set, and no server in external.servers is asked over TLS"},
		{"two authorities", "external.servers={tls://192.0.2.1},external.tls.ca.secret=ca,external.tls.ca.hostPath=/etc/ca", "external.tls.ca.secret and external.tls.ca.hostPath are set"},
		{"authority's path", "external.tls.ca.hostPath=etc/ca", "at '/external/tls/ca/hostPath': 'etc/ca' does not match pattern"},
		{"authority's Secret", "external.tls.ca.secret=A_B", "at '/external/tls/ca/secret': 'A_B' does not match pattern"},
		{"misspelt authority", "external.tls.ca.configmap=ca", "at '/external/tls/ca': additional properties 'configmap' not allowed"},
		{"server name", "external.tls.serverName=a b", "at '/external/tls/serverName': 'a b' does not match pattern"},
		{"DoH with a path", "external.servers={https://192.0.2.1/dns-query},external.tls.ca.secret=ca", "external.servers has https://192.0.2.1/dns-query: leave out the path"},
		{"DoH with a name", "external.servers={https://192.0.2.1%dns.example},external.tls.ca.secret=ca", "goes into external.tls.serverName"},
		{"two names", "external.servers={tls://192.0.2.1%dns.example},external.tls.ca.secret=ca,external.tls.serverName=other.example", "give the name in one of the two"},
		{"sixteen servers", "external.servers={1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16}", "at '/external/servers': maxItems: got 16, want 15"},
		{"metrics over TLS", "metrics.tls=true", "at '/metrics/tls': got boolean, want object"},
		{"clients without TLS", "metrics.tls.clientCA.secret=ca", "metrics.tls.clientCA.secret is set and metrics.tls.secret is not"},
		{"two authorities of clients", "metrics.tls.secret=m,metrics.tls.clientCA.secret=ca,metrics.tls.clientCA.configMap=ca", "metrics.tls.clientCA.secret and metrics.tls.clientCA.configMap are set"},
		{"PodMonitor's TLS", "metrics.podMonitor.tlsConfig.caFile=x", "at '/metrics/podMonitor/tlsConfig': additional properties 'caFile' not allowed"},
		{"failover", "notrack.failover=kube-dns", "value must be one of '', 'auto', 'off'"},
		{"failover to itself", "kubeDNS.addresses={10.43.0.10},notrack.failover=10.43.0.10", "notrack.failover is 10.43.0.10, which is in kubeDNS.addresses"},
		{"sources", "notrack.sources={10.0.0.1}", "at '/notrack/sources/0': '10.0.0.1' does not match pattern"},
		{"port", "metrics.port=99999", "at '/metrics/port': maximum: got 99,999, want 65,535"},
		{"interval", "metrics.podMonitor.interval=30", "at '/metrics/podMonitor/interval': got number, want string"},
		{"drain", "terminationGracePeriodSeconds=1", "at '/terminationGracePeriodSeconds': minimum: got 1, want 10"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			_, complaints, err := template(t, "--set", tc.set)
			if err == nil || !strings.Contains(complaints, tc.want) {
				t.Errorf("--set %s: error %v, and it says %q; want %q", tc.set, err, complaints, tc.want)
			}
		})
	}
}

// TestPodMonitorTLS: Prometheus has to know how to check the certificate, and the
// operator drops a PodMonitor that does not say it without a word.
func TestPodMonitorTLS(t *testing.T) {
	for _, tc := range []struct{ name, set, want string }{
		{"nothing checks the certificate", "metrics.tls.secret=page", "metrics.tls.secret is page, and metrics.podMonitor.tlsConfig does not say how"},
		{"there is no certificate", "metrics.podMonitor.tlsConfig.serverName=page", "metrics.podMonitor.tlsConfig is set and metrics.tls.secret is not"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, complaints, err := template(t, "--api-versions", "monitoring.coreos.com/v1/PodMonitor", "--set", "metrics.podMonitor.enabled=true", "--set", tc.set)
			if err == nil || !strings.Contains(complaints, tc.want) {
				t.Errorf("error %v, and it says %q; want %q", err, complaints, tc.want)
			}
		})
	}
}

// TestNobodySelectsTheTest: as a pod of the DaemonSet that of `helm test` would be
// adopted, and asked by the Service of metrics and Cilium's policy.
func TestNobodySelectsTheTest(t *testing.T) {
	out, complaints, err := template(t, "--set", "mode=cilium,nameOverride=dns,commonLabels.app\\.kubernetes\\.io/name=dns")
	if err != nil {
		t.Fatalf("%v\n%s", err, complaints)
	}
	selected := object(t, out, "DaemonSet")["spec"].(map[string]any)["selector"].(map[string]any)["matchLabels"].(map[string]any)
	labels := object(t, out, "Pod")["metadata"].(map[string]any)["labels"].(map[string]any)
	if selected["app.kubernetes.io/name"] != "dns" || labels["app.kubernetes.io/name"] == "dns" {
		t.Errorf("the pod of `helm test` has the labels %v, and the DaemonSet selects %v", labels, selected)
	}
}

// TestLeases that the directive takes.
func TestLeases(t *testing.T) {
	for _, lease := range []string{"off", "250ms", "259ms", "300ms", "999ms", "0.5s", "1s", "1500ms", "1.5s", "4.999s", "5s", "5000ms"} {
		if _, complaints, err := template(t, "--set-string", "notrack.lease="+lease); err != nil {
			t.Errorf("%s: %v\n%s", lease, err, complaints)
		}
	}
}

// TestOtherNamespace: the environment has a Service's address in its own
// namespace only, so elsewhere the chart wants the addresses.
func TestOtherNamespace(t *testing.T) {
	_, complaints, err := template(t, "--namespace", "dns")
	if want := "kubeDNS.addresses is empty"; err == nil || !strings.Contains(complaints, want) {
		t.Errorf("error %v, and it says %q; want %q", err, complaints, want)
	}
	out, complaints, err := template(t, "--namespace", "dns", "--set", "kubeDNS.addresses={10.96.0.10,fd00::a}")
	if err != nil {
		t.Fatalf("%v\n%s", err, complaints)
	}
	for _, want := range []string{"bind 10.96.0.10 fd00::a\n", "upstream service kube-system/kube-dns-upstream {\n", "namespace: dns\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in:\n%s", want, out)
		}
	}
}
