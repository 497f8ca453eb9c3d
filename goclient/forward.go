package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
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

// A forwarder sends the data of one stream's events on. It is the observer of that stream.
type forwarder struct {
	method, url, token string
	client             http.Client
	log                *slog.Logger
	next               chan []byte // room for one: the newest that waits
	stats              forwarded   // Replaced and Dropped are the stream's, the rest is send's
	upstream           string      // how the stream is, so that each change is logged once
}

func newForwarder(method, url, token string, log *slog.Logger) *forwarder {
	return &forwarder{method: method, url: url, token: token, log: log,
		client: http.Client{Timeout: 10 * time.Second}, next: make(chan []byte, 1)}
}

// run sends what comes until ctx ends.
func (f *forwarder) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case data := <-f.next:
			err := f.send(ctx, data)
			if ctx.Err() != nil {
				return
			}
			f.note(err)
		}
	}
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
	return send(&f.client, req)
}

// note counts, and logs when failing begins or ends.
func (f *forwarder) note(err error) {
	s := &f.stats
	switch {
	case err != nil:
		s.Failed++
		if !s.failing {
			f.log.Warn("forwarding fails, trying again with each event", "url", f.url, "err", err)
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
	f.next <- bytes.Clone(ev.data)
}

func (f *forwarder) opened(*conn) { f.become("open", nil) }

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

func (f *forwarder) received(int)              {}
func (f *forwarder) comment([]byte, time.Time) {}
