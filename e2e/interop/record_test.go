package interop

import (
	"bufio"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"
)

// A record is what one client has got.
type record struct {
	mu         sync.Mutex // guards following
	events     map[int64]arrival
	heartbeats []time.Time
	lastEvent  int64
	end        string // "" until the client tells of one
}

// An arrival is that of an event with so many characters of data.
type arrival struct {
	at     time.Time
	length int
}

func newRecord() *record {
	return &record{events: map[int64]arrival{}}
}

func (r *record) noteEvent(at time.Time, id int64, length int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, again := r.events[id]
	if !again {
		r.events[id] = arrival{at, length}
	}
	r.lastEvent = max(r.lastEvent, id)
}

func (r *record) noteHeartbeat(at time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.heartbeats = append(r.heartbeats, at)
}

// noteEnd keeps the first end.
func (r *record) noteEnd(how string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.end == "" {
		r.end = how
	}
}

// noteShown notes a line that a client of this folder shows.
func (r *record) noteShown(line string) {
	stamp, what, _ := strings.Cut(line, " ")
	milliseconds, err := strconv.ParseInt(stamp, 10, 64)
	if err != nil {
		return
	}
	at := time.UnixMilli(milliseconds)
	kind, text, _ := strings.Cut(what, " ")
	switch kind {
	case "event":
		var id int64
		var length int
		_, err := fmt.Sscan(text, &id, &length)
		if err == nil {
			r.noteEvent(at, id, length)
		}
	case "heartbeat":
		r.noteHeartbeat(at)
	case "end":
		r.noteEnd(cleanEnd)
	case "closed", "error":
		r.noteEnd(text)
	}
}

// cleanEnd is the end of a client that saw the end of the answer, and no error.
const cleanEnd = "clean"

// noteLines notes what a client of this folder prints.
func (r *record) noteLines(lines *bufio.Scanner) {
	for lines.Scan() {
		r.noteShown(lines.Text())
	}
}

// noteStream notes the stream itself, as it comes.
func (r *record) noteStream(lines *bufio.Scanner) {
	id := int64(0)
	for lines.Scan() {
		now := time.Now()
		name, value, isField := strings.Cut(lines.Text(), ":")
		value = strings.TrimPrefix(value, " ")
		switch {
		case name == "id":
			id, _ = strconv.ParseInt(value, 10, 64)
		case name == "data":
			r.noteEvent(now, id, len(value))
		case name == "" && isField:
			r.noteHeartbeat(now)
		}
	}
}

// sseClientLine is a line of sse-client -debug.
var sseClientLine = regexp.MustCompile(
	`^[0-9:.]+ (event +id=(\d+) (?:name=\S+ )?data=(.*)|heartbeat .*|close +(.*))$`)

func (r *record) noteSSEClient(lines *bufio.Scanner) {
	for lines.Scan() {
		now := time.Now()
		m := sseClientLine.FindStringSubmatch(lines.Text())
		switch {
		case m == nil:
		case m[2] != "":
			id, _ := strconv.ParseInt(m[2], 10, 64)
			r.noteEvent(now, id, len(m[3]))
		case m[4] == "":
			r.noteHeartbeat(now)
		case m[4] == "ended by the server":
			r.noteEnd("EOF")
		default:
			r.noteEnd(m[4])
		}
	}
}

func (r *record) newest() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.lastEvent
}

func (r *record) has(ids []int64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, id := range ids {
		_, ok := r.events[id]
		if !ok {
			return false
		}
	}
	return true
}

// after returns the ids after one, in no order.
func (r *record) after(id int64) (ids []int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for other := range r.events {
		if other > id {
			ids = append(ids, other)
		}
	}
	return ids
}

func (r *record) heartbeatsAfter(start time.Time) (all []time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, at := range r.heartbeats {
		if at.After(start) {
			all = append(all, at)
		}
	}
	return all
}
