package main

import (
	"fmt"
	"slices"
	"time"
)

const (
	lateAfter = 150 * time.Millisecond // held back; HAProxy does so for 200 ms
	enough    = 10                     // events on each side, to compare numbers and gaps
)

// A relation says what the events of two streams have in common.
type relation int

const (
	unknown relation = iota // too few events came to say
	shared                  // both get the same events
	own                     // each connection has its own
)

// unique gives the events whose key came once only.
func (p *probe) unique() map[string]arrival {
	came := map[string]arrival{}
	repeated := map[string]bool{}
	for _, a := range p.arrivals {
		if _, again := came[a.key]; again {
			repeated[a.key] = true
		}
		came[a.key] = a
	}
	for key := range repeated {
		delete(came, key)
	}
	return came
}

// offsets gives how much later than on ref each event came that both got, and the number of
// events that both could have got. What ref got before p asked does not count.
func (p *probe) offsets(ref *probe) (offsets []time.Duration, possible int) {
	mine, theirs := p.unique(), ref.unique()
	for _, a := range p.arrivals {
		b, matched := theirs[a.key]
		if matched && b.at.Before(a.opened) {
			continue
		}
		possible++

		_, once := mine[a.key]
		if matched && once {
			offsets = append(offsets, a.at.Sub(b.at))
		}
	}
	return offsets, possible
}

// relationTo tells whether p and ref get the same events. The two were opened at different
// times: events that differ by that time belong to a connection, though their ids are alike.
func (p *probe) relationTo(ref *probe) relation {
	offsets, byNumber := p.compareNumbers(ref)
	if byNumber != shared {
		return byNumber
	}

	median := offsets[len(offsets)/2]
	stagger := p.conns[0].asked.Sub(ref.conns[0].asked)
	tolerance := stagger.Abs() / 4
	if (median-stagger).Abs() < tolerance || median < -tolerance {
		return own
	}
	return shared
}

// relationOfTwins is relationTo for two streams between which no proxy stands. Events that come on
// both with the same distance each time are in step with their connections.
func (p *probe) relationOfTwins(ref *probe) relation {
	offsets, byNumber := p.compareNumbers(ref)
	if byNumber != shared {
		return byNumber
	}

	low, median := offsets[len(offsets)/5], offsets[len(offsets)/2]
	switch {
	case median.Abs() < lateAfter*2/3:
		return shared
	case median-low < lateAfter/2:
		return own
	}
	return unknown
}

// compareNumbers goes by how many events p and ref both got. The offsets are sorted, and there are
// some if the relation is shared.
func (p *probe) compareNumbers(ref *probe) (offsets []time.Duration, byNumber relation) {
	if !p.isOpened() || !ref.isOpened() {
		return nil, unknown
	}
	offsets, possible := p.offsets(ref)
	switch {
	case possible < 2:
		return nil, unknown
	case isFew(offsets, possible):
		return nil, own
	}
	slices.Sort(offsets)
	return offsets, shared
}

// sharesFew tells whether ref did not get most of what came on p.
func (p *probe) sharesFew(ref *probe) bool {
	offsets, possible := p.offsets(ref)
	return possible >= 2 && isFew(offsets, possible)
}

// isFew tells whether less than half, or just half, of the possible events came on both streams.
func isFew(offsets []time.Duration, possible int) bool {
	return len(offsets)*2 <= possible
}

// lateness gives how much later than on ref the events came; for one that never came, how long
// it had been due at the end. The result is sorted.
func (p *probe) lateness(ref *probe, end time.Time) (late []time.Duration) {
	if !p.isOpened() {
		return nil
	}
	came := map[string]arrival{}
	for _, a := range p.arrivals {
		if _, again := came[a.key]; !again {
			came[a.key] = a
		}
	}

	newest := p.conns[len(p.conns)-1]
	for key, due := range ref.unique() {
		a, ok := came[key]
		switch {
		case ok && !due.at.Before(a.opened):
			late = append(late, a.at.Sub(due.at))
		case !ok && newest.err == nil && due.at.After(newest.from):
			late = append(late, end.Sub(due.at))
		}
	}
	slices.Sort(late)
	return late
}

