//go:build privileged

package control

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/internal/testgolden"
	"github.com/trackless-dns/trackless/internal/testns"
)

// TestWhoAsksAtAnAbstractName: processes of the same container may ask, and those that
// can change rules anyway. testdata/refused.txt has the errors of the others.
func TestWhoAsksAtAnAbstractName(t *testing.T) {
	testns.Root(t)
	for _, name := range []string{"setpriv", "unshare"} {
		testns.Program(t, name)
	}
	const fewer = "-all"
	noCapabilities := []string{"setpriv", "--bounding-set", fewer, "--inh-caps", fewer}
	var refused strings.Builder
	pid := regexp.MustCompile(`process \d+`)
	for _, tc := range []struct {
		name    string
		as      []string
		refused bool
	}{
		{"root of the host", nil, false},
		{"the same container, without capabilities", noCapabilities, false},
		{"another container with CAP_NET_ADMIN", []string{"unshare", "--mount"}, false},
		{"another container without capabilities", append([]string{"unshare", "--mount"}, noCapabilities...), true},
		{"all capabilities, of a user namespace of its own", []string{"unshare", "--user", "--map-root-user"}, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			instance := &fake{state: "attached"}
			s := serve(t, fmt.Sprintf("@trackless-test/%d", time.Now().UnixNano()), instance)
			args := append(slices.Clone(tc.as), os.Args[0])
			cmd := exec.Command(args[0], args[1:]...)
			cmd.Env = append(os.Environ(), askVar+"="+s.Addr())
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			var f failure
			if err := json.Unmarshal(out, &f); err != nil || (f.Error != "") != tc.refused {
				t.Errorf("%s, error %v, want refused %t", out, err, tc.refused)
			}
			want := "detached"
			if tc.refused {
				want = "attached"
				fmt.Fprintf(&refused, "%s:\n%s\n", tc.name, pid.ReplaceAllString(f.Error, "process PID"))
			}
			if got := instance.Status().State; got != want {
				t.Errorf("the instance is %s, want %s", got, want)
			}
		})
	}
	testgolden.Compare(t, "refused.txt", refused.String())
}

func TestAnInstanceInAContainerIsReachedFromTheHost(t *testing.T) {
	testns.Root(t)
	testns.Program(t, "unshare")
	dir := t.TempDir()
	path := filepath.Join(dir, "control.sock")
	// A file system of its own covers the directory, which stays empty on the host.
	child := exec.Command("unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c",
		`mount -t tmpfs none "$1" && exec "$2"`, "sh", dir, os.Args[0])
	child.Env = append(os.Environ(), helperVar+"="+path)
	child.Stderr = os.Stderr
	stdin, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stdin.Close()
		if err := child.Wait(); err != nil {
			t.Error(err)
		}
	})
	if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil || strings.TrimSpace(line) != path {
		t.Fatalf("it listens on %q, error %v", line, err)
	}
	if _, err := os.Lstat(path); err == nil {
		t.Fatal("the socket is in our own file system")
	}
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", child.Process.Pid))
	if err != nil {
		testns.Skip(t, "/proc/PID/task/TID/children")
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(children)))
	if err != nil {
		t.Fatal(err)
	}
	found := sockets(t.TempDir(), []int{pid})
	want := fmt.Sprintf("/proc/%d/root%s", pid, path)
	if !slices.Contains(found, want) {
		t.Fatalf("%s is not among %v", want, found)
	}
	c := NewClient(want)
	status, err := c.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if status.Process.PID != 1 || status.Process.PIDNamespace == Self().PIDNamespace || c.PID() != pid {
		t.Errorf("process %+v, seen from here %d, want %d", status.Process, c.PID(), pid)
	}
}

// asUser runs f on a thread of another user.
func asUser(t *testing.T, uid uintptr, f func()) {
	t.Helper()
	testns.Root(t)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	same := ^uintptr(0)
	// The raw call changes this thread alone.
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, same, uid, same); errno != 0 {
		t.Fatal(errno)
	}
	defer func() {
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, same, 0, same); errno != 0 {
			panic(errno)
		}
	}()
	f()
}

func TestOtherUsersAreRefused(t *testing.T) {
	const nobody = 65534
	instance := &fake{state: "attached"}
	s := serve(t, "@trackless-test/"+t.Name()+time.Now().String(), instance)
	var conn net.Conn
	var err error
	asUser(t, nobody, func() { conn, err = net.Dial("unix", s.Addr()) })
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	req, err := http.NewRequest(http.MethodPost, "http://trackless/v1/detach", nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := req.Write(conn); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var f failure
	if err := json.NewDecoder(resp.Body).Decode(&f); err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusForbidden || !strings.Contains(f.Error, strconv.Itoa(nobody)) {
		t.Errorf("%s: %s", resp.Status, f.Error)
	}
	if instance.Status().State != "attached" {
		t.Error("the request was carried out")
	}

	var stranger *net.UnixListener
	asUser(t, nobody, func() { stranger, err = bind("@trackless-test/stranger" + time.Now().String()) })
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	if _, err := NewClient(stranger.Addr().String()).Status(t.Context()); !errors.Is(err, errStranger) {
		t.Errorf("a stranger's socket is asked: error %v", err)
	}
}
