package lab

import (
	"testing"

	"github.com/trackless-dns/trackless/internal/testns"
)

func TestMain(m *testing.M) { testns.Main(m) }
