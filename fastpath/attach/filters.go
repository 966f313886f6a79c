package attach

import (
	"errors"
	"fmt"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// filter is a filter that is attached.
type filter struct {
	handle, priority uint32
	kind, name       string
	program          ebpf.ProgramID
}

func (f filter) String() string {
	what := fmt.Sprintf("the %s filter of priority %d", f.kind, f.priority)
	if f.name != "" {
		what += " (" + f.name + ")"
	}
	return what
}

func (f filter) isOurs() bool { return f.kind == "bpf" && f.name == filterName }

// firstForeign names a filter of another program that runs at the priority or behind it, or
// none.
func firstForeign(all []filter, from uint32) string {
	for _, f := range all {
		if !f.isOurs() && f.priority >= from {
			return f.String()
		}
	}
	return ""
}

// filterLists are the filters at the ingress of devices. They are listed again only when
// they were forgotten: after a change, which the kernel announces.
type filterLists struct {
	known map[int][]filter
}

func newFilterLists() *filterLists { return &filterLists{known: map[int][]filter{}} }

func (l *filterLists) of(index int) ([]filter, error) {
	if all, known := l.known[index]; known {
		return all, nil
	}
	conn, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	all, err := filters(conn, index, ingress)
	if err != nil {
		return nil, err
	}
	l.known[index] = all
	return all, nil
}

// forget has the filters of a device listed again; 0: those of all.
func (l *filterLists) forget(index int) {
	if index == 0 {
		clear(l.known)
	}
	delete(l.known, index)
}

// filters lists the filters of a device.
func filters(conn *netlink.Conn, index int, parent uint32) (all []filter, err error) {
	messages, err := conn.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.RTM_GETTFILTER, Flags: netlink.Request | netlink.Dump},
		Data:   tcmsg(index, 0, parent, 0),
	})
	if err != nil {
		return nil, err
	}
	for _, m := range messages {
		f, err := parseFilter(m.Data)
		if err != nil {
			return nil, err
		}
		if f.handle != 0 { // 0: the head of a priority
			all = append(all, f)
		}
	}
	return all, nil
}

// filterDevice is the device of a message about a filter or a qdisc; 0: it is about more
// than one.
func filterDevice(b []byte) int {
	if len(b) < tcmsgLen {
		return 0
	}
	return max(0, int(int32(nativeUint32(b[4:])))) // negative: a block that devices share
}

func parseFilter(b []byte) (f filter, err error) {
	if len(b) < tcmsgLen {
		return f, errors.New("a filter message is too short")
	}
	f.handle, f.priority = nativeUint32(b[8:]), nativeUint32(b[16:])>>16
	ad, err := netlink.NewAttributeDecoder(b[tcmsgLen:])
	if err != nil {
		return f, err
	}
	for ad.Next() {
		switch ad.Type() {
		case attrKind:
			f.kind = ad.String()
		case attrOptions:
			ad.Nested(func(options *netlink.AttributeDecoder) error {
				for options.Next() {
					switch {
					case f.kind != "bpf":
					case options.Type() == attrName:
						f.name, _, _ = strings.Cut(options.String(), ":")
					case options.Type() == attrID:
						f.program = ebpf.ProgramID(options.Uint32())
					}
				}
				return nil
			})
		}
	}
	return f, ad.Err()
}
