package nfnl

import "github.com/google/nftables/userdata"

// Userdata returns the value of a type in the user data of a table or a rule; nil: there is
// none. The kernel does not look at user data, so any bytes may stand there: other programs
// write what they like. The library of nftables trusts the lengths in them.
func Userdata(data []byte, of userdata.Type) []byte {
	for len(data) >= 2 {
		end := 2 + int(data[1])
		if end > len(data) {
			return nil
		}
		if userdata.Type(data[0]) == of {
			return data[2:end:end]
		}
		data = data[end:]
	}
	return nil
}

// UserdataString returns a value of user data that is text. ok is false if there is none.
func UserdataString(data []byte, of userdata.Type) (text string, ok bool) {
	value := Userdata(data, of)
	return cString(value), value != nil
}
