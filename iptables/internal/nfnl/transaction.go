package nfnl

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/iptables/owner"
)

// A Transaction is one nf_tables batch, encoded by google/nftables and sent on a socket
// of our own. The library cannot encode the flags and user data of our table, so its
// messages are captured before they are sent, and changed.
type Transaction struct {
	Messages []netlink.Message // without the begin and end of the batch
}

// Encode collects the messages that build queues. The library sends them nowhere.
func Encode(build func(*nftables.Conn) error) (Transaction, error) {
	var tx Transaction
	conn, err := nftables.New(nftables.WithTestDial(func(req []netlink.Message) ([]netlink.Message, error) {
		tx.Messages = append(tx.Messages, req...)
		return nil, io.EOF
	}))
	if err != nil {
		return tx, err
	}
	if err := build(conn); err != nil {
		return tx, err
	}
	if err := conn.Flush(); err != nil {
		return tx, err
	}
	tx.Messages = slices.DeleteFunc(tx.Messages, func(m netlink.Message) bool {
		return m.Header.Type == unix.NFNL_MSG_BATCH_BEGIN || m.Header.Type == unix.NFNL_MSG_BATCH_END
	})
	for i := range tx.Messages {
		// The length of an attribute has 16 bits (struct nlattr). A longer message
		// may have an attribute whose length is wrong.
		if m := tx.Messages[i]; len(m.Data) > math.MaxUint16 {
			return tx, fmt.Errorf("nftables: %s: the message has %d bytes, and an attribute at most 65,535", messageName(m), len(m.Data))
		}
		// Each message asks for an acknowledgement and for no echo. The sending
		// socket sets sequence and port id.
		h := &tx.Messages[i].Header
		h.Sequence, h.PID = 0, 0
		h.Flags = h.Flags&^netlink.Echo | netlink.Acknowledge
	}
	return tx, nil
}

// MessageType returns the header type of an nf_tables message.
func MessageType(msg int) netlink.HeaderType {
	return netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | msg)
}

// Header is struct nfgenmsg of linux/netfilter/nfnetlink.h: family, version
// and a resource id in network byte order.
func Header(family nftables.TableFamily, resource uint16) []byte {
	return []byte{byte(family), unix.NFNETLINK_V0, byte(resource >> 8), byte(resource)}
}

// Prepend puts a message that we encode ourselves at the front.
func (tx *Transaction) Prepend(msg int, flags netlink.HeaderFlags, attrs []netlink.Attribute) error {
	data, err := netlink.MarshalAttributes(attrs)
	if err != nil {
		return err
	}
	tx.Messages = slices.Insert(tx.Messages, 0, netlink.Message{
		Header: netlink.Header{Type: MessageType(msg), Flags: netlink.Request | netlink.Acknowledge | flags},
		Data:   append(Header(nftables.TableFamilyINet, 0), data...),
	})
	return nil
}

// commitTimeout bounds the wait for the kernel's answers. A commit waits for the
// nf_tables mutex. Another program's transaction of 100,000 rules holds that for
// seconds.
const commitTimeout = 30 * time.Second

// Commit sends the batch and waits until the kernel has accepted or refused all of it.
// The error names the first message that the kernel refused.
func (tx Transaction) Commit(conn *netlink.Conn) error {
	batch := make([]netlink.Message, 0, len(tx.Messages)+2)
	batch = append(batch, batchMarker(unix.NFNL_MSG_BATCH_BEGIN))
	batch = append(batch, tx.Messages...)
	batch = append(batch, batchMarker(unix.NFNL_MSG_BATCH_END))
	if err := conn.SetReadDeadline(time.Now().Add(commitTimeout)); err != nil {
		return err
	}
	if err := growBuffers(conn, batch); err != nil {
		return err
	}
	if _, err := conn.SendMessages(batch); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	// nfnetlink answers each message in order, refused or not. Only an error about
	// the batch itself is the only answer.
	var refused error
	for i, m := range tx.Messages {
		_, err := conn.Receive()
		if err == nil {
			continue
		}
		if refused == nil {
			refused = fmt.Errorf("%s: %w", messageName(m), err)
		}
		if i == 0 && endsBatch(err) {
			return refused
		}
		// The other answers come at once, or never.
		if err := conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
			return refused
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return refused
		}
	}
	return refused
}

// growBuffers enlarges the buffers of the socket if the default ones are too small, as
// for thousands of connections. One sendmsg(2) sends the whole batch, and all answers
// may be there before the first is read.
func growBuffers(conn *netlink.Conn, batch []netlink.Message) error {
	const (
		usual  = 128 << 10 // less than net.core.wmem_default and rmem_default
		answer = 1 << 10   // what the kernel charges for an acknowledgement, at most
	)
	size := 0
	for _, m := range batch {
		size += len(m.Data) + unix.NLMSG_HDRLEN + unix.NLMSG_ALIGNTO
	}
	if size > usual {
		if err := conn.SetWriteBuffer(size); err != nil {
			return err
		}
	}
	if answers := len(batch) * answer; answers > usual {
		return conn.SetReadBuffer(answers)
	}
	return nil
}

// endsBatch reports whether the kernel refused the whole batch (nfnetlink_rcv_batch in
// net/netfilter/nfnetlink.c): the sender lacks permission, or the kernel lacks the
// subsystem.
func endsBatch(err error) bool {
	return errors.Is(err, unix.EPERM) || errors.Is(err, unix.EOPNOTSUPP) ||
		errors.Is(err, unix.ENOMEM) || errors.Is(err, os.ErrDeadlineExceeded)
}

func batchMarker(msg int) netlink.Message {
	return netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(msg), Flags: netlink.Request},
		Data:   Header(nftables.TableFamilyUnspecified, unix.NFNL_SUBSYS_NFTABLES),
	}
}

// messageName names a message in the words of nft.
func messageName(m netlink.Message) string {
	names := map[int]string{
		unix.NFT_MSG_NEWTABLE:   "add table",
		unix.NFT_MSG_DELTABLE:   "delete table",
		unix.NFT_MSG_NEWCHAIN:   "add chain",
		unix.NFT_MSG_NEWSET:     "add set",
		unix.NFT_MSG_NEWSETELEM: "add element",
		unix.NFT_MSG_DELSETELEM: "delete element",
		unix.NFT_MSG_NEWOBJ:     "add counter",
		unix.NFT_MSG_NEWRULE:    "add rule",
		unix.NFT_MSG_DELRULE:    "delete rule",
	}
	if name, ok := names[int(m.Header.Type)&0xff]; ok {
		return name
	}
	return fmt.Sprintf("nf_tables message %d", int(m.Header.Type)&0xff)
}

// NewTable puts the creation of our table at the front of a transaction. The table must
// not exist yet.
func (tx *Transaction) NewTable(name string, m owner.Mark, flags uint32) error {
	comment := userdata.AppendString(nil, TableComment, m.String())
	return tx.Prepend(unix.NFT_MSG_NEWTABLE, netlink.Create|netlink.Excl, []netlink.Attribute{
		{Type: unix.NFTA_TABLE_NAME, Data: append([]byte(name), 0)},
		{Type: unix.NFTA_TABLE_FLAGS, Data: binary.BigEndian.AppendUint32(nil, flags)},
		{Type: TableUserdata, Data: comment},
	})
}
