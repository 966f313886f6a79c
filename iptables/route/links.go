package route

import (
	"fmt"
	"slices"

	"github.com/jsimonetti/rtnetlink/v2"
)

// Links returns the links of this network namespace that have attributes.
func Links() ([]rtnetlink.LinkMessage, error) {
	conn, err := rtnetlink.Dial(nil)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	defer conn.Close()
	links, err := conn.Link.List()
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	return slices.DeleteFunc(links, func(l rtnetlink.LinkMessage) bool { return l.Attributes == nil }), nil
}
