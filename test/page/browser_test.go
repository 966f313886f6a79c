//go:build load

// Package page opens the pages of `trackless compare` in a browser.
package page

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// browser is a headless Chromium that is told what to do over a pipe, in the
// DevTools protocol (chromedevtools.github.io/devtools-protocol): messages of
// JSON that end with a zero byte, on file descriptors 3 and 4 of the browser.
type browser struct {
	t  testing.TB
	to io.Writer

	mu      sync.Mutex
	last    int
	waiting map[int]chan answer
	events  []event
	arrived *sync.Cond
	gone    error
}

type answer struct {
	result json.RawMessage
	err    error
}

type event struct {
	Method  string
	Params  json.RawMessage
	Session string
}

// patience bounds every step; a busy machine needs seconds for some.
const patience = 60 * time.Second

// startBrowser starts a browser without a profile, which ends with the test.
func startBrowser(t testing.TB) *browser {
	t.Helper()
	if testing.Short() {
		t.Skip("a browser is started without -short only")
	}
	program, err := exec.LookPath("chromium")
	if err != nil {
		if os.Getenv("TRACKLESS_REQUIRE_CHROMIUM") == "1" {
			t.Fatal("chromium is not installed, and TRACKLESS_REQUIRE_CHROMIUM=1")
		}
		t.Skip("chromium is not installed; `make test-page` installs it")
	}
	commandsIn, commands, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	messages, messagesOut, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	// Not t.TempDir: some helper of the browser may write there when the browser
	// itself has ended.
	profile, err := os.MkdirTemp("", "trackless-page-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for end := time.Now().Add(patience); os.RemoveAll(profile) != nil && time.Now().Before(end); {
			time.Sleep(10 * time.Millisecond)
		}
	})
	cmd := exec.Command(program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
		"--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
		"--remote-debugging-pipe", "--user-data-dir="+profile, "about:blank")
	cmd.ExtraFiles = []*os.File{commandsIn, messagesOut}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = commandsIn.Close()
	_ = messagesOut.Close()
	b := &browser{t: t, to: commands, waiting: map[int]chan answer{}}
	b.arrived = sync.NewCond(&b.mu)
	read := make(chan struct{})
	go func() {
		defer close(read)
		b.read(messages)
	}()
	t.Cleanup(func() {
		// It ends when the pipe does.
		_ = commands.Close()
		ended := make(chan struct{})
		go func() {
			_ = cmd.Wait()
			close(ended)
		}()
		select {
		case <-ended:
		case <-time.After(patience):
			_ = cmd.Process.Kill()
			<-ended
		}
		_ = messages.Close()
		<-read
	})
	return b
}

func (b *browser) read(from io.Reader) {
	r := bufio.NewReader(from)
	for {
		text, err := r.ReadBytes(0)
		if err != nil {
			b.mu.Lock()
			b.gone = fmt.Errorf("the browser is gone: %w", err)
			for id, ch := range b.waiting {
				ch <- answer{err: b.gone}
				delete(b.waiting, id)
			}
			b.arrived.Broadcast()
			b.mu.Unlock()
			return
		}
		var m struct {
			ID        int
			Result    json.RawMessage
			Error     *struct{ Message string }
			Method    string
			Params    json.RawMessage
			SessionID string `json:"sessionId"`
		}
		if json.Unmarshal(text[:len(text)-1], &m) != nil {
			continue
		}
		b.mu.Lock()
		if m.Method != "" {
			b.events = append(b.events, event{m.Method, m.Params, m.SessionID})
			b.arrived.Broadcast()
		} else if ch := b.waiting[m.ID]; ch != nil {
			a := answer{result: m.Result}
			if m.Error != nil {
				a.err = fmt.Errorf("%s", m.Error.Message)
			}
			ch <- a
			delete(b.waiting, m.ID)
		}
		b.mu.Unlock()
	}
}

// call makes one call and decodes its result into out, unless that is nil.
func (b *browser) call(session, method string, params map[string]any, out any) {
	b.t.Helper()
	b.mu.Lock()
	b.last++
	id, ch := b.last, make(chan answer, 1)
	b.waiting[id] = ch
	gone := b.gone
	b.mu.Unlock()
	if gone != nil {
		b.t.Fatalf("%s: %v", method, gone)
	}
	message := map[string]any{"id": id, "method": method}
	if params != nil {
		message["params"] = params
	}
	if session != "" {
		message["sessionId"] = session
	}
	text, err := json.Marshal(message)
	if err != nil {
		b.t.Fatal(err)
	}
	if _, err := b.to.Write(append(text, 0)); err != nil {
		b.t.Fatalf("%s: %v", method, err)
	}
	select {
	case a := <-ch:
		if a.err != nil {
			b.t.Fatalf("%s: %v", method, a.err)
		}
		if out != nil {
			if err := json.Unmarshal(a.result, out); err != nil {
				b.t.Fatalf("%s: %v", method, err)
			}
		}
	case <-time.After(patience):
		b.t.Fatalf("%s: no answer in %s", method, patience)
	}
}