// byClock gives how much later than the quickest each event came by the time that its id says.
// It needs no clock in common with the server.
func (p *probe) byClock() (late []time.Duration) {
	for _, a := range p.arrivals {
		if a.fresh || a.made.IsZero() {
			continue
		}
		late = append(late, a.at.Sub(a.made))
	}
	if len(late) == 0 || p.hasCoarseTimes() {
		return nil
	}
	slices.Sort(late)
	for i := len(late) - 1; i >= 0; i-- {
		late[i] -= late[0]
	}
	return late
}

// hasCoarseTimes tells whether the times in the ids are whole tenths of a second, such as seconds
// times 1,000. They say too little.
func (p *probe) hasCoarseTimes() bool {
	for _, a := range p.arrivals {
		if !a.made.IsZero() && a.made.UnixMilli()%100 != 0 {
			return false
		}
	}
	return true
}

// A shape is the number of events of a stream in some time, and how they were bundled.
type shape struct {
	events  int
	bundles int // of two or more events, after a silence
	bundled int // events in them
}

// shapeFor gives the shape of the first part of a stream that is as long as length.
func (p *probe) shapeFor(length time.Duration) (s shape) {
	var part []arrival
	for _, a := range p.arrivals {
		if a.at.Sub(p.conns[0].asked) <= length {
			part = append(part, a)
		}
	}
	s.events = len(part)

	for begin := 0; begin < len(part); {
		next := begin + 1
		for next < len(part) && part[next].at.Sub(part[next-1].at) < together {
			next++
		}
		if next-begin > 1 && isAfterSilence(part, begin) {
			s.bundles++
			s.bundled += next - begin
		}
		begin = next
	}
	return s
}

// isAfterSilence tells whether a silence stood before event i.
func isAfterSilence(part []arrival, i int) bool {
	if i == 0 || part[i].fresh {
		return false
	}
	return part[i].at.Sub(part[i-1].at) > lateAfter
}

// isBundled tells whether most events came in bundles.
func (s shape) isBundled() bool {
	return s.bundles > 1 && s.bundled*2 > s.events
}

// isMoreBundledThan compares shapes of which neither is of few events.
func (s shape) isMoreBundledThan(ref shape) bool {
	share := float64(s.bundled) / float64(s.events)
	usual := float64(ref.bundled) / float64(ref.events)
	return s.isBundled() && usual*2 < share
}

// A lateness says by how much events came late. late is sorted.
type lateness struct {
	late  []time.Duration
	after time.Duration // what is late
}

// isHeld tells whether enough events came too late to call it holding back. A busy machine makes
// some late, but not all.
func (l lateness) isHeld() bool {
	n := l.count()
	return n >= 2 && n*5 >= len(l.late) || l.allLate()
}

// allLate tells whether four events in five came late, whatever this machine adds.
func (l lateness) allLate() bool {
	return len(l.late) >= 5 && l.low() > lateAfter
}

func (l lateness) count() (n int) {
	for _, d := range l.late {
		if d > l.after {
			n++
		}
	}
	return n
}

func (l lateness) low() time.Duration    { return l.late[len(l.late)/5] }
func (l lateness) half() time.Duration   { return l.late[len(l.late)/2] }
func (l lateness) latest() time.Duration { return l.late[len(l.late)-1] }

// isDelay tells whether events wait for a short time rather than for a buffer to fill: all of them
// for the same time, or none for long.
func (l lateness) isDelay() bool {
	if l.late[len(l.late)*9/10] < 2*lateAfter {
		return true
	}
	return l.allLate() && l.half()-l.low() < lateAfter/2 && l.half() < time.Second
}

func (l lateness) String() string {
	return fmt.Sprintf("%d of %d events came late, half of all at least %s and the latest %s",
		l.count(), len(l.late), secs(l.half()), secs(l.latest()))
}
