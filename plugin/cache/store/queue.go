package store

// queue is a list of records, newest first. The links are in the records.
type queue struct {
	newest, oldest uint32 // offsets
	count          int
	bytes          uint32
}

func (q *queue) reset() { *q = queue{newest: none, oldest: none} }

func (q *queue) push(mem []byte, off uint32) {
	r := recordAt(mem, off)
	r.newer, r.older = none, q.newest
	if q.newest != none {
		recordAt(mem, q.newest).newer = off
	} else {
		q.oldest = off
	}
	q.newest = off
	q.count++
	q.bytes += r.size()
}

func (q *queue) remove(mem []byte, off uint32) {
	r := recordAt(mem, off)
	q.relink(mem, r, r.older, r.newer)
	q.count--
	q.bytes -= r.size()
}

// moved updates the links of the neighbours of a record that was moved to off.
func (q *queue) moved(mem []byte, off uint32) {
	q.relink(mem, recordAt(mem, off), off, off)
}

// relink links the neighbours of r to other records: the newer neighbour to older, and the
// older neighbour to newer.
func (q *queue) relink(mem []byte, r *Record, older, newer uint32) {
	if r.newer != none {
		recordAt(mem, r.newer).older = older
	} else {
		q.newest = older
	}
	if r.older != none {
		recordAt(mem, r.older).newer = newer
	} else {
		q.oldest = newer
	}
}
