package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"
)

// The states of a viewer.
const (
	untried = iota
	open
	closed
	failed
)

// A viewer observes one stream for the meter, whose lock guards it.
type viewer struct {
	m      *meter
	n      int       // of the stream, from 0
	unread bool      // stalled or slow: opened, but not parsed
	ending ending    // when the stream is over
	debug  io.Writer // where each event is printed, or nil

	state       int
	err         error     // of the last attempt
	start       time.Time // of the first connection
	begun       time.Time // when the request was sent that this connection belongs to
	isRenewed   bool      // the next connection belongs to a new request
	isDone      bool      // the stream has ended as -until or -events asked, once at least
	isAccused   bool      // the end of the last attempt or connection was called wrong
	emptyCloses int       // in a row
	since       time.Time // when the connection's head had come; what follows is as of then
	seen        time.Time // the last event or comment
	lastEvent   time.Time // of this connection
	lost        time.Time // the last event of the connections before
	lastComment time.Time
	sighting    *sighting // the last id on this connection
	number      uint64    // the last id that is a decimal number, on any connection
	numbered    bool
	silent      bool // was found silent
	anyEvent    bool // since the request was sent
	anyDropped  bool // one was too large, on any connection
	round       int  // the last round whose event has come
}

// triedLocked notes the end of the first attempt.
func (v *viewer) triedLocked() {
	if v.state != untried {
		return
	}
	if v.m.untried--; v.m.untried == 0 {
		close(v.m.settled)
	}
}

// renewed notes that the next request does not go on with the last one: the server may begin with
// any id.
func (v *viewer) renewed() {
	v.m.mu.Lock()
	defer v.m.mu.Unlock()
	v.isRenewed = true
	v.numbered = false
}

// opened is the begin of a connection: what was measured on the last one does not go on.
func (v *viewer) opened(c *conn) {
	m := v.m
	m.mu.Lock()
	defer m.mu.Unlock()
	v.triedLocked()

	isFirst := v.start.IsZero()
	if isFirst || v.isRenewed {
		v.begun = c.start
		v.anyEvent = false
		v.lastEvent = time.Time{}
		v.lost = time.Time{}
	}
	if isFirst {
		v.start = c.start
		m.total.OpenedOnce++
		m.connect.add(c.connect)
		if c.head > 0 {
			m.head.add(c.head)
		}
	} else if !v.isRenewed {
		m.total.Reconnects++
	}
	v.isRenewed = false
	v.isAccused = false
	v.err = nil

	m.total.Open++
	if v.unread {
		m.total.UnreadOpen++
	}

	now := time.Now()
	v.state, v.since, v.seen = open, now, now
	if !v.lastEvent.IsZero() {
		v.lost = v.lastEvent
	}
	v.lastEvent, v.lastComment, v.sighting = time.Time{}, time.Time{}, nil
}

// failed counts an error by its text, of which there are at most 20.
func (v *viewer) failed(err error) {
	v.printf("error", "%v", err)
	m := v.m
	m.mu.Lock()
	defer m.mu.Unlock()
	v.triedLocked()
	v.err = err
	if errors.Is(err, errNoContent) {
		v.state = closed
		m.total.EndedBy204++
		return
	}
	v.state = failed
	v.isAccused = false
	m.total.Errors++
	if a := answerError(""); errors.As(err, &a) {
		v.accuseLocked(wrongAnswer, "%v", err)
	}
	if len(m.errors) < 20 || m.errors[err.Error()] > 0 {
		m.errors[err.Error()]++
	}
}

// closed is no error: a server may end a stream, and the client comes back.
func (v *viewer) closed(err error) {
	v.printf("close", "%s", endText(err))
	m := v.m
	m.mu.Lock()
	defer m.mu.Unlock()
	m.total.Open--
	v.state = closed
	if v.unread {
		m.total.UnreadOpen--
		m.total.UnreadEnded++
		return
	}
	now := time.Now()
	v.silenceLocked(now)
	if err == errDone {
		v.isDone = true
		v.endWellLocked(now)
		return
	}
	m.total.Closes++
	if err != io.EOF {
		m.total.Cut++
	}
	v.judgeCloseLocked(err, now)
}

// judgeCloseLocked says whether the server should have closed the connection in this way.
func (v *viewer) judgeCloseLocked(err error, now time.Time) {
	if v.lastEvent.IsZero() {
		v.emptyCloses++
	}
	text := endText(err)

	switch {
	case isUnreadable(err):
		v.accuseLocked(wrongUnreadable, "%s", text)
	case v.ending.until != "":
		v.accuseLocked(wrongUntil, "%s", text)
	case v.ending.asked && err != io.EOF:
		v.accuseLocked(wrongCut, "%s", text)
	case v.ending.asked && v.ending.events > 0:
		v.accuseLocked(wrongEvents, "%s", text)
	case v.ending.asked && v.gotNothing():
		v.accuseLocked(wrongNothing, "%s", text)
	case v.ending.asked:
		v.endWellLocked(now)
	case v.emptyCloses == maxEmptyCloses:
		v.accuseLocked(wrongEmpty, "%s", text)
	case v.emptyCloses > maxEmptyCloses:
		v.isAccused = true // once is enough
	}
}

// accuseLocked says what was wrong with the end of an attempt or of a connection.
func (v *viewer) accuseLocked(kind, format string, args ...any) {
	v.isAccused = true
	v.m.complainLocked(kind, "stream %d: %s", v.n, fmt.Sprintf(format, args...))
}

