package main

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// settings says how each proxy is told not to do what the doctor found.
var settings = map[string][]string{
	"buffering": {
		`nginx: proxy_buffering off; proxy_http_version 1.1; proxy_set_header Connection ""; in ` +
			`the stream's location, and no proxy_ignore_headers X-Accel-Buffering`,
		"Caddy: flush_interval -1 in reverse_proxy",
		"HAProxy: option http-no-delay, and no filter that stores responses",
		"the server: flush after the headers and after each event",
	},
	"compression": {
		"nginx: gzip off; in the stream's location, or text/event-stream out of gzip_types",
		"Caddy: no encode for the stream's path",
		"HAProxy: text/event-stream out of compression type",
		"the server: flush the compressor after each event, or do not compress the stream",
	},
	"timeout": {
		"nginx: proxy_read_timeout 1h; in the stream's location",
		"Caddy: no read_timeout in the transport, no stream_timeout in reverse_proxy",
		"HAProxy: timeout server 1h; timeout client 1h (timeout tunnel is for WebSockets)",
		"the server: heartbeats more often than it or the proxy gives up; no write timeout",
	},
}

// change gives the settings of a kind for the hop that is to blame, or all where it is not known.
func (d *doctor) change(kind string, directToo bool) string {
	lines := settings[kind]
	server := len(lines) - 1
	if d.direct != nil && directToo {
		return lines[server]
	}
	by := strings.ToLower(d.plain.header.Get("Server") + " " + d.plain.header.Get("Via"))
	for _, l := range lines[:server] {
		if name, _, _ := strings.Cut(l, ":"); strings.Contains(by, strings.ToLower(name)) {
			return l
		}
	}
	if d.direct != nil {
		lines = lines[:server]
	}
	return strings.Join(lines, "\n")
}

// hop says who does what the doctor found.
func (d *doctor) hop(directToo bool) string {
	name := d.plain.header.Get("Server")
	switch {
	case d.direct == nil:
		return "run again with -direct URL to see whether the proxy or the server does it"
	case directToo:
		return "the server does it: the direct stream shows it too"
	case name != "":
		return "the proxy does it (Server: " + name + "): the direct stream does not show it"
	}
	return "the proxy does it: the direct stream does not show it"
}

// diagnose adds the findings in the order in which a person would look.
func (d *doctor) diagnose() {
	if d.direct != nil && len(d.direct.conns) == 0 {
		d.wrongly("-direct", "the direct stream does not open: %v", d.direct.err)
		d.direct, d.directZ = nil, nil
	}
	if len(d.plain.conns) == 0 {
		d.notOpened()
		return
	}
	d.slowStart()
	held := d.heldBack()
	if !held {
		d.squeezed()
		d.lostBeats()
	}
	d.closes()
	d.headers()
}

// notOpened is all that can be said of a stream that was never there.
func (d *doctor) notOpened() {
	err := d.plain.err
	if err == nil || strings.Contains(err.Error(), "took too long") {
		d.wrongly(d.change("buffering", false), "no headers came in %s; %s",
			secs(d.end.Sub(d.plain.begin)), d.hop(false))
		return
	}
	d.wrongly("what answers at this URL: a browser needs 200 with Content-Type text/event-stream",
		"the stream does not open: %v; %s", err, d.hop(false))
}

// slowStart looks at the time to the headers and to the first event.
func (d *doctor) slowStart() {
	const slow = time.Second
	p, q := d.plain, d.direct
	if p.head > slow {
		directToo := q != nil && q.head > slow
		d.wrongly(d.change("buffering", directToo), "the headers took %s; %s", secs(p.head),
			d.hop(directToo))
	} else if q != nil && q.first > 0 && p.first > q.first+slow {
		d.wrongly(d.change("buffering", false), "the first event took %s, on the direct stream %s",
			secs(p.first), secs(q.first))
	}
}

// heldBack says whether the events came later than they could have, or in bundles.
func (d *doctor) heldBack() bool {
	late, by := d.plain.byClock(), "later than the quickest, by the times in their ids"
	var directLate []time.Duration
	if d.direct != nil {
		directLate = d.direct.byClock()
		late, by = d.plain.lateness(d.direct.times(), d.end), "later than on the direct stream"
	}
	bundles, bundled := d.plain.bundles()
	switch {
	case isLate(directLate):
		d.wrongly(d.change("buffering", true), "%s later than the quickest, by the times in "+
			"their ids; %s", lateText(directLate), d.hop(true))
	case isLate(late):
		d.wrongly(d.change("buffering", false), "%s %s%s; %s", lateText(late), by,
			bundleText(bundles, bundled), d.hop(false))
	case len(late) > 0:
		d.say("events are not held back: the latest came %s %s",
			secs(max(0, slices.Max(late))), by)
		return false
	case bundles > 1 && bundled*2 > len(d.plain.arrivals):
		d.wrongly(d.change("buffering", false), "events come together%s, or the server sends them "+
			"so; %s", bundleText(bundles, bundled), d.hop(false))
	case len(d.plain.arrivals) < 2:
		d.advise("nothing, if the server has sent none", "too few events came to say more")
		return false
	default:
		d.say("events do not come in bundles")
		return false
	}
	return true
}

