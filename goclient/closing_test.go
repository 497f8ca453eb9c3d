package main

import (
	"errors"
	"fmt"
	"io"
	"testing"
	"time"
)

// live adds a connection that sent events a second apart and was closed by the server.
func (p *probe) live(asked int, events, silence time.Duration) {
	p.conns = append(p.conns, lifetime{asked: after(asked), from: after(asked)})
	p.last = after(asked)
	for at := time.Duration(0); at < events; at += time.Second {
		p.add(fmt.Sprint(asked, at), asked+int(at/time.Millisecond))
	}
	newest := &p.conns[len(p.conns)-1]
	newest.to = p.last.Add(silence)
	newest.silent, newest.err = silence, io.EOF
}

// endless gives a probe without any connection yet.
func endless() *probe {
	p := probeAt(0)
	p.conns = nil
	return p
}

func TestDoctorTellsLimitsApart(t *testing.T) {
	const s = time.Second
	steady := countingFeed
	for _, tt := range []struct {
		name     string
		product  *product
		events   []time.Duration // for which events came, of each connection
		silences []time.Duration // at its end
		said     string
		direct   bool // there is a direct stream, which is not closed
		want     string
	}{
		{"silence", nginx, []time.Duration{5 * s, 9 * s}, []time.Duration{60 * s, 60 * s}, "", true,
			"closed in an orderly way 2 times, after 64.0 s to 68.0 s, each time after 60.0 s of silence: " +
				"a limit on silence; the proxy does it (nginx) .. => nginx: proxy_read_timeout 1h"},
		{"silence, once", haproxy, []time.Duration{5 * s}, []time.Duration{60 * s}, "", true,
			"that is after 60.0 s of silence: a limit on silence; .. => HAProxy: timeout server 1h"},
		{"age", caddy, []time.Duration{30 * s, 30 * s}, []time.Duration{s / 2, s / 3}, "", true,
			"whatever was sent: a limit on the whole response; .. => Caddy: no write in the timeouts"},
		{"age, and nginx has no such limit", nginx, []time.Duration{30 * s, 30 * s},
			[]time.Duration{s / 2, s / 3}, "", true,
			"a limit on the whole response; .. => what else stands between .. no such setting in nginx"},
		{"age of the server", nil, []time.Duration{30 * s, 30 * s}, []time.Duration{s / 2, s / 3}, "", false,
			"a limit on the whole response; run again with -direct => the server: no write timeout"},
		{"silent throughout", nil, []time.Duration{0, 0}, []time.Duration{60 * s, 60 * s}, "", false,
			"a limit on silence (or on the whole response: nothing was sent that could tell => the server: heartbeats"},
		{"at once", nil, []time.Duration{0, 0, 0}, []time.Duration{0, 0, 0}, "", false,
			"the stream is ended at once, 3 times without an event; => the handler"},
		{"full", nil, []time.Duration{0, 0}, []time.Duration{0, 0}, "full, 9 streams", false,
			"ends each stream at once and says: full, 9 streams => what the server says"},
		{"restarts", nil, []time.Duration{3 * s, 30 * s}, []time.Duration{s / 2, s / 3}, "", false,
			"closed in an orderly way 2 times, after 2.5 s to 29.3 s; => nothing, if something was restarted"},
	} {
		d := doctorOf(steady, steady)
		if tt.product != nil {
			d.found = []*product{tt.product}
		}
		if !tt.direct {
			d.direct, d.directZ = nil, nil
		}
		d.plain, d.zipped = endless(), endless()
		d.plain.said = tt.said
		for i := range tt.events {
			d.plain.live(i*100_000, tt.events[i], tt.silences[i])
		}
		d.closes()
		wrong := d.wrongTexts()
		if len(wrong) != 1 || !matches(wrong[0], tt.want) {
			t.Errorf("%s: got %q, want %q", tt.name, wrong, tt.want)
		}
	}
}

// The commonest limit on silence is 60 s: ok is said only where it would have been seen, or
// cannot strike.
func TestDoctorSaysOKWhereLimitWouldShow(t *testing.T) {
	for _, tt := range []struct {
		watched, silence time.Duration
		want             string
	}{
		{75 * time.Second, 75 * time.Second, "ok"},
		{35 * time.Second, 30 * time.Second, "ok"},
		{35 * time.Second, 2 * time.Second, "ok"},
		{55 * time.Second, 50 * time.Second, "note"},
		{10 * time.Second, 2 * time.Second, "note"},
	} {
		d := doctorOf(randomFeed, randomFeed)
		d.plain.silence, d.end = tt.silence, d.plain.begin.Add(tt.watched)
		d.closes()
		if got := d.notes[0].mark(); got != tt.want {
			t.Errorf("watched %v, silent for %v: got %s, want %s", tt.watched, tt.silence, got, tt.want)
		}
	}
}

func TestDoctorWatchesSilentStreamLonger(t *testing.T) {
	for _, tt := range []struct {
		watched, silent, duration time.Duration
		want                      bool
	}{
		{34 * time.Second, time.Second, 0, false},
		{36 * time.Second, time.Second, 0, true},
		{36 * time.Second, 36 * time.Second, 0, false},
		{74 * time.Second, 74 * time.Second, 0, false},
		{76 * time.Second, 76 * time.Second, 0, true},
		{11 * time.Second, 11 * time.Second, 10 * time.Second, true},
		{36 * time.Second, time.Second, time.Minute, false},
	} {
		p := probeAt(0)
		now := time.Now()
		p.last = now.Add(-tt.silent)
		d := &doctor{plain: p, start: now.Add(-tt.watched)}
		if got := d.hasSeenEnough(tt.duration); got != tt.want {
			t.Errorf("after %v, silent for %v, -duration %v: got %v", tt.watched, tt.silent, tt.duration, got)
		}
	}
	closed := endless()
	closed.live(0, 0, time.Minute)
	d := &doctor{plain: closed, start: time.Now().Add(-time.Minute)}
	if !d.hasSeenEnough(0) {
		t.Error("goes on though the silent stream was closed")
	}
}

func TestDoctorNamesStreamThatIsNotReopened(t *testing.T) {
	for _, isBack := range []bool{false, true} {
		d := doctorOf(randomFeed, randomFeed)
		d.plain = endless()
		d.plain.live(0, time.Second, 0)
		d.plain.failed(errors.New("answered 503"))
		if isBack {
			d.plain.conns = append(d.plain.conns, lifetime{})
		}
		d.notReopened()
		wrong := d.wrongTexts()
		isNamed := len(wrong) == 1 && matches(wrong[0], "did not open again: answered 503")
		if isNamed == isBack {
			t.Errorf("is back %v: got %q", isBack, wrong)
		}
	}
}
