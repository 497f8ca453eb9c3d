package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"time"
	"unicode"
)

const (
	defaultRetry    = 3 * time.Second        // before the server has said another
	minRetry        = 250 * time.Millisecond // whatever the server says
	minBackoff      = 500 * time.Millisecond
	maxBackoff      = 2 * time.Second // of a stream that has to come back, and half as much again
	defaultMaxEvent = 16 << 20        // bytes; a larger event is dropped and counted
	maxID           = 1 << 10         // bytes of an id with which a stream with backoff comes back
	slowBytes       = 4               // a second, of a slow stream
)

// maxEmptyCloses is how many closes in a row without an event are wrong.
const maxEmptyCloses = 3

// errDone ends a stream that has brought what it was to bring.
var errDone = errors.New("ended as -until or -events asked")

// An observer is told what happens on one stream, on that stream's goroutine.
type observer interface {
	opened(c *conn)
	failed(err error) // the stream could not be opened
	closed(err error) // the stream ended; io.EOF where in an orderly way
	received(n int)   // bytes of the body, without chunking and compression
	event(ev *event, at time.Time)
	comment(text []byte, at time.Time)
	dropped()
}

// An ending says when a stream is over.
type ending struct {
	once   bool   // at the first close
	asked  bool   // the request may cost something: an orderly end is a good one
	until  string // an event with this data or name ends the stream; empty: none does
	events int    // so many events end it; 0: any number
	repeat bool   // after a good end, the request is sent again
}

// isLast says whether this event, which is the count-th, ends the stream.
func (e *ending) isLast(ev *event, count int) bool {
	return e.isUntil(ev) || e.events > 0 && count >= e.events
}

// isUntil says whether the event is the one that -until names.
func (e *ending) isUntil(ev *event) bool {
	return e.until != "" && (string(ev.data) == e.until || string(ev.name) == e.until)
}

// isOver says whether the stream is not opened again after an end with err.
func (e *ending) isOver(err error) bool {
	switch {
	case e.once:
		return true
	case e.repeat:
		return false
	}
	return e.asked || e.until != "" || err == errDone
}

// A stream is opened again whenever it ends, after the time that the server last said.
// EventSource gives up permanently at an answer other than 200 and 204; this tries again.
type stream struct {
	t       *target
	o       observer
	ending  ending
	backoff bool          // wait longer after each failure, spread at random, and outlive even a 204
	silence time.Duration // after which the connection is given up; 0: never
	trace   func(kind, format string, args ...any)
	renewed func() // told when the next request will not go on with the last; may be nil
	retryIn time.Duration
	p       parser
	at      time.Time // when what is being parsed came
	any     bool      // an event has come on this connection
	events  int       // since the stream began, or its request was sent again
	done    bool      // the last event has come

	hop func(u *url.URL) // is told each URL before it is requested; may be nil
}

func newStream(t *target, o observer) *stream {
	s := &stream{t: t, o: o, retryIn: defaultRetry}
	s.p = parser{h: s, limit: defaultMaxEvent}
	return s
}

// keepOpen opens the stream whenever it has ended, until ctx ends or it is not to come back.
func (s *stream) keepOpen(ctx context.Context) {
	fails := 0
	for {
		err := s.connection(ctx, &fails)
		if ctx.Err() != nil {
			return
		}
		isFinal := errors.Is(err, errNoContent) && !s.backoff
		if isFinal || s.ending.isOver(err) {
			return
		}
		if s.ending.asked || err == errDone {
			s.forget()
		}

		wait := s.wait(fails)
		s.tell("wait", "%v", wait)
		if !sleep(ctx, wait) {
			return
		}
	}
}

// forget makes the next request one that does not go on with the last.
func (s *stream) forget() {
	s.p.lastID = nil
	s.events = 0
	if s.renewed != nil {
		s.renewed()
	}
}

