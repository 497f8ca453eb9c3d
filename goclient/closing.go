package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"time"
)

// commonLimit is the limit on silence that most proxies begin with.
const commonLimit = 60 * time.Second

// endings are what the connections that were closed have in common.
type endings struct {
	count             int
	shortest, longest time.Duration // of their ages
	quietest          time.Duration // the shortest silence at an end
	events            int
	orderly           bool // all of them
}

func endingsOf(ended []lifetime) endings {
	e := endings{count: len(ended), shortest: time.Hour, quietest: time.Hour, orderly: true}
	for _, c := range ended {
		lived := c.to.Sub(c.asked)
		e.shortest, e.longest = min(e.shortest, lived), max(e.longest, lived)
		e.quietest = min(e.quietest, c.silent)
		e.events += c.events
		e.orderly = e.orderly && errors.Is(c.err, io.EOF)
	}
	return e
}

// isEqual tells whether all connections lived equally long. Some products look at their clocks
// once a second.
func (e endings) isEqual() bool {
	spread := e.longest - e.shortest
	isCoarse := e.shortest > 2*time.Second && spread < time.Second
	return e.count > 1 && (spread < e.longest/5 || isCoarse)
}

// closes tells a limit on silence from one on the whole response.
func (d *doctor) closes() {
	ended := d.plain.ended()
	if len(ended) == 0 {
		d.neverClosed()
		return
	}

	e := endingsOf(ended)
	both := endingsOf(append(slices.Clone(ended), d.zipped.ended()...))
	by := d.culprit(d.direct != nil && len(d.direct.ended()) > 0)
	isSilent := e.quietest > d.plain.silence && e.quietest > lateAfter
	switch {
	case e.events == 0 && e.longest < time.Second && d.plain.said != "":
		d.wrongly("what the server says", "the server ends each stream at once and says: %s",
			d.plain.said)
	case e.events == 0 && e.longest < time.Second:
		d.wrongly("the handler: it must not return while the stream is to last", "the stream is "+
			"ended at once, %s without an event; %s", times(e.count), d.blame(by))
	case e.isOrderlyWithEvents() && by != proxyDoes:
		d.serverEnds(e, isSilent, by)
	case isSilent:
		d.limitOnSilence(e, by)
	case both.isEqual():
		d.wrongly(d.cure(age, by), "%s whatever was sent: a limit on the whole response; %s",
			e, d.blame(by))
	default:
		d.wrongly("nothing, if something was restarted", "%s; %s", e, d.blame(by))
	}
}

// isOrderlyWithEvents tells whether the server may have meant the ends.
func (e endings) isOrderlyWithEvents() bool {
	return e.count > 0 && e.orderly && e.events > 0
}

// serverEnds notes streams that brought events and were ended in an orderly way. That is no fault:
// EventSource opens them again.
func (d *doctor) serverEnds(e endings, isSilent bool, by culprit) {
	silent, change := "", "nothing, if the server is meant to end them"
	if isSilent {
		silent = fmt.Sprintf(", %s after %s of silence", each(e.count), secs(e.quietest))
	}
	text := fmt.Sprintf("in an orderly way, %s after %s%s", times(e.count), e.ages(), silent)
	if by == serverDoes {
		d.advise(change, "the server ends its streams %s", text)
		return
	}
	d.advise(change+", or use -direct", "the server ends its streams, or a proxy does, %s; %s", text,
		d.blame(by))
}

// limitOnSilence adds the other limit where the stream was silent from its beginning.
func (d *doctor) limitOnSilence(e endings, by culprit) {
	change, doubt := d.cure(silence, by), ""
	if e.events == 0 && by != proxyDoes {
		doubt = " (or on the whole response: nothing was sent that could tell the two apart)"
	}
	d.wrongly(change, "%s, %s after %s of silence: a limit on silence%s; %s", e,
		each(e.count), secs(e.quietest), doubt, d.blame(by))
}

// neverClosed says ok only where the commonest limit would have been seen, or cannot strike.
func (d *doctor) neverClosed() {
	p := d.plain
	watched := d.end.Sub(p.begin)
	if p.silence > commonLimit {
		d.say("not closed in %s, the longest silence was %s: a limit of 60 s on silence would "+
			"have been seen", secs(watched), secs(p.silence))
		return
	}
	isLong := watched+staggers[len(staggers)-1] > doctorDuration
	if isLong && p.silence < commonLimit*2/3 {
		d.say("not closed in %s, and never silent for more than %s, which is under the "+
			"commonest limit, 60 s", secs(watched), secs(p.silence))
		return
	}
	d.advise("a -duration of 75s, which is longer than the commonest limit, 60 s",
		"not closed in %s, the longest silence was %s: too short to see a limit", secs(watched),
		secs(p.silence))
}

// notReopened is for a stream that opened at first.
func (d *doctor) notReopened() {
	p := d.plain
	if p.failures == 0 || p.isOpenLocked() {
		return
	}
	d.wrongly("what happens to reconnections: is there a limit on their number?", "after a close "+
		"the stream did not open again: %s", p.failure())
}

func (e endings) String() string {
	how := "uncleanly"
	if e.orderly {
		how = "in an orderly way"
	}
	if e.count == 1 {
		return fmt.Sprintf("closed %s after %s", how, secs(e.longest))
	}
	return fmt.Sprintf("closed %s %s, after %s", how, times(e.count), e.ages())
}

func (e endings) ages() string {
	if e.count == 1 {
		return secs(e.longest)
	}
	return secs(e.shortest) + " to " + secs(e.longest)
}

func each(n int) string {
	if n == 1 {
		return "that is"
	}
	return "each time"
}

func times(n int) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}
