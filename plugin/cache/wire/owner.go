package wire

// Owns reports whether match returns true for the owner name of a record in the answer or
// additional section. question is the name of the answer's key. match gets names in wire
// format and lower case, and must not keep them.
//
// The authority section is left out: its records describe the zone, and do not answer
// questions.
func (a *Answer) Owns(question []byte, match func(owner []byte) bool) bool {
	var buf [MaxName]byte
	off := 0
	for section, n := range a.Counts {
		for range n {
			owner, ok := expandName(buf[:0], a.Body, off, question)
			if !ok {
				return false
			}
			if section != authority && match(owner) {
				return true
			}
			if off, ok = skipRecord(a.Body, off); !ok {
				return false
			}
		}
	}
	return false
}

// authority is the index of that section in Counts.
const authority = 1

// skipRecord returns the offset after the record at off.
func skipRecord(body []byte, off int) (int, bool) {
	off, err := skipName(body, off)
	if err != nil || off+fixedLen-2 > len(body) {
		return 0, false
	}
	off += fixedLen - 2 + int(be16(body[off+fixedLen-4:]))
	return off, off <= len(body)
}

// expandName appends the name at off of a body, without compression (RFC 1035
// section 4.1.4) and in lower case.
func expandName(dst, body []byte, off int, question []byte) ([]byte, bool) {
	from := body
	base := headerLen + len(question) + 4 // offset of the body in the message
	// A valid name has fewer labels and pointers than MaxName. The limit ends a loop of
	// pointers.
	for range MaxName {
		if off >= len(from) {
			return nil, false
		}
		n := int(from[off])
		switch {
		case n == 0:
			return append(dst, 0), len(dst) < MaxName
		case n <= maxLabel:
			if off+1+n > len(from) || len(dst)+1+n >= MaxName {
				return nil, false
			}
			dst = append(dst, from[off])
			for _, c := range from[off+1 : off+1+n] {
				dst = append(dst, lower(c))
			}
			off += 1 + n
		case n < 0xc0 || off+1 >= len(from):
			return nil, false
		default:
			to := int(be16(from[off:]) & 0x3fff)
			if from, off = body, to-base; to < base {
				from, off = question, to-headerLen
			}
			if off < 0 {
				return nil, false
			}
		}
	}
	return nil, false
}
