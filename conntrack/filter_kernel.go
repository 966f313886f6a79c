package conntrack

import (
	"encoding/binary"

	"github.com/ti-mo/netfilter"
)

// A dumpRequest is one dump that the kernel is asked for. Its filter lets
// through at least what the Filter it was made from selects.
type dumpRequest struct {
	family     Family
	attributes []netfilter.Attribute
}

// Flags that tell the kernel which parts of a tuple to compare
// (CTA_FILTER_F_* in net/netfilter/nf_internals.h).
const (
	filterIPSrc    = 1 << 0
	filterIPDst    = 1 << 1
	filterProtoNum = 1 << 3
	filterSrcPort  = 1 << 4
	filterDstPort  = 1 << 5
)

// requests returns the dumps whose union holds what f selects. Attributes that
// a kernel does not know it ignores: it then sends more, never less.
func (f *Filter) requests() ([]dumpRequest, error) {
	if err := f.Validate(); err != nil {
		return nil, err
	}
	common := f.wordFilters()
	tuple, flags := f.tupleFilter()
	family := f.Family
	switch {
	case family != FamilyAny:
	case len(f.Src) == 1:
		family = prefixFamily(f.Src[0])
	case len(f.Dst) == 1:
		family = prefixFamily(f.Dst[0])
	}
	if flags == 0 {
		return []dumpRequest{{family: family, attributes: common}}, nil
	}
	families := []Family{family}
	if family == FamilyAny { // the kernel compares tuples of one family (EOPNOTSUPP otherwise)
		families = []Family{FamilyIPv4, FamilyIPv6}
	}
	requests := make([]dumpRequest, 0, len(families))
	for _, family := range families {
		requests = append(requests, dumpRequest{
			family:     family,
			attributes: append(tupleFilterAttributes(&tuple, flags), common...),
		})
	}
	return requests, nil
}

// wordFilters encodes mark, status and zone.
func (f *Filter) wordFilters() []netfilter.Attribute {
	var list []netfilter.Attribute
	add := func(typ uint16, v uint32) {
		list = append(list, netfilter.Attribute{Type: typ, Data: binary.BigEndian.AppendUint32(nil, v)})
	}
	// The kernel sends no mark of 0, and skips the test for a mask without bits.
	if f.Mark != nil {
		add(ctaMark, *f.Mark)
		add(ctaMarkMask, f.markMask())
	}
	if mask := f.Status | f.NotStatus; mask != 0 {
		add(ctaStatus, uint32(f.Status))
		add(ctaStatusMask, uint32(mask))
	}
	if f.Zone != nil && *f.Zone != 0 {
		// Not for zone 0: with it the kernel leaves out entries that have zone
		// 0 in one direction only, which the filter selects.
		list = append(list, netfilter.Attribute{Type: ctaZone, Data: binary.BigEndian.AppendUint16(nil, *f.Zone)})
	}
	return list
}

// tupleFilter returns the values that the original tuple must have, and which
// of them are given. Lists and ranges with more than one value are not the
// kernel's business, and neither are IPv6 addresses: the kernel (up to 6.18 at
// least) compares them the wrong way round and leaves out what was asked for
// (ctnetlink_filter_match_tuple).
func (f *Filter) tupleFilter() (t Tuple, flags uint32) {
	if len(f.Src) == 1 && f.Src[0].Addr().Is4() && f.Src[0].IsSingleIP() {
		t.Src = f.Src[0].Addr()
		flags |= filterIPSrc
	}
	if len(f.Dst) == 1 && f.Dst[0].Addr().Is4() && f.Dst[0].IsSingleIP() {
		t.Dst = f.Dst[0].Addr()
		flags |= filterIPDst
	}
	if len(f.Protocols) != 1 {
		return t, flags
	}
	t.Proto = f.Protocols[0]
	flags |= filterProtoNum
	if !t.Proto.HasPorts() {
		return t, flags
	}
	if len(f.SrcPorts) == 1 && f.SrcPorts[0].First == f.SrcPorts[0].Last {
		t.SrcPort = f.SrcPorts[0].First
		flags |= filterSrcPort
	}
	if len(f.DstPorts) == 1 && f.DstPorts[0].First == f.DstPorts[0].Last {
		t.DstPort = f.DstPorts[0].First
		flags |= filterDstPort
	}
	return t, flags
}

func tupleFilterAttributes(t *Tuple, flags uint32) []netfilter.Attribute {
	var children, ip, proto []netfilter.Attribute
	if flags&filterIPSrc != 0 {
		ip = append(ip, netfilter.Attribute{Type: ctaIPv4Src, Data: t.Src.AsSlice()})
	}
	if flags&filterIPDst != 0 {
		ip = append(ip, netfilter.Attribute{Type: ctaIPv4Dst, Data: t.Dst.AsSlice()})
	}
	if flags&filterProtoNum != 0 {
		proto = append(proto, netfilter.Attribute{Type: ctaProtoNum, Data: []byte{byte(t.Proto)}})
	}
	if flags&filterSrcPort != 0 {
		proto = append(proto, netfilter.Attribute{Type: ctaProtoSrcPort, Data: binary.BigEndian.AppendUint16(nil, t.SrcPort)})
	}
	if flags&filterDstPort != 0 {
		proto = append(proto, netfilter.Attribute{Type: ctaProtoDstPort, Data: binary.BigEndian.AppendUint16(nil, t.DstPort)})
	}
	if ip != nil {
		children = append(children, netfilter.Attribute{Type: ctaTupleIP, Nested: true, Children: ip})
	}
	if proto != nil {
		children = append(children, netfilter.Attribute{Type: ctaTupleProto, Nested: true, Children: proto})
	}
	return []netfilter.Attribute{
		{Type: ctaTupleOrig, Nested: true, Children: children},
		{Type: ctaFilter, Nested: true, Children: []netfilter.Attribute{
			// The flags are in host byte order (nla_get_u32).
			{Type: ctaFilterOrigFlags, Data: binary.NativeEndian.AppendUint32(nil, flags)},
		}},
	}
}
