package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http/httptrace"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	doctorDuration = 35 * time.Second // longer than the usual heartbeat
	silentDuration = 75 * time.Second // longer than the commonest limit on silence
	quiet          = 20 * time.Second // a stream that is silent for longer is watched for longer
	watchStep      = 50 * time.Millisecond
)

// staggers are the times after which the streams are opened. No usual interval between events
// divides a difference of two, so events of two connections have the same time by chance only.
var staggers = []time.Duration{
	0,
	713 * time.Millisecond,
	1471 * time.Millisecond,
	2239 * time.Millisecond,
}

// A note is one sentence of the doctor's report, and what to change.
type note struct {
	Wrong  bool   `json:"wrong"`
	Text   string `json:"text"`
	Change string `json:"change,omitempty"`
}

// A doctor watches the same stream in several ways.
type doctor struct {
	url             string // without a password
	plain, zipped   *probe
	direct, directZ *probe // without the proxy, or nil
	heartbeat       time.Duration
	start, end      time.Time
	longestPause    time.Duration // of this process
	usualPause      time.Duration
	notes           []note

	suspected bool // found has been looked for
	found     []*product
}

// runDoctor watches the stream and says what it found.
func runDoctor(ctx context.Context, o *options, stdout, stderr io.Writer) int {
	d := newDoctor(o)
	limit := fmt.Sprintf("%v, or up to %v while it is silent", doctorDuration, silentDuration)
	if o.duration > 0 {
		limit = o.duration.String()
	}
	fmt.Fprintf(stderr, "watching %s for %s\n", d.url, limit)

	probes := d.probes()
	d.watch(ctx, o.duration)
	d.diagnose()

	if o.json {
		printJSON(stdout, map[string]any{"url": d.url, "findings": d.notes})
	} else {
		d.write(stdout, probes)
	}
	isWrong := func(n note) bool { return n.Wrong }
	return exitStatus(slices.ContainsFunc(d.notes, isWrong))
}

func newDoctor(o *options) *doctor {
	d := &doctor{url: o.target.url.Redacted(), heartbeat: o.heartbeat}
	d.plain = newProbe("plain", o.target, false)
	d.zipped = newProbe("asking for gzip, as browsers do", o.target, true)
	if o.directTarget != nil {
		d.direct = newProbe("direct, plain", o.directTarget, false)
		d.directZ = newProbe("direct, asking for gzip", o.directTarget, true)
	}
	for _, p := range d.probes() {
		p.limit = o.maxEventBytes
	}
	return d
}

func newProbe(name string, t *target, gzip bool) *probe {
	own := *t
	own.gzip = gzip
	own.quotes = true
	p := &probe{name: name, target: &own}
	if t.tls != nil {
		own.tls = t.tls.Clone()
	} else {
		own.tls = new(tls.Config)
	}
	own.tls.VerifyConnection = p.encrypts
	return p
}

// probes gives the streams in the order of the report.
func (d *doctor) probes() []*probe {
	if d.direct == nil {
		return []*probe{d.plain, d.zipped}
	}
	return []*probe{d.plain, d.zipped, d.direct, d.directZ}
}

// watch opens the streams one after another and watches them until it has seen enough, or ctx
// ends. The times between them show which events belong to a connection. duration 0 means as
// long as is needed.
func (d *doctor) watch(ctx context.Context, duration time.Duration) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	d.start = time.Now()

	order := d.probes()
	if d.direct != nil {
		order = []*probe{d.direct, d.plain, d.directZ, d.zipped}
	}
	var wg sync.WaitGroup
	begin := func(f func()) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			f()
		}()
	}
	for i, p := range order {
		p, wait := p, staggers[i]
		if duration > 0 {
			wait = min(wait, time.Duration(i)*duration/10)
		}
		begin(func() { p.run(ctx, wait) })
	}
	begin(func() { d.longestPause, d.usualPause = watchPauses(ctx) })

	for !d.hasSeenEnough(duration) && sleep(ctx, watchStep) {
	}
	stop()
	wg.Wait()
	d.end = time.Now()
	for _, p := range order {
		p.finish(d.end)
	}
}

// run keeps the stream open until ctx ends.
func (p *probe) run(ctx context.Context, wait time.Duration) {
	if !sleep(ctx, wait) {
		return
	}
	p.started = time.Now()
	s := newStream(p.target, p)
	s.hop = p.requests
	s.p.limit = p.limit
	s.keepOpen(httptrace.WithClientTrace(ctx, p.trace()))
}

// hasSeenEnough tells whether the watch can end. Streams that do not open need no watching.
func (d *doctor) hasSeenEnough(duration time.Duration) bool {
	isDead := d.plain.neverOpened()
	wasTried := d.plain.wasTried()
	if d.direct != nil {
		isDead = isDead || d.direct.neverOpened()
		wasTried = wasTried && d.direct.wasTried()
	}
	if isDead && wasTried {
		return true
	}

	now := time.Now()
	watched := now.Sub(d.start)
	if duration > 0 {
		return watched >= duration
	}
	if watched < doctorDuration {
		return false
	}
	return watched >= silentDuration || !d.plain.isSilent(now)
}

func (d *doctor) write(w io.Writer, probes []*probe) {
	fmt.Fprintf(w, "%s, watched for %s\n", d.url, secs(d.end.Sub(d.start)))
	for _, p := range probes {
		fmt.Fprintf(w, "  %s: %s\n", p.name, p.facts())
	}

	before := ""
	for _, n := range d.notes {
		fmt.Fprintf(w, "%-5s  %s\n", n.mark(), n.Text)
		if n.Change != "" && n.Change != before {
			change := strings.ReplaceAll(n.Change, "\n", "\n           or ")
			fmt.Fprintf(w, "       change %s\n", change)
		}
		before = n.Change
	}
}

func (n *note) mark() string {
	switch {
	case n.Wrong:
		return "WRONG"
	case n.Change != "":
		return "note"
	}
	return "ok"
}

// say adds a finding that needs no change, wrongly one that does, and advise one that should.
func (d *doctor) say(format string, args ...any) {
	d.notes = append(d.notes, note{Text: fmt.Sprintf(format, args...)})
}

func (d *doctor) wrongly(change, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	d.notes = append(d.notes, note{Wrong: true, Text: text, Change: change})
}

func (d *doctor) advise(change, format string, args ...any) {
	d.notes = append(d.notes, note{Text: fmt.Sprintf(format, args...), Change: change})
}