// endWellLocked notes that the stream brought all that it was to bring.
func (v *viewer) endWellLocked(now time.Time) {
	v.m.total.EndedWell++
	v.m.durations.add(now.Sub(v.begun))
}

// judgeEndLocked says what is wrong with the stream when the run ends. What was said before is not
// said again.
func (v *viewer) judgeEndLocked(now time.Time) {
	if v.state == open {
		v.silenceLocked(now)
	}

	switch {
	case v.isAccused:
	case v.state == untried:
		v.accuseLocked(wrongUnopened, "no answer before the end of the run")
	case v.start.IsZero():
		v.accuseLocked(wrongUnopened, "%v", v.err)
	case v.state == failed:
		v.accuseLocked(wrongFailed, "%v", v.err)
	case v.unread || v.isDone:
	case v.ending.until != "":
		v.accuseLocked(wrongUntil, "%s", v.endText())
	case v.ending.events > 0:
		v.accuseLocked(wrongEvents, "%s", v.endText())
	case v.state == closed && v.gotNothing():
		v.accuseLocked(wrongNothing, "%s", v.endText())
	}
}

// gotNothing says whether the server sent no event at all.
func (v *viewer) gotNothing() bool { return !v.anyEvent && !v.anyDropped }

// endText says how the stream stood when the run ended.
func (v *viewer) endText() string {
	switch {
	case v.state == open:
		return "the run ended before"
	case v.err != nil:
		return v.err.Error()
	}
	return "the server had closed it"
}

// isUnreadable says whether the body was not what its head said, such as gzip.
func isUnreadable(err error) bool {
	var network net.Error
	var number syscall.Errno
	switch {
	case err == nil, err == io.EOF, errors.Is(err, io.ErrUnexpectedEOF):
		return false
	case errors.As(err, &network), errors.As(err, &number), errors.Is(err, net.ErrClosed):
		return false
	}
	return true
}

// silenceLocked says that the stream was silent until at, if that was too long.
func (v *viewer) silenceLocked(at time.Time) {
	d := at.Sub(v.seen)
	if h := v.m.heartbeat; h > 0 && d > 2*h && !v.unread && !v.silent {
		v.silent = true
		v.m.complainLocked(wrongSilent, "stream %d: %v", v.n, d.Round(time.Millisecond))
	}
	v.seen = at
}

func (v *viewer) received(n int) {
	v.m.mu.Lock()
	v.m.total.Bytes += int64(n)
	v.m.mu.Unlock()
}

// event measures and checks; all but the data in one hold of the lock.
func (v *viewer) event(ev *event, at time.Time) {
	if v.debug != nil {
		v.printEvent(ev, at)
	}
	m := v.m
	kind, about := "", ""
	if !v.ending.isUntil(ev) {
		kind, about = m.check.data(ev, !v.anyEvent)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.total.Events++
	v.emptyCloses = 0
	if kind != "" {
		m.complainLocked(kind, "stream %d, id %q: %.100q %s", v.n, ev.id, ev.data, about)
	}
	if !v.anyEvent {
		v.anyEvent = true
		m.first.add(at.Sub(v.begun))
	}
	if !v.lastEvent.IsZero() {
		m.gaps.add(at.Sub(v.lastEvent))
	} else if !v.lost.IsZero() {
		m.away.add(at.Sub(v.lost))
	}
	s, repeated := m.sightLocked(v, ev, at)
	if s == nil || repeated || !s.first.Before(m.round.start) {
		m.round.deliver(v, at)
	}
	v.checkIDLocked(ev)
	v.silenceLocked(at)
	v.lastEvent = at
}

// checkIDLocked checks that ids that are decimal numbers increase. A new connection may begin
// with the last one again.
func (v *viewer) checkIDLocked(ev *event) {
	if !ev.hasID || !v.m.check.ids() {
		return
	}
	n, ok := decimal(ev.id)
	again := v.lastEvent.IsZero() && n == v.number
	if ok && v.numbered && n <= v.number && !again {
		v.m.complainLocked(wrongID, "stream %d: %d after %d", v.n, n, v.number)
	}
	v.number, v.numbered = n, ok
}

// comment takes each comment for a heartbeat.
func (v *viewer) comment(text []byte, at time.Time) {
	if v.debug != nil {
		v.printLine(at, "heartbeat", ": "+printable(text))
	}
	m := v.m
	m.mu.Lock()
	defer m.mu.Unlock()
	m.total.Heartbeats++
	if !v.lastComment.IsZero() {
		m.beats.add(at.Sub(v.lastComment))
	}
	v.silenceLocked(at)
	v.lastComment = at
}

func (v *viewer) dropped() {
	v.printf("dropped", "an event over -max-event-bytes")
	v.m.mu.Lock()
	defer v.m.mu.Unlock()
	v.anyDropped = true
	v.m.complainLocked(wrongSize, "stream %d", v.n)
}

// printEvent begins with the same word for all events: a name could be that of another line.
func (v *viewer) printEvent(ev *event, at time.Time) {
	text := ""
	if len(ev.id) > 0 {
		text += "id=" + word(ev.id) + " "
	}
	if len(ev.name) > 0 {
		text += "name=" + word(ev.name) + " "
	}
	v.printLine(at, "event", text+"data="+printable(ev.data))
}

func (v *viewer) printf(kind, format string, args ...any) {
	if v.debug != nil {
		v.printLine(time.Now(), kind, fmt.Sprintf(format, args...))
	}
}

func (v *viewer) printLine(at time.Time, kind, text string) {
	fmt.Fprintf(v.debug, "%s %-9s %s\n", at.Format("15:04:05.000"), kind, text)
}
