package names

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/trackless-dns/trackless/internal/logger"
)

// All instances of a cluster may start at the same time. So each of them asks slowly.
const (
	perSecond = 200
	// mostAsking bounds the queries of a server block that wait for their answers.
	mostAsking = 32
	// longest is how long a start waits for the answers.
	longest = 5 * time.Second
	// patience is how long a server block is asked without any answer. When the node boots,
	// its upstream may not be known yet, and the kernel repeats a lost handshake after a
	// second.
	patience = 2 * time.Second
)

// Need says whether a name of the file is to be asked for.
type Need int

// The needs.
const (
	Wanted Need = iota
	Cached      // there is an answer
	Gone        // no server block of the Corefile has it
)

// Asker asks for names.
type Asker interface {
	// Need says whether a name is to be asked for.
	Need(n Name) Need
	// Ask asks for it, and reports whether there is an answer now. It returns after some
	// seconds in any case.
	Ask(n Name) bool
}

// Figures say what became of the names of a file.
type Figures struct {
	Answered int
	Failed   int // no answer, or none yet
	Cached   int // there was an answer already
	Gone     int // no server block of the Corefile has them
	Unasked  int // the time was over, or nothing was answered
	Took     time.Duration
}

// Recall asks for the names of a file. It returns when they are answered, when nothing was
// answered for two seconds, and after five seconds in any case. It never fails: without the
// file an instance starts with an empty cache.
func Recall(path string, asker Asker, log logger.Logger) (f Figures) {
	file, _, err := read(path)
	if err != nil {
		log.Warningf("the names that were asked most are not asked for: %v; this instance starts without them", err)
		return f
	}
	if len(file) == 0 {
		return f
	}
	r := &recall{asker: asker, done: make(chan reply, len(file)+mostAsking)}
	for _, u := range file {
		switch asker.Need(u.Name) {
		case Cached:
			f.Cached++
		case Gone:
			f.Gone++
		case Wanted:
			r.add(u.Name)
		}
	}
	begun := time.Now()
	r.run()
	f.Took = time.Since(begun)
	var silent []string
	for _, b := range r.blocks {
		f.Answered += b.answered
		f.Failed += b.failed + b.asking
		f.Unasked += len(b.names)
		if b.silent {
			silent = append(silent, b.label)
		}
	}
	line := fmt.Sprintf("asked for the names that were asked most (%s): %d answered, %d failed, %d cached before, %d of server blocks that are gone, %d not asked for; the start waited %s for it",
		path, f.Answered, f.Failed, f.Cached, f.Gone, f.Unasked, f.Took.Round(time.Millisecond))
	if silent != nil {
		log.Warningf("%s; nothing was answered for %s in the server block %s", line, patience, strings.Join(silent, ", "))
	} else {
		log.Infof("%s", line)
	}
	return f
}

// recall asks for the names of each server block in turn. A block whose upstream is dead does
// not take the time of the others.
type recall struct {
	asker  Asker
	blocks []*block
	next   int // the block whose turn it is
	done   chan reply
}

// block is what a server block is asked.
type block struct {
	label    string
	names    []Name // not asked yet
	asking   int
	answered int
	failed   int
	since    time.Time // of the last answer, or the first question
	silent   bool
}

// reply is the end of a question.
type reply struct {
	of       *block
	name     Name
	answered bool
}

func (r *recall) add(n Name) {
	i := slices.IndexFunc(r.blocks, func(b *block) bool { return b.label == n.Block })
	if i < 0 {
		i = len(r.blocks)
		r.blocks = append(r.blocks, &block{label: n.Block})
	}
	r.blocks[i].names = append(r.blocks[i].names, n)
}

func (r *recall) run() {
	over := time.NewTimer(longest)
	defer over.Stop()
	pace := time.NewTicker(time.Second / perSecond)
	defer pace.Stop()
	for !r.ended() {
		select {
		case <-pace.C:
			r.giveUp()
			if b := r.ready(); b != nil {
				r.ask(b)
			}
		case a := <-r.done:
			a.of.end(a)
		case <-over.C:
			return
		}
	}
}

func (r *recall) ended() bool {
	return !slices.ContainsFunc(r.blocks, func(b *block) bool { return !b.silent && len(b.names)+b.asking > 0 })
}

// giveUp ends the questions to blocks that answer nothing.
func (r *recall) giveUp() {
	for _, b := range r.blocks {
		if !b.since.IsZero() && len(b.names)+b.asking > 0 && time.Since(b.since) >= patience {
			b.silent = true
		}
	}
}

// ready returns the next block that may be asked, or nil.
func (r *recall) ready() *block {
	for range r.blocks {
		b := r.blocks[r.next%len(r.blocks)]
		r.next++
		if len(b.names) > 0 && b.asking < mostAsking && !b.silent {
			return b
		}
	}
	return nil
}

func (r *recall) ask(b *block) {
	if b.since.IsZero() {
		b.since = time.Now()
	}
	n := b.names[0]
	b.names = b.names[1:]
	b.asking++
	go func() { r.done <- reply{b, n, r.asker.Ask(n)} }()
}

// end takes the end of a question. One that fails before the first answer is asked again later: the
// upstream may not be known yet.
func (b *block) end(a reply) {
	b.asking--
	switch {
	case a.answered:
		b.answered++
		b.since = time.Now()
	case b.answered == 0:
		b.names = append(b.names, a.name)
	default:
		b.failed++
	}
}
