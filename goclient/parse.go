package main

import (
	"bytes"
	"strconv"
	"time"
)

// An event is what a stream dispatches at an empty line. Its slices belong to the parser and are
// valid only until the handler returns.
type event struct {
	name  []byte // empty for a plain message
	id    []byte // the last id of the stream, which may be that of an earlier event
	hasID bool   // the event has an id field of its own
	data  []byte
}

// A handler is told what a parser reads, in the order of the stream.
type handler interface {
	event(ev *event)
	comment(text []byte)
	retry(d time.Duration)
	dropped() // an event whose data or one of whose lines is over the limit
}

// maxField is the longest name of a field, with the colon and the space behind it.
const maxField = len("retry: ")

// keepBytes is how much buffer a parser keeps between two events; a larger one is given back.
const keepBytes = 4096

var bom = []byte("\xef\xbb\xbf")

// A parser reads one event stream as the HTML standard says
// (https://html.spec.whatwg.org/multipage/server-sent-events.html), from pieces cut anywhere.
// Bytes that are not UTF-8 are passed on as they are, not replaced.
type parser struct {
	h      handler
	limit  int    // of the data of one event, in bytes
	lastID []byte // the id to reconnect with: that of the last finished event

	line  []byte // the begin of a line whose end has not come
	skip  bool   // the line is over the limit: its rest is thrown away
	cr    bool   // the last byte was a CR, so an LF now belongs to it
	begun bool   // the first line is over, so a BOM is no longer one
	large bool   // the event is over the limit
	data  []byte // each line with an LF behind it
	ev    event
}

// start makes the parser ready for a new connection of the same stream. The last id stays.
func (p *parser) start() {
	*p = parser{h: p.h, limit: p.limit, lastID: p.lastID}
	p.ev.id = append(p.ev.id, p.lastID...)
}

// feed parses the next bytes of the stream.
func (p *parser) feed(b []byte) {
	for len(b) > 0 {
		if p.cr {
			p.cr = false
			if b[0] == '\n' {
				b = b[1:]
				continue
			}
		}
		i := lineEnd(b)
		if i < 0 {
			p.hold(b)
			return
		}
		p.cr = b[i] == '\r'
		p.endLine(b[:i])
		b = b[i+1:]
	}
}

// hold keeps the piece of a line until the rest comes.
func (p *parser) hold(b []byte) {
	if p.skip || len(b) == 0 {
		return
	}
	if len(p.line)+len(b) <= p.limit+maxField {
		p.line = append(p.line, b...)
		return
	}
	first := b[0]
	if len(p.line) > 0 {
		first = p.line[0]
	}
	p.skip = true
	p.large = p.large || first != ':'
}

// endLine parses a line of which b is the last piece.
func (p *parser) endLine(b []byte) {
	if len(p.line) > 0 || p.skip || len(b) > p.limit+maxField {
		p.hold(b)
		b = p.line
	}
	if !p.begun {
		p.begun = true
		b = bytes.TrimPrefix(b, bom)
	}
	if !p.skip {
		p.parseLine(b)
	}
	p.line, p.skip = shrink(p.line), false
}

func (p *parser) parseLine(b []byte) {
	if len(b) == 0 {
		p.dispatch()
		return
	}
	name, value := b, []byte(nil)
	if i := bytes.IndexByte(b, ':'); i >= 0 {
		name, value = b[:i], b[i+1:]
	}
	if len(value) > 0 && value[0] == ' ' {
		value = value[1:]
	}
	switch string(name) {
	case "":
		p.h.comment(value)
	case "data":
		p.addData(value)
	case "event":
		p.ev.name = append(p.ev.name[:0], value...)
	case "id":
		if bytes.IndexByte(value, 0) < 0 {
			p.ev.id = append(p.ev.id[:0], value...)
			p.ev.hasID = true
		}
	case "retry":
		if ms, ok := decimal(value); ok && ms < 1e12 {
			p.h.retry(time.Duration(ms) * time.Millisecond)
		}
	}
}

func (p *parser) addData(value []byte) {
	if len(p.data)+len(value) > p.limit {
		p.large = true
	}
	if p.large {
		p.data = nil
		return
	}
	p.data = append(append(p.data, value...), '\n')
}

// dispatch ends the event at an empty line. One without data is none, but its id counts.
func (p *parser) dispatch() {
	if p.ev.hasID {
		p.lastID = append(p.lastID[:0], p.ev.id...)
	}
	if p.large {
		p.h.dropped()
	} else if n := len(p.data); n > 0 {
		p.ev.data = p.data[:n-1]
		p.h.event(&p.ev)
	}
	p.data, p.large = shrink(p.data), false
	p.ev.name, p.ev.data, p.ev.hasID = p.ev.name[:0], nil, false
}

// lineEnd gives the index of the first CR or LF in b, or -1.
func lineEnd(b []byte) int {
	lf := bytes.IndexByte(b, '\n')
	if lf >= 0 {
		b = b[:lf]
	}
	if cr := bytes.IndexByte(b, '\r'); cr >= 0 {
		return cr
	}
	return lf
}

func shrink(b []byte) []byte {
	if cap(b) > keepBytes {
		return nil
	}
	return b[:0]
}

// decimal reads a number that has digits only.
func decimal(b []byte) (uint64, bool) {
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, false
		}
	}
	n, err := strconv.ParseUint(string(b), 10, 64)
	return n, err == nil
}
