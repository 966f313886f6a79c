package names

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The file is text:
//
//	trackless names 1
//	block "dns://.:53 169.254.20.10"
//	494521 1 - www.example.org.
//	sum 2c26b46b68ffc68f...
//
// A line with a block is for the names below it. A name has the hour of its last use, its
// type, its flags and its text. The last line is the SHA-256 of those above.
const (
	magic   = "trackless names "
	version = "1"
	// maxFile is the largest file in bytes. Names of common length take less than a
	// tenth of it.
	maxFile = 512 << 10
	// maxText is the length of the longest name: 255 bytes, each escaped as \DDD.
	maxText = 4 * 255
)

var (
	errForeign = errors.New("it is no file of names; remove it, or name another file in `warm`")
	errDamaged = errors.New("it is damaged")
)

// encode returns the content of a file. Names that make it too large are left out.
func encode(names []used) []byte {
	b := []byte(magic + version + "\n")
	block := ""
	for i, u := range names {
		n := len(b)
		if i == 0 || u.Block != block {
			block = u.Block
			b = fmt.Appendf(b, "block %q\n", block)
		}
		b = fmt.Appendf(b, "%d %d %s %s\n", u.hour, u.Type, flagsOf(u.Name), u.Text)
		if len(b) > maxFile-len("sum \n")-2*sha256.Size {
			b = b[:n]
			break
		}
	}
	return sign(b)
}

// sign appends the last line.
func sign(b []byte) []byte { return fmt.Appendf(b, "sum %x\n", sha256.Sum256(b)) }

func flagsOf(n Name) string {
	switch {
	case n.DO && n.CD:
		return "do,cd"
	case n.DO:
		return "do"
	case n.CD:
		return "cd"
	}
	return "-"
}

// decode reads the content of a file.
func decode(content []byte) ([]used, error) {
	if len(content) == 0 {
		return nil, errDamaged // a node that lost power
	}
	body, ok := bytes.CutPrefix(content, []byte(magic))
	if !ok {
		return nil, errForeign
	}
	head, _, _ := bytes.Cut(body, []byte("\n"))
	if string(head) != version {
		return nil, fmt.Errorf("it is of another version: %.10q, and this one reads %s", head, version)
	}
	at := bytes.LastIndex(content, []byte("\nsum "))
	if at < 0 || !bytes.Equal(sign(content[:at+1:at+1]), content) {
		return nil, errDamaged
	}
	lines := strings.Split(string(content[:at]), "\n")[1:]
	var names []used
	block := ""
	for _, line := range lines {
		if quoted, ok := strings.CutPrefix(line, "block "); ok {
			var err error
			if block, err = strconv.Unquote(quoted); err != nil {
				return nil, errDamaged
			}
			continue
		}
		u, err := parse(line)
		if err != nil || len(names) == Most {
			return nil, errDamaged
		}
		u.Block = block
		names = append(names, u)
	}
	return names, nil
}

// parse reads a line with a name.
func parse(line string) (u used, err error) {
	// A name can have spaces, and is last.
	fields := strings.SplitN(line, " ", 4)
	if len(fields) != 4 || fields[3] == "" || len(fields[3]) > maxText {
		return u, errDamaged
	}
	if u.hour, err = strconv.ParseInt(fields[0], 10, 64); err != nil {
		return u, err
	}
	qtype, err := strconv.ParseUint(fields[1], 10, 16)
	if err != nil {
		return u, err
	}
	u.Type, u.Text = uint16(qtype), fields[3]
	u.DO, u.CD = strings.HasPrefix(fields[2], "do"), strings.HasSuffix(fields[2], "cd")
	if fields[2] != flagsOf(u.Name) {
		return u, errDamaged
	}
	return u, nil
}

// read returns the names of a file, and its content. A file that does not exist has none.
func read(path string) (names []used, content []byte, err error) {
	// Not to wait for the other end, if it is a pipe.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, nil, fmt.Errorf("%s: %w", path, errForeign)
	}
	content, err = io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(content) > maxFile {
		err = fmt.Errorf("%w: it has more than %d bytes", errForeign, maxFile)
	}
	if err == nil {
		names, err = decode(content)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", path, err)
	}
	return names, content, nil
}

// staleAfter is after which time a file that is being written belongs to a dead process.
const staleAfter = time.Minute

// save writes the names in use, and those of the file that were used within a day. It writes
// nothing if the file has just these, or if another instance writes it.
func save(path string, current []Name, now time.Time) error {
	next := func() ([]byte, error) {
		file, content, err := read(path)
		// What we did not write, we do not replace. A file of ours that cannot be read
		// is of no use to anybody.
		if errors.Is(err, errForeign) || err != nil && !isContent(err) {
			return nil, err
		}
		merged := merge(current, file, now)
		if len(merged) == 0 {
			return nil, nil
		}
		if b := encode(merged); !bytes.Equal(b, content) {
			return b, nil
		}
		return nil, nil
	}
	content, err := next()
	if content == nil {
		return err
	}
	f, err := create(path + ".new")
	if f == nil {
		return err
	}
	// Another instance may have written since.
	content, err = next()
	if err == nil && content != nil {
		_, err = f.Write(content)
	}
	if err == nil && content != nil {
		// The rename may reach the disk before the content, and the node may lose power.
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil && content != nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil || content == nil {
		_ = os.Remove(f.Name())
	}
	return err
}

// isContent reports whether a file was read, and its content is of no use.
func isContent(err error) bool {
	var failed *os.PathError
	return !errors.As(err, &failed)
}

// create makes the file that is to replace the file of names. It returns nil if another
// instance writes now.
func create(path string) (*os.File, error) {
	// 0600: names that pods ask are nobody else's business.
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if !errors.Is(err, os.ErrExist) {
		return f, err
	}
	if info, err := os.Lstat(path); err != nil || time.Since(info.ModTime()).Abs() < staleAfter {
		return nil, nil //nolint:nilerr,nilnil // it is gone: the other instance is ready
	}
	if err := os.Remove(path); err != nil {
		return nil, err
	}
	return os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
}
