package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
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
	cut := io.ErrUnexpectedEOF
	steady := countingFeed
	for _, tt := range []struct {
		name     string
		product  *product
		events   []time.Duration // for which events came, of each connection
		silences []time.Duration // at its end
		said     string
		direct   bool  // there is a direct stream, which is not closed
		end      error // of each connection
		want     string
	}{
		{"silence", nginx, []time.Duration{5 * s, 9 * s}, []time.Duration{60 * s, 60 * s}, "", true, io.EOF,
			"closed in an orderly way 2 times, after 64.0 s to 68.0 s, each time after 60.0 s of silence: " +
				"a limit on silence; the proxy does it (nginx) .. => nginx: proxy_read_timeout 1h"},
		{"silence, once", haproxy, []time.Duration{5 * s}, []time.Duration{60 * s}, "", true, io.EOF,
			"that is after 60.0 s of silence: a limit on silence; .. => HAProxy: timeout server 1h"},
		{"age", caddy, []time.Duration{30 * s, 30 * s}, []time.Duration{s / 2, s / 3}, "", true, io.EOF,
			"whatever was sent: a limit on the whole response; .. => Caddy: no write in the timeouts"},
		{"age, and nginx has no such limit", nginx, []time.Duration{30 * s, 30 * s},
			[]time.Duration{s / 2, s / 3}, "", true, io.EOF,
			"a limit on the whole response; .. => what else stands between .. no such setting in nginx"},
		{"age of the server", nil, []time.Duration{30 * s, 30 * s}, []time.Duration{s / 2, s / 3}, "", false, cut,
			"a limit on the whole response; run again with -direct => the server: no write timeout"},
		{"silent throughout", nil, []time.Duration{0, 0}, []time.Duration{60 * s, 60 * s}, "", false, io.EOF,
			"a limit on silence (or on the whole response: nothing was sent that could tell => the server: heartbeats"},
		{"at once", nil, []time.Duration{0, 0, 0}, []time.Duration{0, 0, 0}, "", false, io.EOF,
			"the stream is ended at once, 3 times without an event; => the handler"},
		{"full", nil, []time.Duration{0, 0}, []time.Duration{0, 0}, "full, 9 streams", false, io.EOF,
			"ends each stream at once and says: full, 9 streams => what the server says"},
		{"restarts", nil, []time.Duration{3 * s, 30 * s}, []time.Duration{s / 2, s / 3}, "", false, cut,
			"closed uncleanly 2 times, after 2.5 s to 29.3 s; => nothing, if something was restarted"},
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
			d.plain.conns[i].err = tt.end
		}
		d.closes()
		wrong := d.wrongTexts()
		if len(wrong) != 1 || !matches(wrong[0], tt.want) {
			t.Errorf("%s: got %q, want %q", tt.name, wrong, tt.want)
		}
	}
}

// A server may send what it has and end: only an unclean end, or a proxy's, is a fault.
func TestDoctorNotesOrderlyEnds(t *testing.T) {
	const s = time.Second
	const alone = "the server ends its streams, or a proxy does, in an orderly way, 2 times after "
	for _, tt := range []struct {
		name          string
		event         time.Duration // for which events came
		silence       time.Duration // at the end
		direct, shown bool          // there is a direct stream, and it ends too
		want          string        // of the note; empty where it is wrong
	}{
		{"one event", s, s / 5, false, false, alone + "200 ms to 200 ms, each time after 200 ms of " +
			"silence; run again with -direct => nothing, if the server is meant to end them, or use"},
		{"a job", 3 * s, s / 5, false, false, alone + "2.2 s to 2.2 s; run again with -direct"},
		{"with a direct stream", 3 * s, s / 5, true, true, "the server ends its streams in an orderly " +
			"way, 2 times after 2.2 s to 2.2 s => nothing, if the server is meant to end them"},
		{"ended by the proxy", 3 * s, s / 5, true, false, ""},
	} {
		d := doctorOf(countingFeed, countingFeed)
		d.plain, d.zipped = endless(), endless()
		d.plain.live(0, tt.event, tt.silence)
		d.plain.live(100_000, tt.event, tt.silence)
		if !tt.direct {
			d.direct, d.directZ = nil, nil
		}
		if tt.shown {
			d.direct.live(100_000, tt.event, tt.silence)
		}

		d.closes()
		d.headers()
		wrong := d.wrongTexts()
		if tt.want == "" {
			if len(wrong) != 1 || !strings.Contains(wrong[0], "the proxy does it") {
				t.Errorf("%s: got %q", tt.name, wrong)
			}
			continue
		}
		n := d.notes[0]
		if len(wrong) > 0 || n.mark() != "note" || !matches(n.Text+" => "+n.Change, tt.want) {
			t.Errorf("%s: got %+v, want %q", tt.name, d.notes, tt.want)
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
