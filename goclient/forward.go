package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
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
)

// A forwarder sends the data of one stream's events on. It is the observer of that stream. It
// holds one event only, the newest, and tries until it is taken, a newer one takes its place, or the
// stream has ended; but what is refused (4xx) is not tried again, as it would be refused again. With PUT, which may
// be repeated, each comment of the stream sends the newest once more: so a receiver that calls
// old news stale knows that they are still the newest.
type forwarder struct {
	method, url, token string
	client             http.Client
	log                *slog.Logger
	newest             []byte      // on this connection of the stream; nil: none yet
	next               chan []byte // room for one: the newest that waits
	stats              forwarded   // Replaced and Dropped are the stream's, the rest is send's
	upstream           string      // how the stream is, so that each change is logged once
	isOpen             atomic.Bool // it is; else nobody knows whether the newest still is
}

func newForwarder(method, url, token string, log *slog.Logger) *forwarder {
	f := &forwarder{method: method, url: url, token: token, log: log, next: make(chan []byte, 1)}
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
	s := &f.stats
	switch {
	case err != nil:
		s.Failed++
		if !s.failing {
			f.log.Warn("forwarding fails, trying again", "url", f.url, "err", err)
		}
	case s.failing:
		f.log.Info("forwarding works again", "url", f.url, "failed", s.Failed)
	}
	s.failing = err != nil
	if err == nil {
		s.Sent++
	}
}

// event leaves the data for run, in place of what still waits there.
func (f *forwarder) event(ev *event, _ time.Time) {
	select {
	case <-f.next:
		f.stats.Replaced++
	default:
	}
	f.newest = bytes.Clone(ev.data)
	f.next <- f.newest
}

func (f *forwarder) comment([]byte, time.Time) {
	if f.method != http.MethodPut || f.newest == nil {
		return
	}
	select {
	case f.next <- f.newest:
	default: // it waits there still
	}
}

func (f *forwarder) opened(*conn) {
	f.newest = nil
	f.become("open", nil)
}

func (f *forwarder) closed(err error) {
	if err == io.EOF {
		err = fmt.Errorf("ended by the server")
	}
	f.become("closed", err)
}

func (f *forwarder) failed(err error) { f.become("failing", err) }

// become logs a change of the stream, and each only once.
func (f *forwarder) become(state string, err error) {
	if state == f.upstream {
		return
	}
	f.upstream = state
	f.isOpen.Store(state == "open")
	if err != nil {
		f.log.Warn("stream "+state+", coming back", "err", err)
		return
	}
	f.log.Info("stream " + state)
}

func (f *forwarder) dropped() {
	f.stats.Dropped++
	if f.stats.Dropped == 1 {
		f.log.Warn("dropping events over 1 MiB")
	}
}

func (f *forwarder) received(int) {}
