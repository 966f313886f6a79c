// Looks up names with Go's own resolver, and prints their addresses.
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
)

func main() {
	resolver := net.Resolver{PreferGo: true}
	for _, name := range os.Args[1:] {
		fmt.Print(name)
		addresses, err := resolver.LookupNetIP(context.Background(), "ip", name)
		var failure *net.DNSError
		switch {
		case errors.As(err, &failure) && failure.IsNotFound:
			fmt.Print(" none")
		case err != nil:
			fmt.Print(" error:", err)
		}
		for _, a := range addresses {
			fmt.Print(" ", a.Unmap())
		}
		fmt.Println()
	}
}