// squeezed says whether compression holds back events that come in time without it.
func (d *doctor) squeezed() {
	ref := d.plain
	if d.direct != nil {
		ref = d.direct
	}
	if len(d.zipped.conns) == 0 {
		d.wrongly(d.change("compression", false), "the stream does not open when a client asks "+
			"for gzip as browsers do: %v", d.zipped.err)
		return
	}
	late := d.zipped.lateness(ref.times(), d.end)
	directToo := d.directZ != nil && isLate(d.directZ.lateness(ref.times(), d.end))
	if isLate(late) {
		d.wrongly(d.change("compression", directToo), "when a client asks for gzip as browsers "+
			"do, %s later than without; %s", lateText(late), d.hop(directToo))
	} else if d.zipped.encoding() != "" {
		d.say("compression (%s) does not hold events back", d.zipped.encoding())
	}
}

// closes tells a limit on silence from one on the whole response by what the connections that
// were closed have in common.
func (d *doctor) closes() {
	p, ended := d.plain, d.plain.ended()
	if len(ended) == 0 {
		d.say("never closed; the longest silence was %s, so a time limit above that may exist",
			secs(p.silence))
		return
	}
	var ages, silent []time.Duration
	events := 0
	for _, c := range ended {
		ages, silent = append(ages, c.to.Sub(c.from)), append(silent, c.silent)
		events += c.events
	}
	slices.Sort(ages)
	slices.Sort(silent)
	shortest, longest := ages[0], ages[len(ages)-1]
	directToo := d.direct != nil && len(d.direct.ended()) > 0
	text := fmt.Sprintf("closed %d times, after %s to %s", len(ended), secs(shortest),
		secs(longest))
	switch {
	case events == 0 && longest < time.Second && p.said != "":
		d.wrongly("what the server says", "the server ends each stream at once and says: %s",
			p.said)
	case silent[0] > p.silence && silent[0] > lateAfter:
		d.wrongly(d.change("timeout", directToo), "%s, each time after %s of silence: a limit on "+
			"silence; %s", text, secs(silent[len(silent)/2]), d.hop(directToo))
	case len(ended) > 1 && longest-shortest < longest/5:
		d.wrongly(d.change("timeout", directToo), "%s whatever was sent: a limit on the whole "+
			"response; %s", text, d.hop(directToo))
	default:
		d.wrongly("nothing, if something was restarted", "%s; %s", text, d.hop(directToo))
	}
}

// lostBeats looks for heartbeats that came to the direct stream only, or not at all.
func (d *doctor) lostBeats() {
	p, q := d.plain, d.direct
	switch watched := d.end.Sub(p.begin); {
	case q != nil && q.beats > p.beats+1 && len(p.ended()) == 0:
		d.wrongly(d.change("buffering", false), "%d heartbeats came, on the direct stream %d",
			p.beats, q.beats)
	case p.beats > 0:
		d.say("heartbeats come: %d", p.beats)
	case d.heartbeat > 0 && watched > d.heartbeat:
		d.advise("the server: a comment each 15 to 30 s", "no heartbeat in %s: a proxy with a "+
			"limit on silence will cut the stream when events pause", secs(watched))
	}
}

// headers looks at the response head; nginx keeps X-Accel-Buffering to itself.
func (d *doctor) headers() {
	h, server := d.plain.header, d.plain.header
	if d.direct != nil && d.direct.header != nil {
		server = d.direct.header
	}
	cache := strings.ToLower(h.Get("Cache-Control"))
	if !strings.Contains(cache, "no-cache") && !strings.Contains(cache, "no-store") {
		d.advise("the server: Cache-Control: no-cache, no-transform", "Cache-Control is %q: a "+
			"cache may keep the stream", cache)
	}
	if h.Get("Content-Length") != "" {
		d.wrongly("the server: no Content-Length", "Content-Length is %s: the stream ends there",
			h.Get("Content-Length"))
	}
	if server.Get("X-Accel-Buffering") == "" && (d.direct != nil || h.Get("Server") == "") {
		d.advise("the server: X-Accel-Buffering: no", "X-Accel-Buffering is missing: an nginx "+
			"before this buffers unless it is told otherwise")
	}
	if d.plain.proto == "HTTP/1.0" {
		d.advise("what answers with HTTP/1.0", "the answer is HTTP/1.0: it cannot be chunked")
	}
}

// isLate says whether enough events came too late to call it holding back.
func isLate(late []time.Duration) bool {
	n := countLate(late)
	return n >= 2 && n*5 >= len(late)
}

func countLate(late []time.Duration) (n int) {
	for _, d := range late {
		if d > lateAfter {
			n++
		}
	}
	return n
}

func lateText(late []time.Duration) string {
	slices.Sort(late)
	return fmt.Sprintf("%d of %d events came late, half of all at least %s and the latest %s",
		countLate(late), len(late), secs(late[len(late)/2]), secs(late[len(late)-1]))
}

func bundleText(bundles, events int) string {
	switch bundles {
	case 0:
		return ""
	case 1:
		return fmt.Sprintf(", %d of them at once", events)
	}
	return fmt.Sprintf(", %d of them in %d bundles", events, bundles)
}

// secs gives d as a person reads it.
func secs(d time.Duration) string {
	if d < time.Second {
		return fmt.Sprintf("%.3g ms", float64(d)/1e6)
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}
