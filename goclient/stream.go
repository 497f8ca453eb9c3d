package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
	"unicode"
)

const (
	defaultRetry = 3 * time.Second // before the server has said another
	minBackoff   = 500 * time.Millisecond
	maxBackoff   = 10 * time.Second // of a stream that has to come back, and half as much again
	maxEvent     = 1 << 20          // bytes; a larger event is dropped and counted
	maxID        = 1 << 10          // bytes of an id with which a stream with backoff comes back
	slowBytes    = 4                // a second, of a slow stream
)

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

// A stream is opened again whenever it ends, after the time that the server last said.
// EventSource gives up permanently at an answer other than 200 and 204; this tries again.
type stream struct {
	t       *target
	o       observer
	once    bool          // end at the first close
	backoff bool          // wait longer after each failure, spread at random, and outlive even a 204
	silence time.Duration // after which the connection is given up; 0: never
	retryIn time.Duration
	p       parser
	at      time.Time // when what is being parsed came
	any     bool      // an event has come on this connection
}

func newStream(t *target, o observer) *stream {
	s := &stream{t: t, o: o, retryIn: defaultRetry}
	s.p = parser{h: s, limit: maxEvent}
	return s
}

// keepOpen opens the stream whenever it has ended, until ctx ends or it is not to come back.
func (s *stream) keepOpen(ctx context.Context) {
	for fails := 0; ; {
		err := s.connection(ctx, &fails)
		if ctx.Err() != nil || s.once || errors.Is(err, errNoContent) && !s.backoff {
			return
		}
		if !sleep(ctx, s.wait(fails)) {
			return
		}
	}
}

// connection opens the stream and reads it to the end, and counts failures in a row: a connection
// without an event is one.
func (s *stream) connection(ctx context.Context, fails *int) error {
	c, err := s.t.open(ctx, s.id())
	if err != nil {
		*fails++
		if ctx.Err() == nil {
			s.o.failed(err)
		}
		return err
	}
	defer c.Close()
	s.o.opened(c)
	s.p.start()
	s.any = false
	for err == nil {
		if s.silence > 0 {
			c.SetReadDeadline(time.Now().Add(s.silence))
		}
		err = c.read(s.feed)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = fmt.Errorf("silent for %v", s.silence)
	}
	if *fails++; s.any {
		*fails = 0
	}
	if ctx.Err() == nil {
		s.o.closed(err)
	}
	return err
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

func (s *stream) event(ev *event)       { s.any = true; s.o.event(ev, s.at) }
func (s *stream) comment(text []byte)   { s.o.comment(text, s.at) }
func (s *stream) retry(d time.Duration) { s.retryIn = d }
func (s *stream) dropped()              { s.o.dropped() }

// wait gives the time until the next attempt: as browsers do the same each time; or at least half a
// second, doubled with each failure in a row up to maxBackoff, and up to half as much again, drawn
// at random.
func (s *stream) wait(fails int) time.Duration {
	if !s.backoff {
		return s.retryIn
	}
	d := max(s.retryIn, minBackoff)
	if fails > 0 {
		d = max(d, defaultRetry)
	}
	return backoff(d, maxBackoff, fails)
}

// hold opens the stream and reads n bytes a second of it, or nothing. It does not come back.
func (s *stream) hold(ctx context.Context, n int) {
	c := &conn{start: time.Now()}
	err := c.dial(ctx, s.t, s.t.url, holdBuffer)
	if err == nil {
		if _, err = io.WriteString(c, s.t.head(s.t.url, nil)); err != nil {
			c.Close()
		}
	}
	if err != nil {
		s.o.failed(fmt.Errorf("opening a stream that is not read: %w", plain(err)))
		return
	}
	defer c.Close()
	s.o.opened(c)
	if n == 0 {
		err = c.lastLook(ctx)
	} else {
		for buf := make([]byte, n); err == nil && sleep(ctx, time.Second); {
			_, err = c.Read(buf)
		}
	}
	if err != nil && (n == 0 || ctx.Err() == nil) {
		s.o.closed(err)
	}
}

// lastLook waits for the end of ctx and then reads what is there, to see whether the server has
// closed the connection: the error says how, and is nil where it has not.
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
