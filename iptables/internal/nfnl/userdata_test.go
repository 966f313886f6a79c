package nfnl

import (
	"bytes"
	"slices"
	"testing"

	"github.com/google/nftables/userdata"
)

// TestUserdata: the user data of other programs can be anything.
func TestUserdata(t *testing.T) {
	ours := userdata.Append(userdata.AppendString(nil, TableComment, "text"), TableKey, []byte("secret"))
	for name, row := range map[string]struct {
		data         []byte
		comment, key string
	}{
		"none":             {nil, "", ""},
		"ours":             {ours, "text", "secret"},
		"unknown first":    {slices.Concat([]byte{200, 1, 9}, ours), "text", "secret"},
		"one byte":         {[]byte{TableKey}, "", ""},
		"too short":        {[]byte{TableKey, 32, 1, 2}, "", ""},
		"cut":              {ours[:len(ours)-1], "text", ""},
		"text, no types":   {[]byte("This table belongs to another program."), "", ""},
		"empty comment":    {[]byte{byte(TableComment), 0}, "", ""},
		"without an end":   {[]byte{byte(TableComment), 2, 'h', 'i'}, "hi", ""},
		"the longest once": {slices.Concat([]byte{TableKey, 255}, bytes.Repeat([]byte("k"), 255)), "", string(bytes.Repeat([]byte("k"), 255))},
	} {
		data := slices.Clip(row.data)
		if comment, _ := UserdataString(data, TableComment); comment != row.comment {
			t.Errorf("%s: comment %q, want %q", name, comment, row.comment)
		}
		if key := Userdata(data, TableKey); string(key) != row.key {
			t.Errorf("%s: key %q, want %q", name, key, row.key)
		}
	}
}
