// Command client is what runs in the pods of the e2e cluster: it waits, asks
// names, keeps asking while something is broken, and fetches a page. It is
// also the pause program of the pod sandboxes.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	if len(os.Args) < 2 {
		pause()
		return
	}
	if err := run(os.Args[1], os.Args[2:]); err != nil {
		fmt.Fprintf(os.Stderr, "client: %v\n", err)
		os.Exit(1)
	}
}

func run(verb string, args []string) error {
	switch verb {
	case "ask":
		return ask(args)
	case "load":
		return load(args)
	case "get":
		return get(args)
	}
	return fmt.Errorf("unknown verb %q: ask, load or get", verb)
}

// pause waits for the end, and reaps what was left to it, as the first process
// of a pod does.
func pause() {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	child := make(chan os.Signal, 1)
	signal.Notify(child, syscall.SIGCHLD)
	for {
		select {
		case <-stop:
			return
		case <-child:
			for {
				if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); pid <= 0 || err != nil {
					break
				}
			}
		}
	}
}

// get prints a page.
func get(args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("get URL")
	}
	c := http.Client{Timeout: 10 * time.Second}
	resp, err := c.Get(args[0])
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", args[0], resp.Status)
	}
	_, err = io.Copy(os.Stdout, resp.Body)
	return err
}

func printJSON(v any) error { return json.NewEncoder(os.Stdout).Encode(v) }
