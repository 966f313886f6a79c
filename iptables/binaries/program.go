package binaries

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	goiptables "github.com/coreos/go-iptables/iptables"

	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/internal/nfnl"
	"github.com/trackless-dns/trackless/iptables/legacy"
)

// Variant is one of the two variants of the iptables programs. Neither sees the rules of
// the other.
type Variant string

// Auto is the variant that has kubelet's or kube-proxy's rules, or else the variant of
// the programs without a suffix.
const (
	Auto   Variant = ""
	Legacy Variant = "legacy"
	NFT    Variant = "nft"
)

// program is iptables or ip6tables of one variant, with its -save and -restore.
type program struct {
	family  iptables.Family
	path    string
	variant Variant
	version [3]int
	list    *goiptables.IPTables
}

// quickWait bounds one wait for the xtables lock, since callers try again. A stop waits
// longer, since it is not tried again.
const (
	quickWait = time.Second
	lastWait  = 5 * time.Second
)

// restoreWaits is the first version of iptables whose iptables-restore has -w.
var restoreWaits = [3]int{1, 6, 2}

// findPrograms finds iptables and ip6tables of a variant, or, with Auto, of the variant
// that this node uses. Both have the same variant, unless each has only another one. A
// family whose program is missing is not in the result; err is the reason.
func findPrograms(v Variant) (map[iptables.Family]*program, error) {
	found := map[iptables.Family]*program{}
	var errs []error
	chosen := v
	if v == Auto {
		chosen = variantInUse()
	}
	for _, f := range families {
		p, err := findProgram(f, chosen)
		if err != nil && v == Auto && len(found) > 0 {
			p, err = findProgram(f, Auto)
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		found[f], chosen = p, p.variant
	}
	return found, errors.Join(errs...)
}

// opened caches programs by path: their version does not change.
var opened sync.Map

var baseNames = map[iptables.Family]string{iptables.IPv4: "iptables", iptables.IPv6: "ip6tables"}

// findProgram finds the program of a variant, or, with Auto, one that works on this
// kernel.
func findProgram(f iptables.Family, v Variant) (*program, error) {
	base := baseNames[f]
	names := []string{base, base + "-" + string(Legacy), base + "-" + string(NFT)}
	if v != Auto {
		names = []string{base + "-" + string(v), base}
	}
	var errs []error
	for _, name := range names {
		p, err := openProgram(f, name)
		switch {
		case err != nil:
			errs = append(errs, err)
		case v != Auto && p.variant != v:
			errs = append(errs, fmt.Errorf("%s has the variant %s", p.path, p.variant))
		case v == Auto && !p.works():
			errs = append(errs, fmt.Errorf("%s has the variant %s, which this kernel does not have", p.path, p.variant))
		default:
			return p, nil
		}
	}
	var reasons []string
	for _, err := range errs {
		reasons = append(reasons, err.Error())
	}
	return nil, &iptables.UnsupportedError{
		Feature: "program " + names[0],
		Remedy:  "install iptables, use the image that has the iptables binaries, or set `backend nftables`",
		Err:     errors.New(strings.Join(reasons, "; ")),
	}
}

func openProgram(f iptables.Family, name string) (*program, error) {
	path, err := exec.LookPath(name)
	if err != nil {
		return nil, err
	}
	if known, ok := opened.Load(path); ok {
		p := *known.(*program)
		return &p, nil
	}
	proto := goiptables.ProtocolIPv4
	if f == iptables.IPv6 {
		proto = goiptables.ProtocolIPv6
	}
	list, err := goiptables.New(goiptables.IPFamily(proto), goiptables.Path(path), goiptables.Timeout(int(quickWait/time.Second)))
	if err != nil {
		return nil, err
	}
	p := &program{family: f, path: path, variant: Legacy, list: list}
	p.version[0], p.version[1], p.version[2] = list.GetIptablesVersion()
	if out, err := exec.Command(path, "--version").Output(); err == nil && bytes.Contains(out, []byte("nf_tables")) {
		p.variant = NFT
	}
	opened.Store(path, p)
	return p, nil
}

// variantInUse finds the variant of the chains that kubelet and kube-proxy make to show
// which variant this node uses. It checks nft first, as kubelet's images do. A node with
// one family has them only for that family. Without such chains it is Auto.
func variantInUse() Variant {
	hint := func(chain string) bool {
		return slices.Contains([]string{"KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY", "KUBE-SERVICES"}, chain)
	}
	for _, v := range []Variant{NFT, Legacy} {
		for _, f := range families {
			if _, err := exec.LookPath(baseNames[f] + "-" + string(v)); err != nil {
				continue
			}
			// A program would read all rules of all programs for this.
			if is, err := hasChain(v, f, "", hint); is && err == nil {
				return v
			}
		}
	}
	return Auto
}

// hasChain asks the kernel for a chain in a table, or in any table if that is empty.
func hasChain(v Variant, f iptables.Family, table string, is func(string) bool) (bool, error) {
	if v == NFT {
		return nfnl.HasChain(nfnl.Config{}, f, table, is)
	}
	tables := []string{table}
	if table == "" {
		var err error
		if tables, err = legacy.Names(legacy.Config{}, f); err != nil {
			return false, err
		}
	}
	for _, name := range tables {
		if found, err := legacy.HasChain(legacy.Config{}, f, name, is); found || err != nil {
			return found, err
		}
	}
	return false, nil
}

// works reports whether the kernel supports the variant of the program. It does not check
// legacy: that would make a table.
func (p *program) works() bool {
	if p.variant == Legacy {
		return true
	}
	_, err := p.table()
	return !isUnsupported(err)
}

func isUnsupported(err error) bool {
	var unsupported *iptables.UnsupportedError
	return errors.As(err, &unsupported)
}

// companion returns the path of the -save or -restore program.
func (p *program) companion(suffix string) string {
	dir, name := filepath.Split(p.path)
	return dir + name + suffix
}

// LockError says that another program held the xtables lock for the whole time of our
// wait. It matches [iptables.ErrBusy].
type LockError struct {
	Program string
	Waited  time.Duration
}

func (e *LockError) Error() string {
	return fmt.Sprintf("%s: another program has held the xtables lock (/run/xtables.lock) for %s", e.Program, e.Waited)
}

// Is makes errors.Is find iptables.ErrBusy.
func (e *LockError) Is(target error) bool { return target == iptables.ErrBusy }

// restore commits one transaction on the raw table.
func (p *program) restore(lines []string, wait time.Duration) error {
	return p.restoreTables(slices.Concat([]string{"*raw"}, lines, []string{"COMMIT"}), wait)
}

// restoreTables commits transactions, one for each table, under one lock.
func (p *program) restoreTables(lines []string, wait time.Duration) error {
	path := p.companion("-restore")
	args := []string{"--noflush"}
	if slices.Compare(p.version[:], restoreWaits[:]) >= 0 {
		args = append(args, "-w", strconv.Itoa(int(wait/time.Second)))
	}
	cmd := exec.Command(path, args...)
	text := strings.Join(lines, "\n") + "\n"
	cmd.Stdin = strings.NewReader(text)
	return p.explain(path, wait, run(cmd), text)
}

// save returns the lines of iptables-save for one table, with the counters.
func (p *program) save(table string) ([]string, error) {
	path := p.companion("-save")
	cmd := exec.Command(path, "-c", "-t", table)
	var out bytes.Buffer
	cmd.Stdout = &out
	if err := run(cmd); err != nil {
		return nil, p.explain(path, 0, err, "")
	}
	return strings.Split(strings.TrimSpace(out.String()), "\n"), nil
}

// runError is the failure of a program, with its error output.
type runError struct {
	err    error
	stderr string
}

func (e *runError) Error() string { return fmt.Sprintf("%v: %s", e.err, strings.TrimSpace(e.stderr)) }
func (e *runError) Unwrap() error { return e.err }

func run(cmd *exec.Cmd) error {
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	if err := cmd.Run(); err != nil {
		return &runError{err, stderr.String()}
	}
	return nil
}

// explain adds the reason and the remedy to the failure of a program.
func (p *program) explain(path string, waited time.Duration, err error, text string) error {
	var failed *runError
	if !errors.As(err, &failed) {
		return err
	}
	name := filepath.Base(path)
	switch stderr := failed.stderr; {
	case strings.Contains(stderr, "xtables lock"):
		return &LockError{name, waited}
	case strings.Contains(stderr, "open lock file"):
		return fmt.Errorf("%s: %w: %w (mount /run/xtables.lock of the host into the container: it keeps the programs of both from undoing each other's changes)", name, legacy.ErrNoLock, err)
	case strings.Contains(stderr, "Permission denied"), strings.Contains(stderr, "Operation not permitted"):
		return fmt.Errorf("%s: %w (%w)", name, err, iptables.ErrPermission)
	case strings.Contains(stderr, "Table does not exist"), strings.Contains(stderr, "can't initialize"),
		strings.Contains(stderr, "Failed to initialize nft"), strings.Contains(stderr, "Could not fetch rule set generation id"):
		return fmt.Errorf("%s: %w", name, &iptables.UnsupportedError{
			Feature: "raw table for " + p.family.String() + " of iptables-" + string(p.variant),
			Remedy:  "load it with `modprobe iptable_raw ip6table_raw`, or use the other variant of the programs",
			Err:     err,
		})
	}
	if line, ok := failingLine(failed.stderr, text); ok {
		return fmt.Errorf("%s: %w in %q", name, err, line)
	}
	return fmt.Errorf("%s: %w", name, err)
}

// failingLine finds the line that iptables-restore names in its error.
func failingLine(stderr, text string) (string, bool) {
	_, rest, found := strings.Cut(stderr, "line ")
	if !found {
		return "", false
	}
	digits := strings.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' })
	if digits > 0 {
		rest = rest[:digits]
	}
	n, err := strconv.Atoi(strings.TrimSpace(rest))
	lines := strings.Split(text, "\n")
	if err != nil || n < 1 || n > len(lines) {
		return "", false
	}
	return lines[n-1], true
}
