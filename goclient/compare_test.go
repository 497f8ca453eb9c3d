package main

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"
)

var zero = time.UnixMilli(1_800_000_000_000)

func after(ms int) time.Time { return zero.Add(time.Duration(ms) * time.Millisecond) }

// opened makes a probe of a stream that was asked for at a time, in milliseconds.
func probeAt(asked int) *probe {
	return &probe{
		target:  &target{url: &url.URL{Scheme: "http", Host: "proxy"}},
		started: after(asked),
		begin:   after(asked),
		header:  http.Header{"Cache-Control": {"no-cache"}, "X-Accel-Buffering": {"no"}},
		conns:   []lifetime{{asked: after(asked), from: after(asked)}},
		last:    after(asked),
	}
}

// add adds an event with a key that came at a time.
func (p *probe) add(key string, ms int) {
	newest := &p.conns[len(p.conns)-1]
	a := arrival{key: key, at: after(ms), opened: newest.asked, fresh: newest.events == 0}
	newest.events++
	p.arrivals = append(p.arrivals, a)
	p.heardLocked(a.at)
}

// A feed says when event n comes on a stream that was asked for at a time, and its key.
type feed func(asked, n int) (key string, ms int)

// sharedFeed sends the same events to all, one a second.
func sharedFeed(late int) feed {
	return func(asked, n int) (string, int) {
		number := (asked+999)/1000 + n
		return fmt.Sprint("shared ", number), number*1000 + late
	}
}

// countingFeed counts anew for each connection.
func countingFeed(asked, n int) (string, int) { return fmt.Sprint(n), asked + n*1000 }

// randomFeed has random ids.
func randomFeed(asked, n int) (string, int) { return fmt.Sprint(asked, " ", n), asked + n*1000 }

// clockFeed sends the time in seconds, in step with the connection.
func clockFeed(asked, n int) (string, int) {
	return fmt.Sprint((asked + n*1000) / 1000), asked + n*1000
}

// sameFeed sends the same data each time, without ids.
func sameFeed(asked, n int) (string, int) { return "tick", asked + n*1000 }

// historyFeed sends the newest events anew to each connection, then one each five seconds.
func historyFeed(asked, n int) (string, int) {
	const history = 20
	number := asked/5000 - history + n + 1
	return fmt.Sprint("shared ", number), max(asked, number*5000)
}

// burstFeed sends three events each five seconds.
func burstFeed(asked, n int) (string, int) { return fmt.Sprint(asked, " ", n), asked + n/3*5000 + n%3 }

// hold sends what comes in pieces of eight.
func (f feed) hold() feed {
	return func(asked, n int) (string, int) {
		key, _ := f(asked, n)
		_, ms := f(asked, n/8*8+7)
		return key, ms
	}
}

// watch gives what a probe sees of the feed until the end.
func (f feed) watch(asked, end int) *probe {
	p := probeAt(asked)
	for n := 0; ; n++ {
		key, ms := f(asked, n)
		if ms > end {
			return p
		}
		p.add(key, ms)
	}
}

// doctorOf makes a doctor that has watched for 35 s. by is what the proxy makes of the feed.
func doctorOf(by, f feed) *doctor {
	const end = 35000
	return &doctor{
		plain:   by.watch(713, end),
		zipped:  by.watch(2239, end),
		direct:  f.watch(0, end),
		directZ: f.watch(1471, end),
		start:   zero, end: after(end), suspected: true,
	}
}

func (d *doctor) wrongTexts() (texts []string) {
	for _, n := range d.notes {
		if n.Wrong {
			texts = append(texts, n.Text+" => "+n.Change)
		}
	}
	return texts
}

func TestDoctorAccusesNoHealthyStream(t *testing.T) {
	for name, f := range map[string]feed{
		"shared": sharedFeed(0), "counting": countingFeed, "random": randomFeed,
		"clock": clockFeed, "same": sameFeed, "bursts": burstFeed, "history": historyFeed,
	} {
		for _, isAlone := range []bool{false, true} {
			d := doctorOf(f, f)
			d.zipped.header.Set("Content-Encoding", "gzip")
			if isAlone {
				d.direct, d.directZ = nil, nil
			}
			d.diagnose()
			if wrong := d.wrongTexts(); len(wrong) > 0 {
				t.Errorf("%s, without direct stream %v: %q", name, isAlone, wrong)
			}
		}
	}
}

