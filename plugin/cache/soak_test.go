package cache

import (
	"fmt"
)

var errTest = fmt.Errorf("upstream is broken")
