package support

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"regexp"
	"time"

	"github.com/trackless-dns/trackless/node/instance"
	"github.com/trackless-dns/trackless/node/rules"
)

// AddInstances asks every instance that a report reached for its Corefile, state,
// savings and log. Where there is none, conf names a Corefile to take instead.
func (b *Bundle) AddInstances(ctx context.Context, report *rules.Report, conf string) {
	for _, q := range report.Silent {
		b.Miss("instance at "+q.Socket, "everything of it", q.Err)
	}
	for n, f := range report.Reached {
		b.addInstance(ctx, fmt.Sprintf("instance-%d", n+1), f)
	}
	if len(report.Reached) > 0 {
		return
	}
	none := errors.New("no instance was reached: none runs, or its control socket is off or out of reach; run this where it runs, or name the socket with --socket")
	b.Miss("instance-1/log.txt", "the end of the log", fmt.Errorf("%w; `kubectl logs --previous` shows what an ended container wrote", none))
	if conf == "" {
		b.Miss("instance-1/Corefile", "the Corefile in force", fmt.Errorf("%w; --conf names a file to take instead", none))
		return
	}
	b.Add("corefile", "Corefile", "the file that --conf named", func() ([]byte, error) {
		text, err := os.ReadFile(conf)
		if err != nil {
			return nil, err
		}
		b.missImports("", string(text))
		return []byte(b.Corefile(string(text))), nil
	})
}

func (b *Bundle) addInstance(ctx context.Context, dir string, f instance.Reached) {
	ask := func(timeout time.Duration, read func(context.Context) ([]byte, error)) func() ([]byte, error) {
		return func() ([]byte, error) {
			ctx, cancel := context.WithTimeout(ctx, timeout)
			defer cancel()
			return read(ctx)
		}
	}
	b.Add("corefile", path.Join(dir, "Corefile"), "the Corefile in force", ask(instance.StatusTimeout, func(ctx context.Context) ([]byte, error) {
		c, err := f.Corefile(ctx)
		if err != nil {
			return nil, err
		}
		b.missImports(dir, c.Contents)
		return []byte(b.Corefile(fmt.Sprintf("# %s\n%s", c.Path, c.Contents))), nil
	}))
	b.Add("", path.Join(dir, "status.json"), "its state, as it sees itself", func() ([]byte, error) { return Indented(f.Answer) })
	b.Add("", path.Join(dir, "figures.json"), "what it saves", ask(instance.StatusTimeout, func(ctx context.Context) ([]byte, error) {
		figures, err := f.Figures(ctx)
		if err != nil {
			return nil, err
		}
		return Indented(figures)
	}))
	b.Add("log", path.Join(dir, "log.txt"), "the end of its log", ask(5*time.Second, f.Log))
}

// imports are the lines of a Corefile that bring in files; a name without a
// dot, a slash or a star is a snippet of the same file.
var imports = regexp.MustCompile(`(?m)^\s*import\s+(\S*[./*]\S*)`)

func (b *Bundle) missImports(dir, corefile string) {
	for _, found := range imports.FindAllStringSubmatch(corefile, -1) {
		b.Miss(path.Join(dir, "Corefile"), "a file that it imports", fmt.Errorf("import %s: files that a Corefile imports are not read; add them by hand, without their secrets", found[1]))
	}
}
