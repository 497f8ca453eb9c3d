package main

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"hash/maphash"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"sync"
	"time"
)

const (
	maxArrivals = 20000                 // events of a stream that the doctor looks at
	together    = 20 * time.Millisecond // events that come so close came in one bundle
)

// A probe observes one of the streams that the doctor watches.
type probe struct {
	name    string
	target  *target
	limit   int // of the data of one event, in bytes
	started time.Time

	mu       sync.Mutex // guards following; the doctor reads it without once the watch is over
	attempt  steps      // the one that runs
	begin    time.Time  // of the first connection
	opening  steps      // of the first connection
	first    time.Duration
	header   http.Header
	proto    string
	failures int
	err      error // the last failure
	failing  steps // of the last failure
	arrivals []arrival
	conns    []lifetime
	beats    []time.Time
	silence  time.Duration // the longest
	last     time.Time     // anything at all
	said     string        // the begin of the last comment
	drops    int           // events over -max-event-bytes
}

// An arrival is that of one event.
type arrival struct {
	key    string // the id and a hash of the data
	at     time.Time
	made   time.Time // what the id says, if it is a time in milliseconds
	opened time.Time // when the connection asked for the stream
	fresh  bool      // of the first burst of its connection: sent because of that
}

// A lifetime is that of one connection.
type lifetime struct {
	asked    time.Time // when the request was sent
	from, to time.Time
	silent   time.Duration // at its end
	events   int
	err      error // nil while it lasts
}

// steps are what an attempt to open a stream has done so far, and how long each step took.
type steps struct {
	lookupBegin, lookupEnd time.Time
	dialBegin, dialEnd     time.Time
	encrypted              bool
	url                    *url.URL // that is requested, after hops redirects
	hops                   int

	lookup, dial, handshake, answer time.Duration
}

var keySeed = maphash.MakeSeed()

// trace notes the steps of connecting.
func (p *probe) trace() *httptrace.ClientTrace {
	return &httptrace.ClientTrace{
		DNSStart:     func(httptrace.DNSStartInfo) { p.lookupBegins(time.Now()) },
		DNSDone:      func(i httptrace.DNSDoneInfo) { p.lookupEnds(time.Now(), i.Err) },
		ConnectStart: func(_, _ string) { p.dialBegins(time.Now()) },
		ConnectDone:  func(_, _ string, err error) { p.dialEnds(time.Now(), err) },
	}
}

// requests notes a request to u. One after another in the same attempt is a redirect.
func (p *probe) requests(u *url.URL) {
	p.mu.Lock()
	defer p.mu.Unlock()
	hops := 0
	if p.attempt.url != nil {
		hops = p.attempt.hops + 1
	}
	p.attempt = steps{url: u, hops: hops}
}

func (p *probe) lookupBegins(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.attempt.lookupBegin = now
}

func (p *probe) lookupEnds(now time.Time, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		return
	}
	p.attempt.lookupEnd = now
	p.attempt.lookup = now.Sub(p.attempt.lookupBegin)
}

// dialBegins notes the first of the addresses that are tried.
func (p *probe) dialBegins(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.attempt.dialBegin.IsZero() {
		p.attempt.dialBegin = now
	}
}

func (p *probe) dialEnds(now time.Time, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err == nil {
		p.attempt.dialEnd = now
		p.attempt.dial = now.Sub(p.attempt.dialBegin)
	}
}

// encrypts notes the end of the TLS handshake, or nearly so.
func (p *probe) encrypts(tls.ConnectionState) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.attempt.encrypted = true
	return nil
}

func (p *probe) opened(c *conn) {
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()

	connected := c.start.Add(c.connect)
	p.attempt.answer = c.head - c.connect
	_, encrypted := c.Conn.(*tls.Conn)
	if encrypted && !p.attempt.dialEnd.IsZero() {
		p.attempt.handshake = connected.Sub(p.attempt.dialEnd)
	}

	if len(p.conns) == 0 {
		p.begin, p.opening = c.start, p.attempt
		p.header, p.proto = c.resp.Header, c.resp.Proto
	}
	p.conns = append(p.conns, lifetime{asked: connected, from: now})
	p.attempt = steps{}
	p.last = now
}

func (p *probe) failed(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.failures++
	p.err, p.failing = err, p.attempt
	p.attempt = steps{}
}

func (p *probe) closed(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := &p.conns[len(p.conns)-1]
	c.to = time.Now()
	c.silent, c.err = c.to.Sub(p.last), err
}

func (p *probe) event(ev *event, at time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	before := p.last
	p.heardLocked(at)

	c := &p.conns[len(p.conns)-1]
	a := arrival{key: keyOf(ev), at: at, made: timeOf(ev, at), opened: c.asked}
	a.fresh = c.events == 0
	if c.events > 0 && len(p.arrivals) > 0 {
		previous := p.arrivals[len(p.arrivals)-1]
		a.fresh = previous.fresh && at.Sub(before) < together
	}

	if p.first == 0 {
		p.first = at.Sub(p.begin)
	}
	c.events++
	if len(p.arrivals) < maxArrivals {
		p.arrivals = append(p.arrivals, a)
	}
}

