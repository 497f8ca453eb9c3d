package main

import (
	"context"
	"fmt"
	"hash/maphash"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	doctorDuration = 35 * time.Second // longer than the usual heartbeat

	lateAfter  = 150 * time.Millisecond // held back; HAProxy does so for 200 ms
	together   = 20 * time.Millisecond  // events that come so close came in one bundle
	maxArrival = 20000                  // events of a stream that the doctor looks at
)

// A note is one sentence of the doctor's report, and what to change.
type note struct {
	Wrong  bool   `json:"wrong"`
	Text   string `json:"text"`
	Change string `json:"change,omitempty"`
}

// A probe observes one of the streams that the doctor watches.
type probe struct {
	name  string
	begin time.Time // of the run, then of the first connection

	connect, head, first time.Duration // of the first connection
	header               http.Header
	proto                string
	err                  error // the last failure
	arrivals             []arrival
	conns                []lifetime
	beats                int
	silence              time.Duration // the longest
	last                 time.Time     // anything at all
	said                 string        // the last comment
}

// An arrival is that of one event.
type arrival struct {
	key   string // the id, or a hash of the data
	at    time.Time
	made  time.Time // what the id says, if it is a time in milliseconds
	fresh bool      // the first of its connection: sent because of that
}

// A lifetime is that of one connection.
type lifetime struct {
	from, to time.Time
	silent   time.Duration // at its end
	events   int
	err      error // nil while it lasts
}

var keySeed = maphash.MakeSeed()

func (p *probe) opened(c *conn) {
	now := time.Now()
	if len(p.conns) == 0 {
		p.connect, p.head, p.header, p.proto = c.connect, c.head, c.resp.Header, c.resp.Proto
		p.begin = c.start
	}
	p.conns = append(p.conns, lifetime{from: now})
	p.last = now
}

func (p *probe) failed(err error) { p.err = err }

func (p *probe) closed(err error) {
	c := &p.conns[len(p.conns)-1]
	c.to = time.Now()
	c.silent, c.err = c.to.Sub(p.last), err
}

func (p *probe) event(ev *event, at time.Time) {
	p.heard(at)
	c := &p.conns[len(p.conns)-1]
	if p.first == 0 {
		p.first = at.Sub(p.begin)
	}
	a := arrival{at: at, fresh: c.events == 0}
	c.events++
	if !ev.hasID {
		a.key = fmt.Sprintf("#%x", maphash.Bytes(keySeed, ev.data))
	} else {
		a.key = string(ev.id)
		if n, ok := decimal(ev.id); ok && at.Sub(time.UnixMilli(int64(n))).Abs() < 24*time.Hour {
			a.made = time.UnixMilli(int64(n))
		}
	}
	if len(p.arrivals) < maxArrival {
		p.arrivals = append(p.arrivals, a)
	}
}

func (p *probe) comment(text []byte, at time.Time) {
	p.heard(at)
	p.beats++
	p.said = printable(text)
}

// heard notes that something came, and thus how long nothing did.
func (p *probe) heard(at time.Time) {
	if d := at.Sub(p.last); d > p.silence {
		p.silence = d
	}
	p.last = at
}

func (p *probe) received(int) {}
func (p *probe) dropped()     {}

// times gives when each event came first.
func (p *probe) times() map[string]time.Time {
	times := map[string]time.Time{}
	for _, a := range p.arrivals {
		if _, ok := times[a.key]; !ok {
			times[a.key] = a.at
		}
	}
	return times
}

// lateness gives how much later than in ref the events came; for one that never came, how long it
// had been due at the end. What a new connection brought at once does not count.
func (p *probe) lateness(ref map[string]time.Time, end time.Time) (late []time.Duration) {
	if len(p.conns) == 0 {
		return nil
	}
	came := map[string]arrival{}
	for _, a := range p.arrivals {
		if _, ok := came[a.key]; !ok {
			came[a.key] = a
		}
	}
	for key, due := range ref {
		if a, ok := came[key]; ok && !a.fresh {
			late = append(late, a.at.Sub(due))
		} else if c := p.conns[len(p.conns)-1]; !ok && c.err == nil && due.After(c.from) {
			late = append(late, end.Sub(due))
		}
	}
	return late
}

// byClock gives how much later than the quickest each event came by the time that its id says.
// It needs no clock in common with the server.
func (p *probe) byClock() (late []time.Duration) {
	for _, a := range p.arrivals {
		if !a.fresh && !a.made.IsZero() {
			late = append(late, a.at.Sub(a.made))
		}
	}
	if len(late) == 0 {
		return nil
	}
	slices.Sort(late)
	for i := len(late) - 1; i >= 0; i-- {
		late[i] -= late[0]
	}
	return late
}

