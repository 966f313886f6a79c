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
)

// ProgramVar names the environment variable with the path of the trackless
// binary under test. Without it the binary is built.
const ProgramVar = "TRACKLESS_BINARY"

// Programs are the binaries under test. They are built when first asked for.
type Programs struct {
	// Directory is where they are built.
	Directory string

	product, faulty struct {
		once sync.Once
		path string
		err  error
	}
}

// Product is the path of trackless.
func (p *Programs) Product() (string, error) {
	p.product.once.Do(func() {
		if path := os.Getenv(ProgramVar); path != "" {
			p.product.path, p.product.err = filepath.Abs(path)
			return
		}
		p.product.path, p.product.err = p.build("trackless", nil)
	})
	return p.product.path, p.product.err
}

// Faulty is the path of trackless with the directive of package fault in front
// of `cache`, and not a line of its own otherwise: the same main package,
// compiled with another directive list laid over it.
func (p *Programs) Faulty() (string, error) {
	p.faulty.once.Do(func() {
		p.faulty.path, p.faulty.err = p.build("trackless-faulty", addFault)
	})
	return p.faulty.path, p.faulty.err
}

func (p *Programs) build(name string, amend func(directives string) (string, error)) (string, error) {
	root, err := module.Root()
	if err != nil {
		return "", err
	}
	path := filepath.Join(p.Directory, name)
	args := []string{"build", "-o", path}
	if amend != nil {
		overlay, err := p.overlay(filepath.Join(root, "cmd/trackless/directives.go"), amend)
		if err != nil {
			return "", err
		}
		args = append(args, "-overlay", overlay)
	}
	cmd := exec.Command("go", append(args, "./cmd/trackless")...)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w\n%s", name, err, out)
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
