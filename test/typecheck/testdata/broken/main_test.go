package main

import "testing"

func TestMissing(*testing.T) {
	missing()
}