// bundles counts the bundles of two or more events, and the events in them.
func (p *probe) bundles() (bundles, events int) {
	for i, n := 1, 1; i <= len(p.arrivals); i++ {
		if i < len(p.arrivals) && p.arrivals[i].at.Sub(p.arrivals[i-1].at) < together {
			n++
			continue
		}
		if n > 1 {
			bundles++
			events += n
		}
		n = 1
	}
	return bundles, events
}

// A doctor has watched the same stream in several ways.
type doctor struct {
	plain, zipped   *probe
	direct, directZ *probe // without the proxy, or nil
	heartbeat       time.Duration
	end             time.Time
	notes           []note
}

// runDoctor watches until ctx ends and says what it found.
func runDoctor(ctx context.Context, o *options, stdout, stderr io.Writer) int {
	duration := o.duration
	if duration == 0 {
		duration = doctorDuration
	}
	ctx, stop := withDuration(ctx, duration)
	defer stop()

	fmt.Fprintf(stderr, "watching %s for %v\n", o.url, duration)
	d := &doctor{heartbeat: o.heartbeat}
	start := time.Now()
	var probes []*probe
	var wg sync.WaitGroup
	watch := func(name string, t target, gzip bool) *probe {
		t.gzip = gzip
		p := &probe{name: name, begin: start}
		probes = append(probes, p)
		wg.Add(1)
		go func() {
			defer wg.Done()
			newStream(&t, p).keepOpen(ctx)
		}()
		return p
	}
	d.plain = watch("plain", *o.target, false)
	d.zipped = watch("asking for gzip, as browsers do", *o.target, true)
	if o.directTarget != nil {
		d.direct = watch("direct, plain", *o.directTarget, false)
		d.directZ = watch("direct, asking for gzip", *o.directTarget, true)
	}
	wg.Wait()
	d.end = time.Now()
	for _, p := range probes {
		if len(p.conns) > 0 && p.conns[len(p.conns)-1].err == nil {
			p.heard(d.end) // not from the server, but its silence ends here
		}
	}
	d.diagnose()
	if o.json {
		printJSON(stdout, map[string]any{"url": o.url, "findings": d.notes})
	} else {
		d.write(stdout, o.url, d.end.Sub(start), probes)
	}
	return exitStatus(slices.ContainsFunc(d.notes, func(n note) bool { return n.Wrong }))
}

func (d *doctor) write(w io.Writer, url string, watched time.Duration, probes []*probe) {
	fmt.Fprintf(w, "%s, watched for %s\n", url, secs(watched))
	for _, p := range probes {
		fmt.Fprintf(w, "  %s: %s\n", p.name, p.facts())
	}
	before := ""
	for _, n := range d.notes {
		mark := "ok"
		if n.Wrong {
			mark = "WRONG"
		} else if n.Change != "" {
			mark = "note"
		}
		fmt.Fprintf(w, "%-5s  %s\n", mark, n.Text)
		if n.Change != "" && n.Change != before {
			change := strings.ReplaceAll(n.Change, "\n", "\n           or ")
			fmt.Fprintf(w, "       change %s\n", change)
		}
		before = n.Change
	}
}

// facts gives what was measured.
func (p *probe) facts() string {
	if len(p.conns) == 0 {
		return fmt.Sprintf("never opened (%v)", p.err)
	}
	enc, first := p.encoding(), "never"
	if enc == "" {
		enc = "none"
	}
	if p.first > 0 {
		first = secs(p.first)
	}
	return fmt.Sprintf("headers %s, first event %s, events %d, heartbeats %d, longest silence %s, "+
		"closes %d, compression %s", secs(p.head), first, len(p.arrivals), p.beats,
		secs(p.silence), len(p.ended()), enc)
}

func (p *probe) encoding() string { return p.header.Get("Content-Encoding") }

// ended gives the connections that were closed.
func (p *probe) ended() (ended []lifetime) {
	for _, c := range p.conns {
		if c.err != nil {
			ended = append(ended, c)
		}
	}
	return ended
}

// say adds a finding that needs no change, wrongly one that does, and advise one that should.
func (d *doctor) say(format string, args ...any) {
	d.notes = append(d.notes, note{Text: fmt.Sprintf(format, args...)})
}

func (d *doctor) wrongly(change, format string, args ...any) {
	d.notes = append(d.notes, note{true, fmt.Sprintf(format, args...), change})
}

func (d *doctor) advise(change, format string, args ...any) {
	d.notes = append(d.notes, note{false, fmt.Sprintf(format, args...), change})
}
