package handover

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// kind is the kind of a frame.
type kind byte

const (
	kindRequest kind = iota + 1
	kindBegin        // of a section
	kindPiece
	kindEnd  // of a section; a content is the reason why it is not whole
	kindDone // of the state
)

const (
	magic    = "trackless handover"
	nonceLen = 32
	headLen  = 1 + 4 // kind, length of the content
	codeLen  = 16    // bytes of the code that are sent
	helloLen = len(magic) + 2 + nonceLen
)

// The errors of a connection.
var (
	// ErrStranger: the other end has not proved that it is an instance of Trackless.
	ErrStranger = errors.New("the other end does not know the key of the instance, or the data was changed on its way")
	// ErrVersion: the other end is an instance of another version.
	ErrVersion = errors.New("the other instance has another version of the handover")
	errFrame   = errors.New("the other end sent a frame that is none of the protocol")
)

// wire is a connection whose frames have codes.
type wire struct {
	conn     net.Conn
	ours     hash.Hash // codes of the frames that we send
	theirs   hash.Hash
	sent     uint64 // frames
	received uint64
	buf      []byte // of the frame that was read last
	out      []byte
}

// role is one of the ends. It is part of the keys, so that no frame can be sent back.
type role string

const (
	successor   role = "successor"
	predecessor role = "predecessor"
)

func (r role) other() role {
	if r == successor {
		return predecessor
	}
	return successor
}

// shakeHands exchanges hellos. Who does not know the key fails at the first frame.
func shakeHands(conn net.Conn, r role, key []byte) (*wire, error) {
	hello := binary.BigEndian.AppendUint16([]byte(magic), Version)
	nonce := make([]byte, nonceLen)
	if _, err := rand.Read(nonce); err != nil {
		return nil, err
	}
	if _, err := conn.Write(append(hello, nonce...)); err != nil {
		return nil, err
	}
	answer := make([]byte, helloLen)
	if _, err := io.ReadFull(conn, answer); err != nil {
		return nil, err
	}
	if string(answer[:len(magic)]) != magic {
		return nil, ErrStranger
	}
	if v := binary.BigEndian.Uint16(answer[len(magic):]); v != Version {
		return nil, fmt.Errorf("%w: %d there, %d here", ErrVersion, v, Version)
	}
	nonces := map[role][]byte{r: nonce, r.other(): answer[len(magic)+2:]}
	code := func(from role) hash.Hash {
		h := hmac.New(sha256.New, key)
		h.Write([]byte(from))
		h.Write(nonces[successor])
		h.Write(nonces[predecessor])
		return hmac.New(sha256.New, h.Sum(nil))
	}
	return &wire{conn: conn, ours: code(r), theirs: code(r.other())}, nil
}

// sameUser returns an error if the process at the other end is not of our user.
func sameUser(conn net.Conn) error {
	c, ok := conn.(*net.UnixConn)
	if !ok {
		return fmt.Errorf("%T is no unix connection", conn)
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) { cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return err
	}
	if credErr != nil {
		return fmt.Errorf("read the credentials of the other end: %w", credErr)
	}
	if own := uint32(os.Geteuid()); cred.Uid != own {
		return fmt.Errorf("%w: it is user %d, and this process is user %d", ErrStranger, cred.Uid, own)
	}
	return nil
}

// codeOf appends the code of a frame, with its number, so that none can be left out.
func codeOf(h hash.Hash, number uint64, frame, dst []byte) []byte {
	h.Reset()
	h.Write(binary.BigEndian.AppendUint64(nil, number))
	h.Write(frame)
	return h.Sum(dst)
}

// write sends a frame.
func (w *wire) write(k kind, content []byte) error {
	if len(content) > MaxContent {
		return fmt.Errorf("a frame of %d bytes is larger than %d", len(content), MaxContent)
	}
	w.out = binary.BigEndian.AppendUint32(append(w.out[:0], byte(k)), uint32(len(content)))
	w.out = append(w.out, content...)
	n := len(w.out)
	w.out = codeOf(w.ours, w.sent, w.out[:n], w.out)[:n+codeLen]
	w.sent++
	_, err := w.conn.Write(w.out)
	return err
}

func (w *wire) writeJSON(k kind, content any) error {
	text, err := json.Marshal(content)
	if err != nil {
		return err
	}
	return w.write(k, text)
}

// read returns the next frame. Its content is valid until the next call.
func (w *wire) read(limit uint32) (kind, []byte, error) {
	w.buf = resized(w.buf, headLen)
	if _, err := io.ReadFull(w.conn, w.buf); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(w.buf[1:])
	if n > limit {
		return 0, nil, fmt.Errorf("%w: %d bytes", errFrame, n)
	}
	w.buf = resized(w.buf, headLen+int(n)+codeLen)
	if _, err := io.ReadFull(w.conn, w.buf[headLen:]); err != nil {
		return 0, nil, err
	}
	frame := w.buf[:headLen+n]
	var code [sha256.Size]byte
	if !hmac.Equal(codeOf(w.theirs, w.received, frame, code[:0])[:codeLen], w.buf[headLen+n:]) {
		return 0, nil, ErrStranger
	}
	w.received++
	return kind(frame[0]), frame[headLen:], nil
}

// resized returns a buffer of n bytes that begins with the bytes of b.
func resized(b []byte, n int) []byte {
	if cap(b) >= n {
		return b[:n]
	}
	return append(make([]byte, 0, n), b...)[:n]
}
