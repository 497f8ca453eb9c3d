package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync/atomic"
	"time"
)

// forwarded is what -forward came to.
type forwarded struct {
	Sent     int  `json:"sent"`
	Failed   int  `json:"failed"`
	Replaced int  `json:"replaced"`
	Dropped  int  `json:"dropped"` // too large
	failing  bool // the newest attempt failed
}

// The pause before what could not be sent is tried again, doubled up to the second.
const (
	minPause = 250 * time.Millisecond
	maxPause = 2 * time.Second

	newsTime  = 3 * time.Second // an event need not be repeated for so long
	quietTime = time.Minute     // trouble that comes and goes is logged that often
)

// A forwarder sends the data of one stream's events on. It is the observer of that stream. It holds
// one event only, the newest, and tries until it is taken, a newer one takes its place, or the
// stream has ended; so data may arrive twice, if the answer was lost. What is refused (4xx, or a
// redirect that would lose the data) is not tried again, as it would be refused again. With PUT,
// which may be repeated, each comment of the stream sends the newest once more, unless it has just
// come: so a receiver that calls old news stale knows that they are still the newest. A comment
// before the first event of a connection does not: it may be that of a full server that turns the
// client away.
type forwarder struct {
	method, url, token string
	client             http.Client
	log                *slog.Logger
	newest             []byte      // on this connection of the stream; nil: none yet
	newestAt           time.Time   // when it came
	next               chan []byte // room for one: the newest that waits
	repeats            bool        // what waits, or waited last, was sent before
	stats              forwarded   // Replaced and Dropped are the stream's, the rest is send's
	upstream           string      // how the stream is: open, closed or failing
	sending, streaming teller      // of run, and of the stream
	isOpen             atomic.Bool // it is; else nobody knows whether the newest still is
}

func newForwarder(method, url, token string, log *slog.Logger) *forwarder {
	f := &forwarder{method: method, url: url, token: token, log: log, next: make(chan []byte, 1),
		sending: teller{log: log, quiet: quietTime}, streaming: teller{log: log, quiet: quietTime}}
	f.client = http.Client{
		Timeout: 10 * time.Second,
		// A dialer of its own means HTTP/1: a dead HTTP/2 connection would be used again.
		Transport: &http.Transport{Proxy: http.ProxyFromEnvironment,
			DialContext: new(net.Dialer).DialContext},
		CheckRedirect: func(req *http.Request, via []*http.Request) error {
			if req.Method != method || len(via) > maxRedirect { // 301 makes GET of PUT
				return http.ErrUseLastResponse
			}
			return nil
		},
	}
	return f
}

// run sends what comes until ctx ends.
func (f *forwarder) run(ctx context.Context) {
	for ctx.Err() == nil {
		var data []byte
		select {
		case <-ctx.Done():
			return
		case data = <-f.next:
		}
		for fails := 1; data != nil && !f.try(ctx, data); fails++ {
			sleep(ctx, backoff(minPause, maxPause, fails))
			data = f.waiting(data)
		}
	}
}

// try sends the data and says whether that is done with.
func (f *forwarder) try(ctx context.Context, data []byte) bool {
	err := f.send(ctx, data)
	if ctx.Err() != nil {
		return true
	}
	f.note(err)
	return err == nil || errors.As(err, new(refusedError))
}

// waiting gives what is to be sent in place of data that could not be: the same if nothing newer
// came and the stream is still open.
func (f *forwarder) waiting(data []byte) []byte {
	select {
	case data = <-f.next:
		return data
	default:
	}
	if f.isOpen.Load() {
		return data
	}
	return nil
}

func (f *forwarder) send(ctx context.Context, data []byte) error {
	req, err := http.NewRequestWithContext(ctx, f.method, f.url, bytes.NewReader(data))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	if f.token != "" {
		req.Header.Set("Authorization", "Bearer "+f.token)
	}
	if f.method == http.MethodPut { // not sent: says that it may be repeated
		req.Header["Idempotency-Key"] = []string{} // on a new connection, if a kept one just died
	}
	return send(&f.client, req)
}

// note counts, and logs when failing begins or ends.
func (f *forwarder) note(err error) {
	f.stats.failing = err != nil
	if err != nil {
		f.stats.Failed++
		text := "forwarding fails, trying again"
		if errors.As(err, new(refusedError)) {
			text = "forwarding is refused, waiting for the next event"
		}
		f.sending.bad(text, err)
		return
	}
	f.stats.Sent++
	f.sending.good("forwarding works again")
}

// event leaves the data for run, in place of what still waits there.
func (f *forwarder) event(ev *event, now time.Time) {
	select {
	case <-f.next:
		if !f.repeats {
			f.stats.Replaced++
		}
	default:
	}
	f.repeats = false
	f.streaming.good("stream open")
	f.newest, f.newestAt = bytes.Clone(ev.data), now
	f.next <- f.newest
}

func (f *forwarder) comment(_ []byte, now time.Time) {
	if f.method != http.MethodPut || f.newest == nil || now.Sub(f.newestAt) < newsTime {
		return
	}
	select {
	case f.next <- f.newest:
		f.repeats = true
	default: // it waits there still
	}
}

func (f *forwarder) opened(*conn) {
	if f.upstream == "" { // later only an event shows that all is well
		f.log.Info("stream open")
	}
	f.newest = nil
	f.become("open")
}

func (f *forwarder) closed(err error) {
	if err == io.EOF {
		err = errors.New("ended by the server")
	}
	f.become("closed")
	f.streaming.bad("stream closed, coming back", err)
}

func (f *forwarder) failed(err error) {
	f.become("failing")
	text := "stream failing, coming back"
	if errors.As(err, new(answerError)) {
		text = "stream refused, coming back"
	}
	f.streaming.bad(text, err)
}

func (f *forwarder) become(state string) {
	f.upstream = state
	f.isOpen.Store(state == "open")
}

func (f *forwarder) dropped() {
	f.stats.Dropped++
	if f.stats.Dropped == 1 {
		f.log.Warn("dropping events over 1 MiB")
	}
}

func (f *forwarder) received(int) {}

// A teller logs when trouble begins, each form of it once, and when it is over. Trouble that comes
// and goes all the time is logged once in quiet, each form of it.
type teller struct {
	log   *slog.Logger
	quiet time.Duration
	told  []string             // of the trouble there is; nil: all is well
	last  map[string]time.Time // when each form was told
}

func (t *teller) bad(text string, err error) {
	if slices.Contains(t.told, text) || time.Since(t.last[text]) < t.quiet {
		return
	}
	if t.last == nil {
		t.last = map[string]time.Time{}
	}
	t.last[text] = time.Now()
	t.told = append(t.told, text)
	t.log.Warn(text, "err", err)
}

func (t *teller) good(text string) {
	if t.told != nil {
		t.told = nil
		t.log.Info(text)
	}
}