func TestDoctorTellsWhoseEventsTheyAre(t *testing.T) {
	for _, tt := range []struct {
		name string
		by   feed
		feed feed
		want relation
	}{
		{"shared", sharedFeed(2), sharedFeed(0), shared},
		{"shared, late", sharedFeed(200), sharedFeed(0), shared},
		{"shared, as late as the streams began", sharedFeed(713), sharedFeed(0), shared},
		{"shared, held", sharedFeed(0).hold(), sharedFeed(0), shared},
		{"shared, and newcomers get the history", historyFeed, historyFeed, shared},
		{"counting", countingFeed, countingFeed, own},
		{"random", randomFeed, randomFeed, own},
		{"clock", clockFeed, clockFeed, own},
		{"same", sameFeed, sameFeed, own},
	} {
		if got := doctorOf(tt.by, tt.feed).source(); got != tt.want {
			t.Errorf("%s: got %v, want %v", tt.name, got, tt.want)
		}
	}
	silent := doctorOf(randomFeed, randomFeed)
	for _, p := range silent.probes() {
		p.arrivals = p.arrivals[:1]
	}
	if got := silent.source(); got != unknown {
		t.Errorf("one event each: got %v, want %v", got, unknown)
	}
}

func TestDoctorComparesEvents(t *testing.T) {
	ownText := "each connection has its own events, .. "
	for _, tt := range []struct {
		name string
		by   feed
		feed feed
		want string // what is wrong, or what is not
	}{
		{"shared, late", sharedFeed(200), sharedFeed(0), "each event comes about 200 ms later than " +
			"on the direct stream; the proxy does it .. => .. HAProxy: option http-no-delay"},
		{"shared, held", sharedFeed(0).hold(), sharedFeed(0), "came late, .. bundles; the " +
			"proxy does it .. => nginx: proxy_buffering off"},
		{"own, held", feed(randomFeed).hold(), randomFeed, ownText + "on the direct stream .. " +
			"bundles; the proxy does it .. => nginx: proxy_buffering off"},
		{"own, lost", func(asked, n int) (string, int) { return randomFeed(asked, n*4) }, randomFeed,
			ownText + "9 came, on the direct stream 35 in the same time; the proxy does it"},
		{"own, late", randomFeed, randomFeed, ""},
	} {
		d := doctorOf(tt.by, tt.feed)
		d.heldBack()
		wrong := d.wrongTexts()
		if tt.want == "" {
			if len(wrong) > 0 || !strings.HasSuffix(d.notes[0].Text, "a constant delay cannot be seen") {
				t.Errorf("%s: got %+v", tt.name, d.notes)
			}
			continue
		}
		if len(wrong) != 1 || !matches(wrong[0], tt.want) {
			t.Errorf("%s: got %q, want %q", tt.name, wrong, tt.want)
		}
	}
}

// Bundles may be the server's way. Only settings of products that were recognised are named.
func TestDoctorAdvisesLittleOnBundles(t *testing.T) {
	for _, tt := range []struct {
		found []*product
		want  string
	}{
		{nil, "nothing, or use -direct"},
		{[]*product{nginx}, "nothing, or use -direct\nnginx: " + nginx.cures[buffering]},
	} {
		d := doctorOf(burstFeed, burstFeed)
		d.direct, d.directZ, d.found = nil, nil, tt.found
		d.heldBack()
		if got := d.notes[0]; got.Wrong || got.Change != tt.want {
			t.Errorf("got %+v, want %q", got, tt.want)
		}
	}
}

func TestDoctorNeedsTenEventsToCompare(t *testing.T) {
	sparse := func(asked, n int) (string, int) { return randomFeed(asked, n*5) }
	d := doctorOf(feed(sparse).hold(), sparse)
	d.heldBack()
	if len(d.wrongTexts()) > 0 || !strings.Contains(d.notes[0].Text, "ten on both sides") {
		t.Errorf("got %+v", d.notes)
	}
}

// A stream that is closed again and again gets fewer events, and that is no buffering.
func TestDoctorTakesNoCutForBuffering(t *testing.T) {
	for _, isCut := range []bool{false, true} {
		seldom := func(asked, n int) (string, int) { return randomFeed(asked, n*3) }
		d := doctorOf(seldom, randomFeed)
		if isCut {
			d.plain.conns[0].err = io.EOF
		}
		d.heldBack()
		if isAccused := len(d.wrongTexts()) > 0; isAccused == isCut {
			t.Errorf("cut %v: got %+v", isCut, d.notes)
		}
	}
}

func TestDoctorNotesBundlesWithoutDirect(t *testing.T) {
	held := feed(randomFeed).hold()
	d := doctorOf(held, held)
	d.direct, d.directZ = nil, nil
	d.heldBack()
	if len(d.wrongTexts()) > 0 || !strings.Contains(d.notes[0].Text, "events come together, ") ||
		!strings.Contains(d.notes[0].Text, "run again with -direct URL") {
		t.Errorf("got %+v", d.notes)
	}
}