// keyOf gives what events have in common that are the same on two streams.
func keyOf(ev *event) string {
	sum := maphash.Bytes(keySeed, ev.data)
	if !ev.hasID {
		return fmt.Sprintf("#%x", sum)
	}
	return fmt.Sprintf("%s#%x", ev.id, sum)
}

// timeOf gives the time that the id says, or zero if it is none.
func timeOf(ev *event, now time.Time) time.Time {
	n, ok := decimal(ev.id)
	if !ok || !ev.hasID {
		return time.Time{}
	}
	made := time.UnixMilli(int64(n))
	if now.Sub(made).Abs() > 24*time.Hour {
		return time.Time{}
	}
	return made
}

func (p *probe) comment(text []byte, at time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.heardLocked(at)
	p.said = shorten(text)
	if len(p.beats) < maxArrivals {
		p.beats = append(p.beats, at)
	}
}

// shorten gives the begin of a comment, which may be as long as the largest event.
func shorten(text []byte) string {
	if len(text) <= maxText {
		return printable(text)
	}
	return printable(bytes.ToValidUTF8(text[:maxText], nil)) + " …"
}

// heardLocked notes that something came, and thus how long nothing did.
func (p *probe) heardLocked(at time.Time) {
	p.silence = max(p.silence, at.Sub(p.last))
	p.last = at
}

func (p *probe) received(int) {}

// dropped counts an event over -max-event-bytes. It came, although it is not compared.
func (p *probe) dropped() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.heardLocked(time.Now())
	p.drops++
	p.conns[len(p.conns)-1].events++
}

// finish ends the silence of a stream that is open, though nothing came.
func (p *probe) finish(end time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.isOpenLocked() {
		p.heardLocked(end)
	}
}

func (p *probe) isOpenLocked() bool {
	n := len(p.conns)
	return n > 0 && p.conns[n-1].err == nil
}

// wasTried tells whether the first attempt is over.
func (p *probe) wasTried() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.conns) > 0 || p.failures > 0
}

// neverOpened tells whether the first attempt failed, and none after it opened the stream.
func (p *probe) neverOpened() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.conns) == 0 && p.failures > 0
}

// isSilent tells whether the stream is open and nothing has come for a while.
func (p *probe) isSilent(now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.isOpenLocked() && now.Sub(p.last) > quiet
}

// lastURL gives the URL behind the redirects, of the first connection, or else of the last attempt.
func (p *probe) lastURL() *url.URL {
	for _, at := range []steps{p.opening, p.attempt, p.failing} {
		if at.url != nil {
			return at.url
		}
	}
	return p.target.url
}

func (p *probe) isOpened() bool { return len(p.conns) > 0 }

func (p *probe) encoding() string {
	encoding := strings.ToLower(p.header.Get("Content-Encoding"))
	if encoding == "identity" {
		return ""
	}
	return encoding
}

// ended gives the connections that were closed.
func (p *probe) ended() (ended []lifetime) {
	for _, c := range p.conns {
		if c.err != nil {
			ended = append(ended, c)
		}
	}
	return ended
}

// beatsSince counts the heartbeats from a moment on.
func (p *probe) beatsSince(from time.Time) (n int) {
	for _, at := range p.beats {
		if at.After(from) {
			n++
		}
	}
	return n
}

// facts gives what was measured.
func (p *probe) facts() string {
	if p.started.IsZero() {
		return "not tried"
	}
	if !p.isOpened() {
		return "never opened: " + p.failure()
	}
	encoding, first := p.encoding(), "never"
	if encoding == "" {
		encoding = "none"
	}
	if len(p.arrivals) > 0 {
		first = secs(p.first)
	}
	dropped := ""
	if p.drops > 0 {
		dropped = fmt.Sprintf(", dropped %d", p.drops)
	}
	return fmt.Sprintf("headers %s, first event %s, events %d%s, heartbeats %d, longest silence "+
		"%s, closes %d, compression %s", secs(p.headTime()), first, len(p.arrivals), dropped,
		len(p.beats), secs(p.silence), len(p.ended()), encoding)
}

// headTime is from the first dial to the response head, of the first connection.
func (p *probe) headTime() time.Duration {
	asked := p.conns[0].asked.Sub(p.begin)
	return asked + p.opening.answer
}

// failure gives the last failure as a clause.
func (p *probe) failure() string {
	if p.err == nil {
		return "no answer came before the end"
	}
	return p.err.Error()
}

// answerHeader gives the header of the stream, or of the answer that was none, or nil.
func (p *probe) answerHeader() http.Header {
	if p.header != nil {
		return p.header
	}
	return p.answer().header
}

// status gives that of the answer that was no stream, or 0.
func (p *probe) status() int { return p.answer().status }

func (p *probe) answer() *openError {
	failed := new(openError)
	errors.As(p.err, &failed)
	return failed
}
