package main

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"
	_ "k8s.io/client-go/plugin/pkg/client/auth/oidc" // kubeconfigs that name it; other ways to log in are programs
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// defaultNamespace is that of the manifests. Debug pods are made there, too, since
// its Pod Security level usually is `privileged`.
const defaultNamespace = "kube-system"

// The ways to a node.
const (
	viaAuto = "auto" // through our pod, else through a debug pod
	viaExec = "exec"
	viaPod  = "pod"
)

// options are the flags that all verbs have.
type options struct {
	kube          kubeFlags
	allNamespaces bool
	nodes         []string
	allNodes      bool
	selector      string
	output        string
	image         string
	via           string
	parallel      int
	timeout       time.Duration
}

func newOptions() *options {
	return &options{kube: kubeFlags{files: clientcmd.NewDefaultClientConfigLoadingRules()}}
}

// kubeFlags are those of kubectl that say which cluster, and as whom.
type kubeFlags struct {
	files  *clientcmd.ClientConfigLoadingRules
	values clientcmd.ConfigOverrides
}

func (k *kubeFlags) register(fs *pflag.FlagSet) {
	names := clientcmd.RecommendedConfigOverrideFlags("")
	names.ClusterOverrideFlags.APIServer.ShortName = "s"
	names.AuthOverrideFlags.Username.LongName, names.AuthOverrideFlags.Password.LongName = "", "" // API servers know no passwords
	names.ContextOverrideFlags.Namespace.Description = "`namespace` of Trackless, and of debug pods (default: " + defaultNamespace + ")"
	clientcmd.BindOverrideFlags(&k.values, fs, names)
	fs.StringVar(&k.files.ExplicitPath, clientcmd.RecommendedConfigPathFlag, "", "`path` of the kubeconfig")
}

func (o *options) register(fs *pflag.FlagSet) {
	o.kube.register(fs)
	fs.BoolVarP(&o.allNamespaces, "all-namespaces", "A", false, "look for the pods of Trackless in all namespaces")
	fs.StringArrayVar(&o.nodes, "node", nil, "`name` of a node; may be repeated")
	fs.BoolVar(&o.allNodes, "all-nodes", false, "all nodes that run Linux")
	fs.StringVarP(&o.selector, "selector", "l", "", "`labels` of nodes, such as pool=web,zone!=a")
	fs.StringVarP(&o.output, "output", "o", "table", "`format`: table or json")
	fs.StringVar(&o.image, "image", imageName+":"+version, "`image` of debug pods")
	fs.StringVar(&o.via, "via", viaAuto, "`way` to a node: exec into the pod of Trackless, a debug pod, or auto: exec where there is one")
	fs.IntVar(&o.parallel, "parallel", 8, "`number` of nodes that are asked at the same time")
	fs.DurationVar(&o.timeout, "timeout", 2*time.Minute, "`time` that a node may take")
}

func (o *options) check() error {
	ways := 0
	for _, given := range []bool{len(o.nodes) > 0, o.allNodes, o.selector != ""} {
		if given {
			ways++
		}
	}
	switch {
	case ways == 0:
		return errors.New("no node is named: give --node NAME, -l LABELS, or --all-nodes")
	case ways > 1:
		return errors.New("--node, -l and --all-nodes exclude each other: give one of them")
	case !slices.Contains([]string{"table", "json"}, o.output):
		return fmt.Errorf("--output %q: it takes table or json", o.output)
	case !slices.Contains([]string{viaAuto, viaExec, viaPod}, o.via):
		return fmt.Errorf("--via %q: it takes auto, exec or pod", o.via)
	case o.parallel < 1:
		return fmt.Errorf("--parallel %d: at least one node is asked at a time", o.parallel)
	case o.timeout < time.Second:
		return fmt.Errorf("--timeout %s: a node needs seconds to answer", o.timeout)
	case strings.TrimSpace(o.image) == "":
		return errors.New("--image is empty: name the image of debug pods")
	}
	return nil
}

// fits says whether a node can be watched for that long.
func (o *options) fits(flag string, watched time.Duration) error {
	if watched < o.timeout {
		return nil
	}
	return fmt.Errorf("%s %s does not fit into the time that a node may take: --timeout %s", flag, watched, o.timeout)
}

// cluster connects nothing yet; it makes the client.
func (o *options) cluster() (*cluster, error) {
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(o.kube.files, &o.kube.values).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("find the cluster: %w; name a kubeconfig by --kubeconfig or KUBECONFIG, and a context of it by --context", err)
	}
	// A question to many nodes is many small requests.
	config.QPS, config.Burst = 50, 100
	// They say of each debug pod that it has capabilities.
	config.WarningHandler = rest.NoWarnings{}
	client, err := newAPI(config)
	if err != nil {
		return nil, fmt.Errorf("make a client for %s: %w", config.Host, err)
	}
	return &cluster{
		api: client, config: config, image: o.image, via: o.via, timeout: o.timeout,
		namespace: cmp.Or(o.kube.values.Context.Namespace, defaultNamespace), allNamespaces: o.allNamespaces,
	}, nil
}
