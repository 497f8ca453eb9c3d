package main

import (
	"fmt"
	"sync"
	"time"
)

// What can be wrong with the way in which a stream begins and ends.
const (
	wrongUnopened   = "stream that never opened"
	wrongEmpty      = "stream closed three times in a row without an event"
	wrongNothing    = "stream that ended without an event"
	wrongUntil      = "stream that ended without the event of -until"
	wrongEvents     = "stream that had fewer events than -events"
	wrongCut        = "stream that was cut off before its end"
	wrongUnreadable = "stream that cannot be read"
)

// keepIDs is for how many of the newest ids the meter knows when the first stream got them.
const keepIDs = 256

// A meter adds up what all streams see. Its size does not grow with time.
type meter struct {
	check     *checker
	heartbeat time.Duration // 0 for none expected
	settled   chan struct{} // closed when every stream has been tried once

	mu        sync.Mutex // guards following
	untried   int
	total     totals
	connect   histogram // of the first connection of each stream, like the next
	head      histogram
	first     histogram // from the request to the first event
	spread    histogram
	gaps      histogram // between two events of one connection
	durations histogram // of streams that ended well
	away      histogram // from the last event of a connection to the first of the next
	beats     histogram // between two comments of one connection
	wrong     map[string]*finding
	errors    map[string]int
	recent    map[string]*sighting
	order     [keepIDs]string // the keys of recent
	nextOrder int
	round     round
	published published
}

// totals are the meter's plain counters.
type totals struct {
	Open        int   `json:"streams_open"`
	OpenedOnce  int   `json:"streams_opened"`
	EndedBy204  int   `json:"streams_ended_by_204"`
	UnreadOpen  int   `json:"unread_open"`
	UnreadEnded int   `json:"unread_closed_by_server"`
	EndedWell   int   `json:"streams_ended_well"`
	Reconnects  int   `json:"reconnects"`
	Closes      int   `json:"closed_by_server"`
	Cut         int   `json:"closed_uncleanly"`
	Errors      int   `json:"errors"`
	Events      int64 `json:"events"`
	Heartbeats  int64 `json:"heartbeats"`
	Bytes       int64 `json:"bytes"`
}

// A finding is one kind of thing that was wrong.
type finding struct {
	Problem string `json:"problem"`
	Count   int    `json:"count"`
	Example string `json:"example"`
}

// A sighting is one id on its way through the streams.
type sighting struct {
	first, last time.Time
	repeated    bool // a stream got it twice, so it does not tell one event from another
}

func newMeter(check *checker, heartbeat time.Duration, streams int) *meter {
	return &meter{
		check: check, heartbeat: heartbeat, untried: streams, settled: make(chan struct{}),
		wrong: map[string]*finding{}, errors: map[string]int{}, recent: map[string]*sighting{},
	}
}

// complainLocked adds to what was wrong; the first of a kind stays as the example.
func (m *meter) complainLocked(kind, format string, args ...any) {
	f := m.wrong[kind]
	if f == nil {
		f = &finding{Problem: kind, Example: fmt.Sprintf(format, args...)}
		m.wrong[kind] = f
	}
	f.Count++
}

// sightLocked notes that v got the event, and says whether it repeats v's last id.
func (m *meter) sightLocked(v *viewer, ev *event, at time.Time) (s *sighting, repeated bool) {
	if !ev.hasID {
		return nil, false
	}
	if s = m.recent[string(ev.id)]; s == nil {
		m.forgetLocked(m.order[m.nextOrder])
		id := string(ev.id)
		s = &sighting{first: at, last: at}
		m.recent[id], m.order[m.nextOrder] = s, id
		m.nextOrder = (m.nextOrder + 1) % keepIDs
		m.round.sawNewID()
	} else if s == v.sighting {
		s.repeated, repeated = true, true
	} else if v.since.Before(s.first) { // else it was sent because the stream was new
		s.last = at
	}
	v.sighting = s
	return s, repeated
}

// forgetLocked takes an id's spread into the results and forgets the id.
func (m *meter) forgetLocked(id string) {
	if s := m.recent[id]; s != nil && !s.repeated && s.last != s.first {
		m.spread.add(s.last.Sub(s.first))
	}
	delete(m.recent, id)
}

// finish adds what can be said only at the end.
func (m *meter) finish(viewers []*viewer, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, v := range viewers {
		v.judgeEndLocked(now)
	}
	for id := range m.recent {
		m.forgetLocked(id)
	}
}
