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

// Variant tells which of the two kinds of iptables programs is meant: rules of
// one are not seen by the other.
type Variant string

// Auto is the kind that holds kubelet's or kube-proxy's rules, or else what the
// plain names run.
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

// quickWait is how long the xtables lock is waited for at a time: what calls us
// tries again. A stop waits longer, since nothing comes after it.
const (
	quickWait = time.Second
	lastWait  = 5 * time.Second
)

// restoreWaits is the version of iptables whose iptables-restore takes -w.
var restoreWaits = [3]int{1, 6, 2}

// findPrograms looks for iptables and ip6tables of a variant, or of one that suits
// the node: the same for both, unless there is only one of each. A family whose
// program is missing is not in the result; err says why.
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

// opened remembers programs by name: their version does not change.
var opened sync.Map

var baseNames = map[iptables.Family]string{iptables.IPv4: "iptables", iptables.IPv6: "ip6tables"}

// findProgram looks for the program of a variant, or, with Auto, for one that
// this kernel has a use for.
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
			errs = append(errs, fmt.Errorf("%s is of the %s variant", p.path, p.variant))
		case v == Auto && !p.works():
			errs = append(errs, fmt.Errorf("%s is of the %s variant, which this kernel does not have", p.path, p.variant))
		default:
			return p, nil
		}
	}
	var said []string
	for _, err := range errs {
		said = append(said, err.Error())
	}
	return nil, &iptables.UnsupportedError{
		Feature: "program " + names[0],
		Remedy:  "install iptables, or use the image flavour that has the iptables binaries, or `backend nftables`",
		Err:     errors.New(strings.Join(said, "; ")),
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

// variantInUse looks for the chains that kubelet and kube-proxy make to show
// which variant this node uses, first those of nft, as kubelet's own images do.
// A node of one family has them for that family alone. It is Auto where there
// are none.
func variantInUse() Variant {
	hint := func(chain string) bool {
		return slices.Contains([]string{"KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY", "KUBE-SERVICES"}, chain)
	}
	for _, v := range []Variant{NFT, Legacy} {
		for _, f := range families {
			if _, err := exec.LookPath(baseNames[f] + "-" + string(v)); err != nil {
				continue
			}
			// The program would read all rules of everybody for it.
			if is, err := hasChain(v, f, "", hint); is && err == nil {
				return v
			}
		}
	}
	return Auto
}

// hasChain asks the kernel for a chain in a table, or with an empty name in any.
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

// works reports whether the kernel has what the programs of the variant speak
// with. A legacy table would be made by asking.
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

// companion is the path of the -save or -restore program.
func (p *program) companion(suffix string) string {
	dir, name := filepath.Split(p.path)
	return dir + name + suffix
}

// LockError says that another program held the xtables lock for as long as we
// were willing to wait. It matches [iptables.ErrBusy].
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

// save returns the lines of iptables-save for one table, counters and all.
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

// runError is a program that failed, with what it said.
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

// explain turns what a program said into a sentence with a remedy.
func (p *program) explain(path string, waited time.Duration, err error, text string) error {
	var failed *runError
	if !errors.As(err, &failed) {
		return err
	}
	name := filepath.Base(path)
	switch said := failed.stderr; {
	case strings.Contains(said, "xtables lock"):
		return &LockError{name, waited}
	case strings.Contains(said, "open lock file"):
		return fmt.Errorf("%s: %w (a container needs /run/xtables.lock of its host mounted, which is what keeps it and the host's programs from undoing each other's changes)", name, err)
	case strings.Contains(said, "Permission denied"), strings.Contains(said, "Operation not permitted"):
		return fmt.Errorf("%s: %w (%w)", name, err, iptables.ErrPermission)
	case strings.Contains(said, "Table does not exist"), strings.Contains(said, "can't initialize"),
		strings.Contains(said, "Failed to initialize nft"), strings.Contains(said, "Could not fetch rule set generation id"):
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

// failingLine finds the line that iptables-restore complains about.
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
