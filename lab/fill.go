package lab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/conntrack"
)

const (
	// MaxTableLimit is the largest table that Fill will fill: at some 300
	// bytes of kernel memory each, a million entries are enough to ask of a
	// machine.
	MaxTableLimit = 1_000_000

	// fillerTimeout outlasts any experiment.
	fillerTimeout = time.Hour

	// fillers is how many create entries side by side.
	fillers = 2
)

// ErrTableTooLarge is returned by Fill where the limit in force is above
// MaxTableLimit.
var ErrTableTooLarge = errors.New("the conntrack table of this machine is too large to be filled for a demonstration")

// TableLimit returns the number of entries at which the kernel refuses new
// ones. All namespaces have the limit of the first one, each for itself.
func (n *Node) TableLimit() (int, error) {
	conn, err := conntrack.Dial(&conntrack.Config{NetNS: n.Namespace.FD()})
	if err != nil {
		return 0, err
	}
	_, limit, err := conn.Count()
	return int(limit), errors.Join(err, conn.Close())
}

// Fill puts entries into the node's table until the kernel refuses more, and
// returns how many. They are flows that were answered and live on (ASSURED),
// which the kernel does not evict to make room. The limit stays as it is.
func (n *Node) Fill(ctx context.Context, progress func(created, limit int)) (int, error) {
	limit, err := n.TableLimit()
	switch {
	case err != nil:
		return 0, fmt.Errorf("fill the conntrack table: %w", err)
	case limit == 0:
		return 0, errors.New("fill the conntrack table: it has no limit (nf_conntrack_max is 0, or the kernel is older than 4.18 and does not say)")
	case limit > MaxTableLimit:
		return 0, fmt.Errorf("%w: its limit is %s, at most %s are filled (sysctl net.netfilter.nf_conntrack_max)",
			ErrTableTooLarge, Grouped(limit), Grouped(MaxTableLimit))
	}
	var (
		next, created atomic.Int64
		wait          sync.WaitGroup
		errs          [fillers]error
	)
	for i := range fillers {
		wait.Go(func() {
			errs[i] = n.fill(ctx, limit, &next, func() {
				if done := created.Add(1); done%4096 == 0 && progress != nil {
					progress(int(done), limit)
				}
			})
		})
	}
	wait.Wait()
	if err := errors.Join(errs[:]...); err != nil {
		return 0, fmt.Errorf("fill the conntrack table: %w", err)
	}
	return int(created.Load()), nil
}

// fill creates entries until there is no room.
func (n *Node) fill(ctx context.Context, limit int, next *atomic.Int64, created func()) (err error) {
	conn, err := conntrack.Dial(&conntrack.Config{NetNS: n.Namespace.FD()})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	for ctx.Err() == nil {
		number := next.Add(1)
		if number > 2*int64(limit) {
			return fmt.Errorf("the kernel took twice as many entries as its limit of %s", Grouped(limit))
		}
		switch err := conn.Create(fillerEntry(uint32(number))); {
		case errors.Is(err, unix.ENOMEM):
			return nil // full: nf_conntrack_alloc found nothing to evict
		case err != nil:
			return err
		}
		created()
	}
	return context.Cause(ctx)
}

// fillerEntry is the n-th flow of the kind that fills the table: between
// addresses reserved for benchmarks (RFC 2544, 198.18.0.0/15).
func fillerEntry(n uint32) *conntrack.Entry {
	const portBits = 14
	port := uint16(1024 + n&(1<<portBits-1))
	var src [4]byte
	binary.BigEndian.PutUint32(src[:], 198<<24|18<<16|(n>>portBits+1))
	original := conntrack.Tuple{
		Proto: conntrack.UDP,
		Src:   netip.AddrFrom4(src), SrcPort: port,
		Dst: netip.AddrFrom4([4]byte{198, 19, 0, 1}), DstPort: 4789,
	}
	return &conntrack.Entry{
		Original: original,
		Reply:    original.Mirror(),
		Timeout:  fillerTimeout,
		Status:   conntrack.StatusSeenReply | conntrack.StatusAssured,
	}
}

// Grouped writes a number with a comma at every thousand.
func Grouped(n int) string {
	digits := strconv.Itoa(n)
	sign := ""
	if n < 0 {
		sign, digits = "-", digits[1:]
	}
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return sign + digits
}