// tab is one page.
type tab struct {
	*browser
	session string
}

// open opens an empty page that reports what goes wrong in it.
func (b *browser) open() *tab {
	b.t.Helper()
	var target struct{ TargetID string }
	b.call("", "Target.createTarget", map[string]any{"url": "about:blank"}, &target)
	var attached struct{ SessionID string }
	b.call("", "Target.attachToTarget", map[string]any{"targetId": target.TargetID, "flatten": true}, &attached)
	t := &tab{b, attached.SessionID}
	for _, domain := range []string{"Page", "Runtime", "Log", "Network"} {
		t.call(t.session, domain+".enable", nil, nil)
	}
	return t
}

// do makes a call in the page.
func (t *tab) do(method string, params map[string]any, out any) {
	t.t.Helper()
	t.call(t.session, method, params, out)
}

// load opens a file and waits until it is there.
func (t *tab) load(path string) {
	t.t.Helper()
	t.mu.Lock()
	from := len(t.events)
	t.mu.Unlock()
	var result struct{ ErrorText string }
	t.do("Page.navigate", map[string]any{"url": "file://" + path}, &result)
	if result.ErrorText != "" {
		t.t.Fatalf("open %s: %s", path, result.ErrorText)
	}
	timer := time.AfterFunc(patience, t.arrived.Broadcast)
	defer timer.Stop()
	deadline := time.Now().Add(patience)
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := from; ; i++ {
		for i >= len(t.events) {
			if t.gone != nil || time.Now().After(deadline) {
				t.t.Fatalf("%s was not loaded in %s (%v)", path, patience, t.gone)
			}
			t.arrived.Wait()
		}
		if t.events[i].Session == t.session && t.events[i].Method == "Page.loadEventFired" {
			return
		}
	}
}

// screen sets the size of the window and the colour scheme.
func (t *tab) screen(width, height int, scheme string) {
	t.t.Helper()
	t.do("Emulation.setDeviceMetricsOverride", map[string]any{"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}, nil)
	t.do("Emulation.setEmulatedMedia", map[string]any{
		"media": "", "features": []map[string]string{{"name": "prefers-color-scheme", "value": scheme}},
	}, nil)
}

// eval evaluates an expression in the page and decodes its value.
func (t *tab) eval(expression string, out any) {
	t.t.Helper()
	var result struct {
		Result           struct{ Value json.RawMessage }
		ExceptionDetails *struct {
			Text      string
			Exception struct{ Description string }
		}
	}
	t.do("Runtime.evaluate", map[string]any{"expression": expression, "returnByValue": true}, &result)
	if e := result.ExceptionDetails; e != nil {
		t.t.Fatalf("%s: %s", e.Text, e.Exception.Description)
	}
	if err := json.Unmarshal(result.Result.Value, out); err != nil {
		t.t.Fatalf("%v in %s", err, result.Result.Value)
	}
}

// complaints are what the page wrote to the console, and what it asked of
// anybody else.
func (t *tab) complaints() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var list []string
	for _, e := range t.events {
		if e.Session != t.session {
			continue
		}
		switch e.Method {
		case "Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded":
			list = append(list, e.Method+": "+string(e.Params))
		case "Network.requestWillBeSent":
			var p struct{ Request struct{ URL string } }
			if json.Unmarshal(e.Params, &p) != nil || !strings.HasPrefix(p.Request.URL, "file:") && !strings.HasPrefix(p.Request.URL, "data:") {
				list = append(list, "a request for "+p.Request.URL)
			}
		}
	}
	return list
}

// screenshot writes the whole page as it is now, if TRACKLESS_SCREENSHOTS names
// a directory.
func (t *tab) screenshot(name string) {
	t.t.Helper()
	dir := os.Getenv("TRACKLESS_SCREENSHOTS")
	if dir == "" {
		return
	}
	var shot struct{ Data []byte }
	t.do("Page.captureScreenshot", map[string]any{"captureBeyondViewport": true}, &shot)
	if err := os.WriteFile(filepath.Join(dir, name+".png"), shot.Data, 0o644); err != nil {
		t.t.Fatal(err)
	}
}
