// Package early answers kubelet's exec probes before the rest of the program is
// there.
//
// A probe asks its instance for one line. To initialise the packages of CoreDNS takes
// ten times as long as that, all of it in the pod's control group. Go initialises
// packages in the order of their import paths, each as soon as those that it imports
// are ready (Go specification, "Program initialization"). This one imports syscall and
// what that imports itself, so that its turn comes before nearly all others, and ends
// the process once the instance has said that all is well. Whatever else happens is
// left to the verb `probe`, which does the same and explains more.
package early

import (
	"errors"
	"syscall"
)

const (
	// Name is the default of --name: it is answered in every cluster that has the
	// usual domain; where it has another, the answer is that there is no such name.
	Name = "kubernetes.default.svc.cluster.local."

	// Directory is the folder of control.DefaultPath.
	Directory = "/run/trackless/"
	// File is the rest of it.
	File = "control.sock"

	// patience is the default of --timeout in seconds.
	patience = 4
)

// Request is what the instance is asked for a command line, "" for one that is not
// answered here: that is for those of the manifests.
func Request(args ...string) string {
	line := ""
	for _, arg := range args {
		line += arg + "\x00"
	}
	return request(line)
}

// request takes the arguments as /proc/self/cmdline has them.
func request(args string) string {
	switch args {
	case "probe\x00live\x00":
		return "live"
	case "probe\x00ready\x00", "probe\x00ready\x00--wait\x00--timeout\x0015s\x00":
		return "ready?name=" + Name
	}
	return ""
}

func init() {
	_, args, _ := cut(read("/proc/self/cmdline"), "\x00")
	question := request(args)
	if question == "" {
		return
	}
	verb, _, _ := cut(question, "?")
	answer, err := ask(question)
	_, _, waits := cut(args, "--wait")
	if errors.Is(err, syscall.EAGAIN) && !waits { // it hangs, and has no answer for the verb either
		write(2, "trackless: not "+verb+": control socket "+Directory+File+": no answer within 4s\n")
		syscall.Exit(1)
	}
	if detail, ok := well(answer); ok {
		write(1, verb+": "+detail+"\n")
		syscall.Exit(0)
	}
}

// ask makes a request over the control socket and returns the body of the answer.
func ask(question string) (string, error) {
	if others, err := hasOthers(); err != nil || others {
		return "", err
	}
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer syscall.Close(fd)
	for _, option := range []int{syscall.SO_RCVTIMEO, syscall.SO_SNDTIMEO} {
		if err := syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, option, &syscall.Timeval{Sec: patience}); err != nil {
			return "", err
		}
	}
	if err := syscall.Connect(fd, &syscall.SockaddrUnix{Name: Directory + File}); err != nil {
		return "", err
	}
	// HTTP/1.0: the answer is in one piece, and ends with the connection.
	write(fd, "GET /v1/"+question+" HTTP/1.0\r\n\r\n")
	answer, err := readAll(fd)
	_, body, _ := cut(answer, "\r\n\r\n")
	return body, err
}

// hasOthers reports whether there are sockets beside ours: which of several is meant
// takes a closer look.
func hasOthers() (bool, error) {
	fd, err := syscall.Open(Directory, syscall.O_RDONLY|syscall.O_DIRECTORY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return false, err
	}
	defer syscall.Close(fd)
	buffer := make([]byte, 4096)
	for {
		n, err := syscall.ReadDirent(fd, buffer)
		if err != nil || n <= 0 {
			return false, err
		}
		_, _, names := syscall.ParseDirent(buffer[:n], -1, nil)
		for _, name := range names {
			if _, end, found := cut(name, ".sock"); found && end == "" && name != File {
				return true, nil
			}
		}
	}
}

// well returns what a control.Health says in its JSON form if it is a good one of
// the instance in our own container.
func well(answer string) (detail string, ok bool) {
	_, rest, good := cut(answer, `{"ok":true,"detail":"`)
	detail, process, whole := cut(rest, `","process":`)
	_, _, escaped := cut(detail, `\`)
	_, _, own := cut(process, `"pid_namespace":`+namespace("pid")+`,"net_namespace":`+namespace("net")+`}`)
	return detail, good && whole && own && !escaped
}

// namespace is the inode of ours of the kind, "" if that cannot be read.
func namespace(kind string) string {
	buffer := make([]byte, 64)
	n, err := syscall.Readlink("/proc/self/ns/"+kind, buffer)
	if err != nil {
		return ""
	}
	_, inode, _ := cut(string(buffer[:n]), "[")
	inode, _, _ = cut(inode, "]")
	return inode
}

// cut is strings.Cut.
func cut(s, sep string) (before, after string, found bool) {
	for i := range len(s) - len(sep) + 1 {
		if s[i:i+len(sep)] == sep {
			return s[:i], s[i+len(sep):], true
		}
	}
	return s, "", false
}

// read returns the contents of a file, "" if it cannot be read.
func read(path string) string {
	fd, err := syscall.Open(path, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return ""
	}
	defer syscall.Close(fd)
	contents, _ := readAll(fd)
	return contents
}

// maxRead bounds what is read of anything.
const maxRead = 64 << 10

func readAll(fd int) (string, error) {
	var all []byte
	buffer := make([]byte, 4096)
	for len(all) < maxRead {
		n, err := syscall.Read(fd, buffer)
		switch {
		case errors.Is(err, syscall.EINTR):
			continue
		case err != nil || n == 0:
			return string(all), err
		}
		all = append(all, buffer[:n]...)
	}
	return string(all), nil
}

// write writes a text, which fits into any buffer.
func write(fd int, text string) { _, _ = syscall.Write(fd, []byte(text)) }
