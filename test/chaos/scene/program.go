package scene

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"github.com/trackless-dns/trackless/internal/module"
	"github.com/trackless-dns/trackless/internal/testprogram"
)

// Programs are the binaries under test. They are built when first asked for.
type Programs struct {
	// Directory is where they are built.
	Directory string

	faulty struct {
		once sync.Once
		path string
		err  error
	}
}

// Product is the path of trackless.
func (*Programs) Product() (string, error) { return testprogram.Path() }

// Faulty is the path of trackless with the directive of package fault in front
// of `cache`, and not a line of its own otherwise: the same main package,
// compiled with another directive list laid over it.
func (p *Programs) Faulty() (string, error) {
	p.faulty.once.Do(func() {
		p.faulty.path, p.faulty.err = p.buildFaulty()
	})
	return p.faulty.path, p.faulty.err
}

func (p *Programs) buildFaulty() (string, error) {
	root, err := module.Root()
	if err != nil {
		return "", err
	}
	overlay, err := p.overlay(filepath.Join(root, "cmd/trackless/directives.go"), addFault)
	if err != nil {
		return "", err
	}
	path := filepath.Join(p.Directory, "trackless-faulty")
	cmd := exec.Command("go", "build", "-o", path, "-overlay", overlay, "./cmd/trackless")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build trackless with the fault directive: %w\n%s", err, out)
	}
	return path, nil
}

// overlay writes an amended copy of a source file and the file that tells the
// go command to compile it in place of the original.
func (p *Programs) overlay(source string, amend func(string) (string, error)) (string, error) {
	text, err := os.ReadFile(source)
	if err != nil {
		return "", err
	}
	amended, err := amend(string(text))
	if err != nil {
		return "", fmt.Errorf("amend %s: %w", source, err)
	}
	replacement := filepath.Join(p.Directory, "directives.go")
	if err := os.WriteFile(replacement, []byte(amended), 0o600); err != nil {
		return "", err
	}
	list, err := json.Marshal(map[string]map[string]string{"Replace": {source: replacement}})
	if err != nil {
		return "", err
	}
	path := filepath.Join(p.Directory, "overlay.json")
	return path, os.WriteFile(path, list, 0o600)
}

// addFault puts the directive before cache in the list of trackless.
func addFault(directives string) (string, error) {
	for _, edit := range []struct{ before, insert string }{
		{"\n)\n", "\n\t_ \"github.com/trackless-dns/trackless/test/chaos/fault\""},
		{"\n\t\"cache\",\n", "\n\t\"fault\","},
	} {
		if strings.Count(directives, edit.before) != 1 {
			return "", fmt.Errorf("%q does not stand there exactly once", edit.before)
		}
		directives = strings.Replace(directives, edit.before, edit.insert+edit.before, 1)
	}
	return directives, nil
}
