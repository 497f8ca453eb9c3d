package main

import (
	"bytes"
	"encoding/json"
	"time"
)

const (
	gapSpan  = 10 * time.Minute // gaps between what came are remembered for so long
	gapLimit = 3                // a silence of so many times the longest gap is an outage
	minStale = 10 * time.Second // no snapshot is called stale earlier
)

// A freshness tells when the newest snapshot of a stream becomes stale. It has no clock: it is told
// what happened, and when.
//
// A snapshot becomes stale in two ways:
//   - The connection is lost, and nothing comes on a new one for least.
//   - Nothing comes for three times the longest gap of the last ten minutes, and for least. Until a
//     gap is known, nothing comes for unknown.
type freshness struct {
	least   time.Duration
	unknown time.Duration // 0: a silence means nothing until a gap is known
	last    time.Time     // when something came; zero: nothing ever did
	lost    time.Time     // when the connection was lost; zero: it is there
	count   int           // of what came on this connection
	gaps    []gap         // of the last ten minutes, each longer than those after it
	outage  time.Time     // when the newest silence ended that was too long
}

// A gap is the time between two things that came on one connection.
type gap struct {
	end    time.Time
	length time.Duration
}

// came notes that something came. It ends a loss of the connection.
func (f *freshness) came(at time.Time) {
	// A new stream starts with the newest snapshot, whenever it is opened. So the gap after that
	// does not show how often something comes.
	if f.count >= 2 {
		f.note(gap{end: at, length: at.Sub(f.last)})
	}
	f.count++
	f.last = at
	f.lost = time.Time{}
}

// note remembers a gap and forgets old ones. A silence that was too long is an outage and does not
// count. If the next one comes within ten minutes, the stream is like that, and it counts.
func (f *freshness) note(g gap) {
	limit := f.limit()
	if limit > 0 && g.length >= limit {
		isFirst := f.outage.IsZero() || g.end.Sub(f.outage) > gapSpan
		f.outage = g.end
		if isFirst {
			return
		}
	}

	// The shorter gaps before this one will never be the longest again.
	for len(f.gaps) > 0 && f.gaps[len(f.gaps)-1].length <= g.length {
		f.gaps = f.gaps[:len(f.gaps)-1]
	}
	f.gaps = append(f.gaps, g)

	for g.end.Sub(f.gaps[0].end) > gapSpan {
		f.gaps = f.gaps[1:]
	}
}

// connectionLost notes that the connection was closed.
func (f *freshness) connectionLost(at time.Time) {
	f.count = 0
	if f.lost.IsZero() {
		f.lost = at
	}
}

// limit gives the silence that makes the snapshot stale; 0: none does.
func (f *freshness) limit() time.Duration {
	if len(f.gaps) > 0 {
		return max(f.least, gapLimit*f.gaps[0].length)
	}
	if f.unknown > 0 {
		return max(f.least, f.unknown)
	}
	return 0
}

// due gives the time at which the newest snapshot becomes stale, if nothing else comes, and what to
// tell viewers then. The time is zero where that never happens.
func (f *freshness) due() (at time.Time, message string) {
	if f.last.IsZero() {
		return time.Time{}, ""
	}

	// A stream that was silent for too long before it was closed was stale before that.
	limit := f.limit()
	silent := f.last.Add(limit)
	isSilentFirst := f.lost.IsZero() || !silent.After(f.lost)
	if limit > 0 && isSilentFirst {
		return silent, "No data since " + f.last.Format(time.TimeOnly)
	}

	if f.lost.IsZero() {
		return time.Time{}, ""
	}
	return f.lost.Add(f.least), "Connection lost at " + f.lost.Format(time.TimeOnly)
}

// staleSnapshot gives the snapshot with the status "stale" and the message, where it has these
// fields. All other bytes stay as they are. It gives false where there is nothing to say: the data
// has no status, or says "stale" already.
func staleSnapshot(data []byte, message string) ([]byte, bool) {
	if !json.Valid(data) {
		return nil, false
	}
	system, ok := member(data, "system_status")
	if !ok {
		return nil, false
	}
	object := data[system.start:system.end]
	status, ok := member(object, "status")
	if !ok {
		return nil, false
	}

	var text string
	err := json.Unmarshal(object[status.start:status.end], &text)
	if err == nil && text == "stale" {
		return nil, false
	}

	object = replaceMember(object, "status", "stale")
	object = replaceMember(object, "message", message)
	return replace(data, system, object), true
}

// A span is where a value stands in the text around it.
type span struct{ start, end int }

// member finds the value of a key in a JSON object. Of several with the same key it is the last, as
// JSON readers take it.
func member(object []byte, key string) (value span, ok bool) {
	decoder := json.NewDecoder(bytes.NewReader(object))
	open, err := decoder.Token()
	if err != nil || open != json.Delim('{') {
		return span{}, false
	}

	for decoder.More() {
		name, err := decoder.Token()
		if err != nil {
			return span{}, false
		}
		var raw json.RawMessage
		if err := decoder.Decode(&raw); err != nil {
			return span{}, false
		}

		if name == key {
			end := int(decoder.InputOffset())
			value = span{start: end - len(raw), end: end}
			ok = true
		}
	}
	return value, ok
}

// replaceMember puts text in the place of the value of a key, where the object has that key.
func replaceMember(object []byte, key, text string) []byte {
	value, ok := member(object, key)
	if !ok {
		return object
	}
	quoted, _ := json.Marshal(text) // a string can always be encoded
	return replace(object, value, quoted)
}

// replace gives a copy of data with other bytes at one place.
func replace(data []byte, place span, with []byte) []byte {
	out := make([]byte, 0, len(data)-(place.end-place.start)+len(with))
	out = append(out, data[:place.start]...)
	out = append(out, with...)
	return append(out, data[place.end:]...)
}
