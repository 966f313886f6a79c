package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/mdlayher/netlink"
	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/iptables/owner"
	"github.com/trackless-dns/trackless/lab"
)

const (
	// copies is how many copies of the sets are made at once: other processes change
	// the kernel's memory meanwhile.
	copies = 2

	// repetitions is how often that is done; the median counts.
	repetitions = 5

	// freeing is how long the kernel is given to free sets that were deleted.
	freeing = 200 * time.Millisecond
)

// setMemory is how many bytes of kernel memory our sets take on the server's node. The
// kernel says it of ip_set's sets. Those of nf_tables are made again in a namespace of
// their own, while the kernel's memory is watched.
func (s *server) setMemory() (int, error) {
	var listed []byte
	ipsets := 0
	err := s.Node.Namespace.Do(func() (err error) {
		if listed, err = exec.Command("nft", "list", "sets").Output(); err != nil {
			return fmt.Errorf("nft list sets: %w", err)
		}
		if s.backend == "iptables" {
			ipsets, err = ipsetMemory()
		}
		return err
	})
	if err != nil {
		return 0, err
	}
	bytes, err := memoryOf(copySets(string(listed)))
	return bytes + ipsets, err
}

// From include/uapi/linux/netfilter/nfnetlink.h and ipset/ip_set.h.
const (
	ipsetList         = 6<<8 | 7 // NFNL_SUBSYS_IPSET, IPSET_CMD_LIST
	ipsetProtocol     = 6
	ipsetAttrProtocol = 1
	ipsetAttrData     = 7
	ipsetAttrMemSize  = 26
)

// ipsetMemory sums up what the kernel says of this namespace's sets of ip_set. A kernel
// without ip_set has none.
func ipsetMemory() (bytes int, err error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return 0, fmt.Errorf("list the sets of ip_set: %w", err)
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	attrs, err := netlink.MarshalAttributes([]netlink.Attribute{{Type: ipsetAttrProtocol, Data: []byte{ipsetProtocol}}})
	if err != nil {
		return 0, err
	}
	replies, err := conn.Execute(netlink.Message{
		Header: netlink.Header{Type: ipsetList, Flags: netlink.Request | netlink.Dump},
		Data:   append([]byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, 0}, attrs...),
	})
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("list the sets of ip_set: %w", err)
	}
	for _, m := range replies {
		ad, err := netlink.NewAttributeDecoder(m.Data[4:])
		if err != nil {
			return 0, fmt.Errorf("list the sets of ip_set: %w", err)
		}
		ad.ByteOrder = binary.BigEndian
		for ad.Next() {
			if ad.Type() != ipsetAttrData {
				continue
			}
			ad.Nested(func(header *netlink.AttributeDecoder) error {
				for header.Next() {
					if header.Type() == ipsetAttrMemSize {
						bytes += int(header.Uint32())
					}
				}
				return nil
			})
		}
		if err := ad.Err(); err != nil {
			return 0, fmt.Errorf("list the sets of ip_set: %w", err)
		}
	}
	return bytes, nil
}

// copySets turns what nft lists into tables that hold copies of our sets, "" for none.
func copySets(listed string) string {
	var text strings.Builder
	for copied := range copies {
		ours, tables := false, 0
		for line := range strings.Lines(listed) {
			if rest, ok := strings.CutPrefix(line, "table "); ok {
				family, name, _ := strings.Cut(strings.TrimSuffix(rest, " {\n"), " ")
				if ours = strings.HasPrefix(name, owner.TablePrefix); ours {
					fmt.Fprintf(&text, "table %s copy-%d-%d {\n", family, copied, tables)
					tables++
				}
				continue
			}
			// A table with an owner ends with the nft that makes it. A size is listed
			// that the kernel gave the set when a rule first put something into it; a
			// set that is made with it takes the room for all elements at once.
			if ours && !strings.HasPrefix(line, "\tflags ") && !strings.HasPrefix(line, "\t\tsize ") {
				text.WriteString(line)
			}
		}
	}
	return text.String()
}

// memoryOf makes the tables several times and returns the median of the kernel memory
// that one copy takes.
func memoryOf(tables string) (bytes int, err error) {
	if tables == "" {
		return 0, nil
	}
	ns, err := lab.NewNamespace("sets")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, ns.Close()) }()
	var taken []int
	err = ns.Do(func() error {
		for range repetitions {
			before, err := kernelMemory()
			if err != nil {
				return err
			}
			if err := nft(tables); err != nil {
				return err
			}
			after, err := kernelMemory()
			if err != nil {
				return err
			}
			taken = append(taken, after-before)
			if err := nft("flush ruleset\n"); err != nil {
				return err
			}
			time.Sleep(freeing)
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	slices.Sort(taken)
	return max(0, taken[len(taken)/2]/copies), nil
}

func nft(text string) error {
	command := exec.Command("nft", "-f", "-")
	command.Stdin = strings.NewReader(text)
	if out, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("nft -f: %w: %s", err, out)
	}
	return nil
}

// kernelMemory is what the kernel holds of the kinds of memory that sets are made of.
func kernelMemory() (bytes int, err error) {
	fs, err := procfs.NewDefaultFS()
	if err != nil {
		return 0, err
	}
	m, err := fs.Meminfo()
	if err != nil {
		return 0, fmt.Errorf("read how much memory the kernel uses: %w", err)
	}
	for _, part := range []*uint64{m.SlabBytes, m.VmallocUsedBytes, m.PercpuBytes} {
		if part != nil {
			bytes += int(*part)
		}
	}
	return bytes, nil
}