// connection opens the stream and reads it to the end, and counts failures in a row: a connection
// without an event is one.
func (s *stream) connection(ctx context.Context, fails *int) error {
	c, err := s.t.open(ctx, attempt{lastID: s.id(), trace: s.trace, hop: s.hop})
	if err != nil {
		*fails++
		if ctx.Err() == nil {
			s.o.failed(err)
		}
		return err
	}
	defer c.Close()
	s.o.opened(c)

	err = s.read(c)
	*fails++
	if s.any {
		*fails = 0
	}
	if ctx.Err() == nil || err == errDone {
		s.o.closed(err)
	}
	return err
}

// read reads a connection to its end, or to the stream's last event.
func (s *stream) read(c *conn) (err error) {
	s.p.start()
	s.any = false
	s.done = false
	for err == nil && !s.done {
		if s.silence > 0 {
			c.SetReadDeadline(time.Now().Add(s.silence))
		}
		err = c.read(s.feed)
	}
	if s.done {
		return errDone
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("silent for %v", s.silence)
	}
	return err
}

// endText says how a connection ended.
func endText(err error) string {
	switch {
	case err == io.EOF:
		return "ended by the server"
	case errors.Is(err, io.ErrUnexpectedEOF):
		return "cut off within the response"
	}
	return plain(err).Error()
}

func (s *stream) tell(kind, format string, args ...any) {
	if s.trace != nil {
		s.trace(kind, format, args...)
	}
}

// id gives the id to come back with. A stream that has to come back sends none that servers
// reject in a header, since they would do so each time.
func (s *stream) id() []byte {
	id := s.p.lastID
	if s.backoff && (len(id) > maxID || bytes.IndexFunc(id, unicode.IsControl) >= 0) {
		return nil
	}
	return id
}

func (s *stream) feed(b []byte, at time.Time) {
	s.at = at
	s.o.received(len(b))
	s.p.feed(b)
}

// event passes an event on. What follows the last one is of no interest.
func (s *stream) event(ev *event) {
	if s.done {
		return
	}
	s.any = true
	s.events++
	s.done = s.ending.isLast(ev, s.events)
	s.o.event(ev, s.at)
}

func (s *stream) comment(text []byte) {
	if !s.done {
		s.o.comment(text, s.at)
	}
}

func (s *stream) retry(d time.Duration) {
	s.tell("retry", "%v", d)
	s.retryIn = d
}

func (s *stream) dropped() { s.o.dropped() }

// wait gives the time until the next attempt. Without backoff it is the same each time, as in
// browsers. With backoff it is half a second at least and doubles with each failure in a row, up to
// maxBackoff. Up to half as much comes on top, at random.
func (s *stream) wait(fails int) time.Duration {
	if !s.backoff {
		return max(s.retryIn, minRetry)
	}
	return backoff(max(s.retryIn, minBackoff), maxBackoff, fails)
}

// hold opens the stream, and reads n bytes a second after the response head, or nothing. It does
// not come back.
func (s *stream) hold(ctx context.Context, n int) {
	c, err := s.t.open(ctx, attempt{unread: true, trace: s.trace})
	if err != nil {
		if ctx.Err() == nil {
			s.o.failed(err)
		}
		return
	}
	defer c.Close()
	s.o.opened(c)

	if n == 0 {
		err = c.lastLook(ctx)
	} else {
		err = c.readSlowly(ctx, n)
	}
	if err != nil && (n == 0 || ctx.Err() == nil) {
		s.o.closed(err)
	}
}

// readSlowly reads n bytes a second until ctx or the connection ends.
func (c *conn) readSlowly(ctx context.Context, n int) (err error) {
	buf := make([]byte, n)
	for err == nil && sleep(ctx, time.Second) {
		_, err = c.Read(buf)
	}
	return err
}

// lastLook waits for the end of ctx. Then it reads the rest, to see whether the server has closed
// the connection. The error says how. It is nil if the connection is open.
func (c *conn) lastLook(ctx context.Context) error {
	if !c.stop() {
		return nil
	}
	<-ctx.Done()
	c.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
	_, err := io.Copy(io.Discard, c.Conn)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	if err == nil {
		err = io.EOF
	}
	return err
}
