package snapshot

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
)

// ReadNode reads what tells this node and boot apart below root ("/" if
// empty). A field that could not be read is zero, and the error names it.
func ReadNode(root, name string) (Node, error) {
	if root == "" {
		root = "/"
	}
	n := Node{Name: name, Architecture: runtime.GOARCH, CPUs: runtime.NumCPU()}
	var errs []error
	read := func(path string) string {
		b, err := os.ReadFile(filepath.Join(root, path))
		if err != nil {
			errs = append(errs, fmt.Errorf("node: %w", err))
		}
		return string(bytes.TrimSpace(b))
	}
	n.BootID = read("proc/sys/kernel/random/boot_id")
	n.Kernel = read("proc/sys/kernel/osrelease")
	first, _, _ := strings.Cut(read("proc/uptime"), " ")
	if seconds, err := strconv.ParseFloat(first, 64); err == nil {
		n.UptimeSeconds = seconds
	}
	return n, errors.Join(errs...)
}
