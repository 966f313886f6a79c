package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"io"

	"github.com/spf13/cobra"

	"github.com/trackless-dns/trackless/cmd/trackless/cli"
	"github.com/trackless-dns/trackless/conntrack"
	"github.com/trackless-dns/trackless/conntrack/format"
)

// dumpAttempts is how often a table that was rebuilt under the dump is read again.
const dumpAttempts = 3

const listHelp = `List the entries of the connection tracking table, or those that all given
filters select. Entries are printed as the kernel sends them; the table is never
held.

Filters that take several values take them separated by commas; one has to match.
Where the kernel can filter (family and mark; protocol with ports and IPv4
addresses since Linux 5.8, status since 5.15, zone since 6.8) what is not wanted is
not even read.

Output: "conntrack" is byte for byte what conntrack -L prints; json, jsonl and
yaml have the same fields, which do not change.`

type listOptions struct {
	filterFlags
	output string
	netns  cli.NetNS
}

func conntrackListCommand() *cobra.Command {
	var o listOptions
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List entries",
		Long:    listHelp,
		Example: `  trackless conntrack list --dns
  trackless conntrack list --proto tcp --state TIME_WAIT --dst 10.96.0.0/12
  trackless conntrack list --nat dnat --reply-src 10.244.1.7 -o wide
  trackless conntrack list -o jsonl | jq -r .original.src | sort | uniq -c`,
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return conntrackList(o, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	o.register(cmd)
	cli.OutputFlag(cmd, &o.output, format.Names...)
	o.netns.Register(cmd, "")
	return cmd
}

func conntrackList(o listOptions, out, errs io.Writer) error {
	f, err := o.filter()
	if err != nil {
		return err
	}
	if err := cli.CheckOutput("conntrack list", o.output, format.Names...); err != nil {
		return err
	}
	return o.netns.Do(func() error {
		c, err := conntrack.Dial(nil)
		if err != nil {
			return cli.CannotLook(err)
		}
		defer func() { _ = c.Close() }()
		// A dump that fails at once prints nothing, not even an empty document.
		if _, _, err := c.Count(); err != nil {
			return cli.CannotLook(err)
		}
		w, err := format.New(o.output, out)
		if err != nil {
			return err
		}
		err = listWhole(c.Dump, f, w.Entry, errs)
		return errors.Join(err, w.Close())
	})
}

// listWhole dumps until the table held still, and hands on every entry once. A
// rebuild of the table is rare, but only what was remembered all along can be
// told from what was not seen yet.
func listWhole(dump func(conntrack.Filter, func(*conntrack.Entry) error) error, f conntrack.Filter, fn func(*conntrack.Entry) error, errs io.Writer) error {
	seen := newFingerprints()
	for attempt := 1; ; attempt++ {
		err := dump(f, func(e *conntrack.Entry) error {
			if !seen.add(e) {
				return nil
			}
			return fn(e)
		})
		switch {
		case !errors.Is(err, conntrack.ErrInterrupted):
			return cli.CannotLook(err)
		case attempt == dumpAttempts:
			return cli.Exit(cli.ExitFailure, fmt.Errorf("gave up after %d attempts: %w", attempt, err))
		}
		_, _ = fmt.Fprintf(errs, "trackless: %v; reading it again (attempt %d of %d)\n", err, attempt+1, dumpAttempts)
	}
}

// fingerprints is a set of entries, 8 bytes each: an open-addressed table of
// hashes. Two entries with one hash are as likely as nothing that ever happens.
type fingerprints struct {
	seed  maphash.Seed
	table []uint64
	n     int
}

func newFingerprints() *fingerprints {
	return &fingerprints{seed: maphash.MakeSeed(), table: make([]uint64, 1<<10)}
}

// add puts e into the set and reports whether it is new to it.
func (s *fingerprints) add(e *conntrack.Entry) bool {
	h := s.hash(e) | 1 // 0 marks a free place
	if s.n >= len(s.table)/4*3 {
		old := s.table
		s.table = make([]uint64, 2*len(old))
		for _, h := range old {
			if h != 0 {
				s.insert(h)
			}
		}
	}
	if !s.insert(h) {
		return false
	}
	s.n++
	return true
}

// hash covers what tells entries apart; the kernel's ID alone is a hash of 32 bits.
func (s *fingerprints) hash(e *conntrack.Entry) uint64 {
	t := &e.Original
	src, dst := t.Src.As16(), t.Dst.As16()
	var b [52]byte
	copy(b[:], src[:])
	copy(b[16:], dst[:])
	binary.NativeEndian.PutUint16(b[32:], t.SrcPort)
	binary.NativeEndian.PutUint16(b[34:], t.DstPort)
	binary.NativeEndian.PutUint16(b[36:], t.ICMPID)
	binary.NativeEndian.PutUint16(b[38:], t.Zone)
	binary.NativeEndian.PutUint16(b[40:], e.Zone)
	binary.NativeEndian.PutUint32(b[42:], e.ID)
	b[46], b[47], b[48] = byte(t.Proto), t.ICMPType, t.ICMPCode
	if t.Src.Is4() {
		b[49] = 4 // As16 maps 10.0.0.1 and ::ffff:10.0.0.1 to the same
	}
	return maphash.Bytes(s.seed, b[:])
}

func (s *fingerprints) insert(h uint64) bool {
	mask := uint64(len(s.table) - 1)
	for i := h >> 1 & mask; ; i = (i + 1) & mask {
		switch s.table[i] {
		case 0:
			s.table[i] = h
			return true
		case h:
			return false
		}
	}
}
