package top

import (
	"bytes"
	"unicode/utf8"
)

// Keys that are no letters.
const (
	keyEnter     = "enter"
	keyEscape    = "esc"
	keyInterrupt = "ctrl+c"
	keyBackspace = "backspace"
	keyTab       = "tab"
	keyShiftTab  = "shift+tab"
	keyUp        = "up"
	keyDown      = "down"
	keyLeft      = "left"
	keyRight     = "right"
	keyPageUp    = "pgup"
	keyPageDown  = "pgdown"
	keyHome      = "home"
)

const escape = 0x1b

// controls are the keys that a terminal sends as one byte.
var controls = map[byte]string{
	0x03: keyInterrupt, '\b': keyBackspace, 0x7f: keyBackspace, '\t': keyTab, '\r': keyEnter, '\n': keyEnter,
}

// sequences are what terminals send after ESC for keys of a PC keyboard, in both modes of the
// cursor keys (XTerm Control Sequences, "PC-Style Function Keys").
var sequences = map[string]string{
	"[A": keyUp, "[B": keyDown, "[C": keyRight, "[D": keyLeft, "[H": keyHome, "[1~": keyHome,
	"OA": keyUp, "OB": keyDown, "OC": keyRight, "OD": keyLeft, "OH": keyHome,
	"[5~": keyPageUp, "[6~": keyPageDown, "[Z": keyShiftTab,
}

// keysOf returns the keys in the input of a terminal, and the rest, which is the beginning of
// a key. With final nothing more comes soon: ESC is the key of that name then.
func keysOf(input []byte, final bool) (keys []string, rest []byte) {
	for len(input) > 0 {
		key, n := firstKey(input, final)
		if n == 0 {
			return keys, input
		}
		if key != "" {
			keys = append(keys, key)
		}
		input = input[n:]
	}
	return keys, nil
}

// firstKey returns the first key, "" for one without a meaning here, and its length: 0 where
// more bytes must come first.
func firstKey(input []byte, final bool) (key string, length int) {
	first := input[0]
	switch {
	case first == escape:
		return firstSequence(input, final)
	case first < ' ' || first == 0x7f:
		return controls[first], 1
	case !utf8.FullRune(input) && !final:
		return "", 0
	}
	r, n := utf8.DecodeRune(input)
	if r == utf8.RuneError {
		return "", n
	}
	return string(r), n
}

func firstSequence(input []byte, final bool) (key string, length int) {
	switch {
	case len(input) == 1 && final:
		return keyEscape, 1
	case len(input) == 1:
		return "", 0
	case input[1] != '[' && input[1] != 'O':
		return keyEscape, 1
	}
	// The final byte of a control sequence (ECMA-48, section 5.4).
	end := bytes.IndexFunc(input[2:], func(r rune) bool { return r >= '@' && r <= '~' })
	switch {
	case end < 0 && final:
		return "", len(input)
	case end < 0:
		return "", 0
	}
	return sequences[string(input[1:2+end+1])], 2 + end + 1
}
