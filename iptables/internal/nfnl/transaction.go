package nfnl

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/iptables/owner"
)

// A Transaction is one nf_tables batch, without the batch's begin and end.
type Transaction struct {
	Messages []netlink.Message
}

// Encode makes a transaction of what build puts into the encoder.
func Encode(build func(*Encoder) error) (Transaction, error) {
	var e Encoder
	if err := build(&e); err != nil {
		return Transaction{}, err
	}
	if e.err != nil {
		return Transaction{}, e.err
	}
	return Transaction{Messages: e.messages}, nil
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

// Prepend puts a message of our own encoding at the front.
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

// commitTimeout bounds the wait for the kernel's answers. A commit waits for
// the nf_tables mutex, which a foreign transaction of 100,000 rules holds for
// seconds.
const commitTimeout = 30 * time.Second

// Commit sends the batch and waits until the kernel has taken or refused it as
// a whole. The error names the first message that the kernel refused.
func (tx Transaction) Commit(conn *netlink.Conn) error {
	batch := make([]netlink.Message, 0, len(tx.Messages)+2)
	batch = append(batch, batchMarker(unix.NFNL_MSG_BATCH_BEGIN))
	batch = append(batch, tx.Messages...)
	batch = append(batch, batchMarker(unix.NFNL_MSG_BATCH_END))
	if err := conn.SetReadDeadline(time.Now().Add(commitTimeout)); err != nil {
		return err
	}
	if err := makeRoom(conn, batch); err != nil {
		return err
	}
	if _, err := conn.SendMessages(batch); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	// nfnetlink answers each message in order, refused or not; only an error
	// about the batch itself comes alone.
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
		// The others' answers follow at once or not at all.
		if err := conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
			return refused
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return refused
		}
	}
	return refused
}

// makeRoom sizes the socket's buffers where the usual ones do not do, as for
// thousands of connections: a batch leaves in one sendmsg(2), and all of its
// answers may be there before the first is read.
func makeRoom(conn *netlink.Conn, batch []netlink.Message) error {
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

// endsBatch reports whether the kernel said no to the whole batch
// (nfnetlink_rcv_batch in net/netfilter/nfnetlink.c): the sender may not, or
// the subsystem is not there.
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

// messageName says what a refused message was about, in the words of nft.
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

// NewTable queues the creation of our table in front of a transaction. It must
// not exist yet. A key may be nil.
func (tx *Transaction) NewTable(name string, m owner.Mark, flags uint32, key []byte) error {
	comment := userdata.AppendString(nil, TableComment, m.String())
	if key != nil {
		comment = userdata.Append(comment, TableKey, key)
	}
	return tx.Prepend(unix.NFT_MSG_NEWTABLE, netlink.Create|netlink.Excl, []netlink.Attribute{
		{Type: unix.NFTA_TABLE_NAME, Data: append([]byte(name), 0)},
		{Type: unix.NFTA_TABLE_FLAGS, Data: binary.BigEndian.AppendUint32(nil, flags)},
		{Type: TableUserdata, Data: comment},
	})
}
