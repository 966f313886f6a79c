package host

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/node/advice"
)

// tableFull is what nf_conntrack_core.c writes, with the name of the module
// before it, when it drops a packet of a new flow.
const tableFull = "table full, dropping packet"

// KernelLog looks in the kernel's ring buffer, root/dev/kmsg, for the message
// that the table was full. It needs CAP_SYSLOG where kernel.dmesg_restrict is 1.
func KernelLog(root string) (*advice.KernelLog, error) {
	uptime, err := readUptime(root)
	if err != nil {
		return nil, fmt.Errorf("kernel log: %w", err)
	}
	path := filepath.Join(root, "dev/kmsg")
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("kernel log: open %s: %w (needs CAP_SYSLOG; kernel.dmesg_restrict)", path, err)
	}
	defer func() { _ = unix.Close(fd) }()
	records, err := readRecords(fd)
	if err != nil {
		return nil, fmt.Errorf("kernel log: read %s: %w", path, err)
	}
	log := &advice.KernelLog{}
	for line := range bytes.Lines(records) {
		at, text, ok := parseRecord(string(line))
		if !ok || !strings.Contains(text, "nf_conntrack") || !strings.Contains(text, tableFull) {
			continue
		}
		log.TableFull++
		log.LastAgo = max(0, uptime-at)
	}
	return log, nil
}

// readRecords reads all there is: /dev/kmsg gives a record to each read, and
// EAGAIN after the last (Documentation/ABI/testing/dev-kmsg).
func readRecords(fd int) ([]byte, error) {
	var all []byte
	buf := make([]byte, 8192)
	for {
		n, err := unix.Read(fd, buf)
		switch {
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EPIPE): // EPIPE: overwritten before it was read
			continue
		case errors.Is(err, unix.EAGAIN), err == nil && n == 0:
			return all, nil
		case err != nil:
			return nil, err
		}
		all = append(all, buf[:n]...)
	}
}

// parseRecord splits "priority,sequence,microseconds,flags;text".
func parseRecord(line string) (at time.Duration, text string, ok bool) {
	prefix, text, ok := strings.Cut(line, ";")
	fields := strings.Split(prefix, ",")
	if !ok || len(fields) < 3 {
		return 0, "", false
	}
	us, err := strconv.ParseInt(fields[2], 10, 64)
	return time.Duration(us) * time.Microsecond, text, err == nil
}

func readUptime(root string) (time.Duration, error) {
	b, err := os.ReadFile(filepath.Join(root, "proc/uptime"))
	if err != nil {
		return 0, err
	}
	first, _, _ := strings.Cut(string(b), " ")
	s, err := strconv.ParseFloat(strings.TrimSpace(first), 64)
	if err != nil {
		return 0, fmt.Errorf("proc/uptime: %w", err)
	}
	return time.Duration(s * float64(time.Second)), nil
}
