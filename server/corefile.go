package server

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/coredns/caddy"
	clog "github.com/coredns/coredns/plugin/pkg/log"
)

// Loader returns what reads the Corefile that -conf names, or the one in the working
// directory. With neither there, CoreDNS's default server would answer whoami
// on the default port, which helps nobody on a node: that is an error here.
func Loader(conf string) caddy.LoaderFunc {
	return func(serverType string) (caddy.Input, error) { return load(conf, serverType) }
}

func load(conf, serverType string) (caddy.Input, error) {
	path := conf
	switch path {
	case "stdin":
		return caddy.CaddyfileFromPipe(os.Stdin, serverType)
	case "":
		path = caddy.DefaultConfigFile
	}
	contents, err := os.ReadFile(filepath.Clean(path))
	if err != nil {
		return nil, fmt.Errorf("read the Corefile: %w; name one with -conf", err)
	}
	if strings.TrimSpace(string(contents)) == "" {
		return nil, fmt.Errorf("the Corefile %s is empty; it needs at least one server block", path)
	}
	if unset := unsetVariables(string(contents)); len(unset) > 0 {
		clog.Warningf("the Corefile %s uses variables that are not set, and nothing is put in their place: %s", path, strings.Join(unset, ", "))
	}
	return caddy.CaddyfileInput{Contents: contents, Filepath: path, ServerTypeName: serverType}, nil
}
