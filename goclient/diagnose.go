package main

import (
	"compress/gzip"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// A culprit is the hop that does what the doctor found.
type culprit int

const (
	notKnown   culprit = iota // there is no direct stream to compare with
	proxyDoes                 // something between here and the server
	serverDoes                // the server itself
)

// culprit tells who does what was found. directToo means that the direct stream shows it too.
func (d *doctor) culprit(directToo bool) culprit {
	switch {
	case d.direct == nil:
		return notKnown
	case directToo:
		return serverDoes
	}
	return proxyDoes
}

// blame says who does what was found.
func (d *doctor) blame(by culprit) string {
	switch by {
	case serverDoes:
		return "the server does it: the direct stream shows it too"
	case proxyDoes:
		names := d.suspectNames()
		if names != "" {
			names = " (" + names + ")"
		}
		return "the proxy does it" + names + ": the direct stream does not show it"
	}
	return "run again with -direct URL to see whether the proxy or the server does it"
}

// suspectNames gives the names of the products between here and the server.
func (d *doctor) suspectNames() string {
	var names []string
	for _, p := range d.suspects() {
		names = append(names, p.name)
	}
	return strings.Join(names, ", ")
}

// cure gives the settings against f, one a line, for the hop that does it.
func (d *doctor) cure(f fault, by culprit) string {
	server := "the server: " + serverCures[f]
	if by == serverDoes {
		return server
	}

	lines := curesOf(d.suspects(), f)
	if len(lines) == 0 {
		lines = d.curesOfAll(f)
	}
	if by == notKnown {
		lines = append(lines, server)
	}
	return strings.Join(lines, "\n")
}

// curesOfAll is for a fault of a product that is not known, or not of the product that is.
func (d *doctor) curesOfAll(f fault) []string {
	if len(d.suspects()) > 0 {
		return []string{"what else stands between, such as a load balancer; there is no such " +
			"setting in " + d.suspectNames()}
	}
	return curesOf(products, f)
}

// curesOf gives the settings of the products that can cause f.
func curesOf(products []*product, f fault) (lines []string) {
	for _, p := range products {
		line, ok := p.cure(f)
		if ok {
			lines = append(lines, line)
		}
	}
	return lines
}

// diagnose adds the findings in the order in which a person would look.
func (d *doctor) diagnose() {
	d.busy()
	if d.direct != nil && !d.direct.isOpened() {
		d.directNotOpened()
		return
	}
	if !d.plain.isOpened() {
		d.notOpened()
		return
	}
	d.slowStart()
	held := d.heldBack()
	d.compressed(held)
	if !held {
		d.lostBeats()
	}
	d.closes()
	d.drops()
	d.notReopened()
	d.headers()
}

// directNotOpened ends the diagnosis, as there is nothing to compare with.
func (d *doctor) directNotOpened() {
	if d.isTooEarly(d.direct) {
		d.endedTooEarly()
		return
	}
	o := d.direct.obstacle(d.end.Sub(d.direct.started))
	d.wrongly("-direct: "+d.changeFor(o, serverDoes), "the direct stream does not open: %s", o.text)
	if !d.plain.isOpened() {
		d.notOpened()
	}
}

// busy warns where this machine delayed what it measured.
func (d *doctor) busy() {
	isShort := d.end.Sub(d.start) < time.Second
	if isShort {
		return
	}
	if d.usualPause > lateAfter/10 || d.longestPause > lateAfter {
		d.advise("the load of this machine, or run sse-client on another", "this machine was "+
			"busy: sse-client did not run for up to %s; what is late by less than %s is not seen",
			secs(d.longestPause), secs(d.lateAfter()))
	}
}

// lateAfter is what counts as late. A busy machine makes events late itself.
func (d *doctor) lateAfter() time.Duration {
	return lateAfter + 5*d.usualPause
}

func (d *doctor) judge(late []time.Duration) lateness {
	return lateness{late: late, after: d.lateAfter()}
}

// heldBack tells whether the events came later than they could have, or in bundles.
func (d *doctor) heldBack() bool {
	if d.direct == nil {
		return d.heldBackAlone()
	}
	late := d.judge(d.direct.byClock())
	if late.isHeld() {
		d.wrongly(d.cure(buffering, serverDoes), "%s later than the quickest, by the times in "+
			"their ids; %s", late, d.blame(serverDoes))
		return true
	}

	switch d.source() {
	case shared:
		return d.heldBackByMatch()
	case own:
		return d.heldBackByShape()
	}
	d.advise("nothing, if the server has sent no more; else a longer -duration",
		"too few events came to say whether they are late: %d, on the direct stream %d",
		len(d.plain.arrivals), len(d.direct.arrivals))
	return false
}

// source tells whether all streams get the same events. The two direct streams tell best.
func (d *doctor) source() relation {
	if d.plain.sharesFew(d.direct) {
		return own
	}
	byDirect := d.directZ.relationOfTwins(d.direct)
	if byDirect != unknown {
		return byDirect
	}
	return d.plain.relationTo(d.direct)
}

// heldBackAlone goes by the times in the ids. Bundles alone are no fault: a server may send so.
func (d *doctor) heldBackAlone() bool {
	p := d.plain
	s := p.shapeFor(d.end.Sub(p.begin))
	late := d.judge(p.byClock())
	switch {
	case late.isHeld():
		d.wrongly(d.cure(buffering, notKnown), "%s later than the quickest, by the times in their "+
			"ids%s; %s", late, bundleText(s), d.blame(notKnown))
		return true
	case len(late.late) > 1:
		d.say("events are not held back: the latest came %s later than the quickest, by the "+
			"times in their ids", secs(late.latest()))
	case s.isBundled():
		cures := append([]string{"nothing, or use -direct"}, curesOf(d.suspects(), buffering)...)
		d.advise(strings.Join(cures, "\n"), "events come together%s: the server may send them "+
			"so; %s", bundleText(s), d.blame(notKnown))
	case len(p.arrivals) < 2:
		d.advise("nothing, if the server has sent no more", "too few events came to say whether "+
			"they are late")
	default:
		d.say("events do not come in bundles; only -direct URL can show more")
	}
	return false
}

// heldBackByMatch compares the time of each event with that on the direct stream.
func (d *doctor) heldBackByMatch() bool {
	late := d.judge(d.plain.lateness(d.direct, d.end))
	s := d.plain.shapeFor(d.end.Sub(d.plain.begin))
	switch {
	case len(late.late) == 0:
		d.advise("nothing, if the server has sent no more", "too few events came to say whether "+
			"they are late")
		return false
	case !late.isHeld():
		d.say("events are not held back: the latest came %s later than on the direct stream",
			secs(max(0, late.latest())))
		return false
	case late.isDelay() && late.allLate():
		d.wrongly(d.cure(delay, proxyDoes), "each event comes about %s later than on the direct "+
			"stream; %s", secs(late.half()), d.blame(proxyDoes))
	case late.isDelay():
		d.wrongly(d.cure(delay, proxyDoes), "events wait for up to %s%s; %s", secs(late.latest()),
			bundleText(s), d.blame(proxyDoes))
	default:
		d.wrongly(d.cure(buffering, proxyDoes), "%s later than on the direct stream%s; %s",
			late, bundleText(s), d.blame(proxyDoes))
	}
	return true
}

// heldBackByShape compares numbers and gaps, as each connection has its own events.
func (d *doctor) heldBackByShape() bool {
	s, ref := d.shapes(d.plain, d.direct)
	const why = "each connection has its own events, so only their number and gaps are compared: "
	counts := fmt.Sprintf("%d came, on the direct stream %d in the same time", s.events, ref.events)
	isCut := len(d.plain.ended()) > 0 // which is a reason for fewer events
	switch {
	case ref.events >= enough && s.events*2 < ref.events && !isCut:
		d.wrongly(d.cure(buffering, proxyDoes), why+"%s; %s", counts, d.blame(proxyDoes))
		return true
	case s.events < enough || ref.events < enough:
		d.advise("a longer -duration", why+"%s, and ten on both sides are needed", counts)
	case s.isMoreBundledThan(ref):
		d.wrongly(d.cure(buffering, proxyDoes), why+"%s%s; %s", counts, bundleText(s),
			d.blame(proxyDoes))
		return true
	default:
		d.say(why+"%s, with alike gaps; a constant delay cannot be seen", counts)
	}
	return false
}

// shapes gives the shapes of two streams in equal times from their beginnings.
func (d *doctor) shapes(p, ref *probe) (s, refShape shape) {
	length := min(d.end.Sub(p.conns[0].asked), d.end.Sub(ref.conns[0].asked))
	return p.shapeFor(length), ref.shapeFor(length)
}

// compressed says whether compression holds back events that come in time without it. held
// means that they do not.
func (d *doctor) compressed(held bool) {
	z := d.zipped
	if !z.isOpened() {
		d.gzipNotOpened()
		return
	}
	if d.gzipIsNone() {
		return
	}
	if z.encoding() == "" || held {
		return
	}

	ref := d.plain
	if d.direct != nil {
		ref = d.direct
	}
	text, isHeld := d.heldLikeNone(z, ref)
	if !isHeld {
		d.say("compression (%s) does not hold events back", z.encoding())
		return
	}
	by := d.culprit(d.directIsHeld())
	d.wrongly(d.cure(compression, by), "when a client asks for gzip as browsers do, %s; %s", text,
		d.blame(by))
}

// directIsHeld tells whether compression holds events back on the direct stream too.
func (d *doctor) directIsHeld() bool {
	if d.directZ == nil || !d.directZ.isOpened() || d.directZ.encoding() == "" {
		return false
	}
	_, isHeld := d.heldLikeNone(d.directZ, d.direct)
	return isHeld
}

// heldLikeNone compares a compressed stream with one that is not, and says what holds it back.
func (d *doctor) heldLikeNone(z, ref *probe) (text string, isHeld bool) {
	relation := z.relationTo(ref)
	if d.direct != nil && d.source() != unknown {
		relation = d.source()
	}
	if relation != own {
		late := d.judge(z.lateness(ref, d.end))
		if !late.isHeld() {
			return "", false
		}
		return late.String() + " later than without", true
	}

	s, refShape := d.shapes(z, ref)
	text = fmt.Sprintf("%d events came, without it %d in the same time%s", s.events,
		refShape.events, bundleText(s))
	isFewer := refShape.events >= enough && s.events*2 < refShape.events
	isBundled := s.events >= enough && refShape.events >= enough && s.isMoreBundledThan(refShape)
	return text, isFewer || isBundled
}

// gzipNotOpened is for a stream that opens only for clients that do not ask for gzip.
func (d *doctor) gzipNotOpened() {
	if d.isTooEarly(d.zipped) {
		return
	}
	o := d.zipped.obstacle(d.end.Sub(d.zipped.started))
	by := d.culprit(d.directZ != nil && !d.directZ.isOpened())
	change := o.change
	if change == "" {
		change = d.cure(compression, by)
	}
	d.wrongly(o.prefix+change, "the stream does not open when a client asks for gzip as browsers "+
		"do: %s; %s", o.text, d.blame(by))
}

// gzipIsNone reports an answer that says gzip and has something else.
func (d *doctor) gzipIsNone() bool {
	isNone := func(c lifetime) bool { return errors.Is(c.err, gzip.ErrHeader) }
	if !slices.ContainsFunc(d.zipped.ended(), isNone) {
		return false
	}
	directToo := d.directZ != nil && slices.ContainsFunc(d.directZ.ended(), isNone)
	by := d.culprit(directToo)
	d.wrongly("what sets Content-Encoding: gzip: it must compress the body too", "when a client "+
		"asks for gzip as browsers do, the answer says Content-Encoding: gzip and its body is "+
		"none; %s", d.blame(by))
	return true
}

// lostBeats looks for heartbeats that came to the direct stream only, or not at all.
func (d *doctor) lostBeats() {
	p, q := d.plain, d.direct
	watched := d.end.Sub(p.begin)
	if q != nil && len(p.ended()) == 0 {
		// The direct stream's heartbeats may be out of step.
		came, usual := p.beatsSince(p.conns[0].from), q.beatsSince(p.conns[0].from)
		if usual > came+1 && usual > came*3/2 {
			d.wrongly(d.cure(buffering, proxyDoes), "%d heartbeats came, on the direct stream "+
				"%d; %s", came, usual, d.blame(proxyDoes))
			return
		}
	}
	if p.broughtNothing() {
		return // closes says so
	}
	if len(p.beats) > 0 {
		d.say("heartbeats come: %d", len(p.beats))
		return
	}
	if d.heartbeat > 0 && watched > d.heartbeat && p.silence > d.heartbeat/2 {
		d.advise("the server: a comment each 15 to 30 s", "no heartbeat in %s: a proxy with a "+
			"limit on silence will cut the stream when events pause", secs(watched))
	}
}

// broughtNothing tells whether every connection ended without an event.
func (p *probe) broughtNothing() bool {
	ended := p.ended()
	return len(ended) == len(p.conns) && endingsOf(ended).events == 0
}

// drops reports the events that are too large to be read.
func (d *doctor) drops() {
	if d.plain.drops == 0 {
		return
	}
	d.wrongly("-max-event-bytes, or the server: smaller events", "events of over %d bytes "+
		"(-max-event-bytes) were not read: %d", d.plain.limit, d.plain.drops)
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
	isOrderly := endingsOf(d.plain.ended()).isOrderlyWithEvents() // closes says so
	if h.Get("Content-Length") != "" && !isOrderly {
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

func bundleText(s shape) string {
	switch s.bundles {
	case 0:
		return ""
	case 1:
		return fmt.Sprintf(", %d of them at once", s.bundled)
	}
	return fmt.Sprintf(", %d of them in %d bundles", s.bundled, s.bundles)
}

// secs gives d as a person reads it.
func secs(d time.Duration) string {
	if d < 999*time.Millisecond {
		return fmt.Sprintf("%.3g ms", float64(d)/1e6)
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}