func TestDoctorHintsAtDelayByHeaders(t *testing.T) {
	d := doctorOf(randomFeed, randomFeed)
	d.plain.opening.answer, d.zipped.opening.answer = 208*time.Millisecond, 203*time.Millisecond
	d.slowStart()
	if len(d.notes) != 1 || d.notes[0].Wrong || !matches(d.notes[0].Text+d.notes[0].Change,
		"the headers took 203 ms at least .. may be as late .. HAProxy: option http-no-delay") {
		t.Errorf("got %+v", d.notes)
	}
}

// A stream is not compressed because it comes late.
func TestDoctorAccusesCompressionWhereThereIsSome(t *testing.T) {
	for _, encoding := range []string{"", "gzip"} {
		for _, f := range []feed{sharedFeed(0), randomFeed} {
			d := doctorOf(f, f)
			d.zipped = f.hold().watch(2239, 35000)
			d.zipped.header.Set("Content-Encoding", encoding)
			d.compressed(false)
			wrong := d.wrongTexts()
			isAccused := len(wrong) == 1 && matches(wrong[0],
				"asks for gzip .. events .. than without .. the proxy does it .. => nginx: gzip off")
			isAccused = isAccused || len(wrong) == 1 && matches(wrong[0],
				"asks for gzip .. events came, without it .. the proxy does it .. => nginx: gzip off")
			if isAccused != (encoding == "gzip") {
				t.Errorf("encoding %q: got %q", encoding, wrong)
			}
		}
	}
}

func TestDoctorGoesByPreciseTimesInIDs(t *testing.T) {
	for _, unit := range []int64{1, 1000} {
		d := doctorOf(randomFeed, randomFeed)
		d.direct, d.directZ = nil, nil
		for i := range d.plain.arrivals {
			a := &d.plain.arrivals[i]
			made := a.at.UnixMilli() - int64(i%3)*400 - 7
			a.made = time.UnixMilli(made / unit * unit)
		}
		d.heldBack()
		if isHeld := len(d.wrongTexts()) > 0; isHeld != (unit == 1) {
			t.Errorf("times in units of %d ms: %+v", unit, d.notes)
		}
	}
}

func TestDoctorIgnoresWhatReconnectsBrought(t *testing.T) {
	t0 := time.Now()
	at := func(s int) time.Time { return t0.Add(time.Duration(s) * time.Second) }
	ref := &probe{arrivals: []arrival{{key: "1", at: at(1)}, {key: "2", at: at(2)},
		{key: "3", at: at(3)}, {key: "4", at: at(9)}, {key: "5", at: at(10)}, {key: "5", at: at(11)}}}
	p := &probe{
		conns: []lifetime{{from: at(0), to: at(2), err: io.EOF}, {from: at(8)}},
		arrivals: []arrival{{key: "1", at: at(2), opened: at(0)},
			{key: "2", at: at(8), opened: at(8), fresh: true}, {key: "1", at: at(20), opened: at(8)}},
	}
	got := p.lateness(ref, at(30))
	if want := []time.Duration{time.Second, 21 * time.Second}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v: event 1 a second late, event 4 never", got, want)
	}
}

// A busy machine makes some events late, and all only by a little.
func TestDoctorBelievesNoBusyMachine(t *testing.T) {
	ms := func(late ...int) (l []time.Duration) {
		for _, n := range late {
			l = append(l, time.Duration(n)*time.Millisecond)
		}
		return l
	}
	for _, tt := range []struct {
		late  []time.Duration
		pause int
		want  bool
	}{
		{ms(0, 1, 1, 1, 160, 190), 0, true},
		{ms(0, 1, 1, 1, 160, 190), 20, false},
		{ms(190, 200, 200, 201, 205), 20, true},
		{ms(0, 0, 300, 400, 900), 200, false},
		{ms(0, 0, 3000, 4000, 9000), 200, true},
	} {
		d := &doctor{usualPause: time.Duration(tt.pause) * time.Millisecond}
		if got := d.judge(tt.late).isHeld(); got != tt.want {
			t.Errorf("%v with pauses of %d ms: got %v", tt.late, tt.pause, got)
		}
	}
}

func TestDoctorRanksPauses(t *testing.T) {
	pauses := []time.Duration{3, 9, 1, 7, 5}
	longest, usual := rankPauses(pauses, 5*time.Second)
	if longest != 9 || usual != 5 {
		t.Errorf("got %d and %d, want 9, and 5 at each second second", longest, usual)
	}
	longest, usual = rankPauses([]time.Duration{4}, 5*time.Second)
	if longest != 4 || usual != 0 {
		t.Errorf("got %d and %d, want 4, and 0 as it came once", longest, usual)
	}
}
