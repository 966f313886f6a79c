// Package privilege says what a refused call would have needed.
package privilege

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Explain adds to a permission error what would have been needed.
func Explain(err error) error {
	if errors.Is(err, unix.EPERM) || errors.Is(err, os.ErrPermission) {
		return fmt.Errorf("%w (needs root: CAP_SYS_ADMIN and CAP_NET_ADMIN)", err)
	}
	return err
}
