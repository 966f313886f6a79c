package conntrack

import (
	"time"

	"github.com/mdlayher/netlink"
	"github.com/ti-mo/netfilter"

	"github.com/trackless-dns/trackless/conntrack/internal/nfnetlink"
)

// An Expectation is a flow that a helper foresees: when its first packet comes
// it is RELATED to the master and, where asked for, translated with it.
type Expectation struct {
	// Tuple is what the packet must look like under Mask, in which a zero
	// address or port means any.
	Tuple, Mask Tuple
	// Master is the original tuple of the flow that carries the helper.
	Master Tuple
	// Timeout is the time until the expectation is given up, in whole seconds.
	Timeout time.Duration
	ID      uint32
	// Helper is the name of the helper, Function that of its handler where it
	// has several, Class the helper's own numbering of kinds of flow.
	Helper, Function string
	Class            uint32
	Zone             uint16
	// Flags are NF_CT_EXPECT_*: 1 permanent, 2 inactive, 4 made by user space.
	Flags uint32
}

// Attribute types of expectations (enum ctattr_expect).
const (
	ctaExpectMaster   = 1
	ctaExpectTuple    = 2
	ctaExpectMask     = 3
	ctaExpectTimeout  = 4
	ctaExpectID       = 5
	ctaExpectHelpName = 6
	ctaExpectZone     = 7
	ctaExpectFlags    = 8
	ctaExpectClass    = 9
	ctaExpectFn       = 11
)

// DumpExpectations calls fn with every expectation; the value is reused when fn
// returns. If fn returns an error no further one is delivered, and it is
// returned.
func (c *Conn) DumpExpectations(fn func(*Expectation) error) error {
	req, err := request(msgGet, FamilyAny, netlink.Dump)
	if err != nil {
		return opError("dump expectations", err)
	}
	req.Header.Type = netlink.HeaderType(uint16(netfilter.NFSubsysCTNetlinkExp)<<8 | msgGet)

	c.dumpMu.Lock()
	defer c.dumpMu.Unlock()
	var x Expectation
	var fnErr error
	interrupted, err := nfnetlink.Exchange(c.dump, c.dumpBuf, req, func(m nfnetlink.Message) error {
		if len(m.Data) < nfnetlink.GenHeaderLen {
			return nfnetlink.ErrMalformed
		}
		if err := c.decoder.expectation(m.Data[nfnetlink.GenHeaderLen:], &x); err != nil {
			return err
		}
		fnErr = fn(&x)
		return fnErr
	})
	switch {
	case fnErr != nil:
		return fnErr
	case err != nil:
		return opError("dump expectations", err)
	case interrupted:
		return opError("dump expectations", ErrInterrupted)
	}
	return nil
}

func (d *decoder) expectation(b []byte, x *Expectation) error {
	*x = Expectation{}
	a := attrsOf(b)
	for {
		typ, v, ok := a.Next()
		if !ok {
			break
		}
		switch typ {
		case ctaExpectMaster:
			a.tuple(v, &x.Master)
		case ctaExpectTuple:
			a.tuple(v, &x.Tuple)
		case ctaExpectMask:
			a.tuple(v, &x.Mask)
		case ctaExpectTimeout:
			x.Timeout = time.Duration(a.BE32(v)) * time.Second
		case ctaExpectID:
			x.ID = a.BE32(v)
		case ctaExpectHelpName:
			x.Helper = d.name(v)
		case ctaExpectZone:
			x.Zone = a.BE16(v)
		case ctaExpectFlags:
			x.Flags = a.BE32(v)
		case ctaExpectClass:
			x.Class = a.BE32(v)
		case ctaExpectFn:
			x.Function = d.name(v)
		}
	}
	if a.Bad {
		return nfnetlink.ErrMalformed
	}
	return nil
}
