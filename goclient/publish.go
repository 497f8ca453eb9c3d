package main

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"slices"
	"time"
)

const (
	roundLimit = 10 * time.Second // a stream that gets nothing in it has missed the event
	settleTime = 2 * time.Second  // between the last stream's opening and the first measurement
	unfinished = 1 * time.Second  // a publish that takes longer has to be over when the run ends
)

// A publisher sends the request that makes the server send an event to all streams.
type publisher struct {
	method string
	to     *target
	body   []byte
	client http.Client
}

// newPublisher returns what -publish asks for.
func newPublisher(o *options) *publisher {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.DialContext = o.publishTarget.dialContext
	transport.TLSClientConfig = o.publishTarget.tls
	p := &publisher{
		method: o.publishMethod,
		to:     o.publishTarget,
		body:   o.publishBody,
	}
	p.client = http.Client{
		Timeout:       roundLimit,
		Transport:     transport,
		CheckRedirect: p.checkRedirect,
	}
	return p
}

// checkRedirect takes the credentials out where another host is to get the request.
func (p *publisher) checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) > maxRedirects {
		return fmt.Errorf("more than %d redirects", maxRedirects)
	}
	p.to.guard(req)
	return nil
}

// publish sends one request and waits for the answer.
func (p *publisher) publish(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, p.method, p.to.url.String(),
		bytes.NewReader(p.body))
	if err != nil {
		return err
	}
	req.Header = p.to.header
	req.Host = p.to.header.Get("Host") // net/http ignores it in the header
	return send(&p.client, req)
}

// A round is one publish on its way to the streams. The meter's lock guards it.
type round struct {
	n        int
	open     bool
	isLate   bool            // sent later than due
	answered bool            // the request got its answer
	due      time.Time       // when the request was to be sent
	start    time.Time       // when it was sent
	expected int             // streams open at the start
	times    []time.Duration // one for each stream that was reached
	newIDs   int             // more than one: some other event came in between
	reached  chan struct{}   // closed when all expected streams were reached
}

// published is what all rounds came to.
type published struct {
	rounds, late, mixed, unfinished, missed int
	delivery, last                          histogram
}

// sawNewID notes that an event came that no stream had before.
func (r *round) sawNewID() {
	if r.open {
		r.newIDs++
	}
}

// deliver notes that the first event of this round has come to v.
func (r *round) deliver(v *viewer, at time.Time) {
	if !r.open || v.round == r.n || at.Before(r.start) {
		return
	}
	v.round = r.n
	r.times = append(r.times, at.Sub(r.due))
	if len(r.times) == r.expected {
		close(r.reached)
	}
}

// rounds publishes every gap, n times or (0) until ctx ends; never two at once. A round that is due
// before the one before is over comes late, at once after it. It is measured from the time at which
// it was due, as viewers would have: else a server that hangs would hide what it delays.
func (m *meter) rounds(ctx context.Context, p *publisher, gap time.Duration, n int) {
	due := time.Now()
	for i := 0; i < n || n == 0; i++ {
		isLate := i > 0 && gap > 0 && time.Now().After(due)
		if !sleep(ctx, time.Until(due)) {
			return
		}
		if gap == 0 {
			due = time.Now()
		}

		m.beginRound(due, isLate)
		err := p.publish(ctx)
		if err == nil {
			m.waitForRound(ctx)
		}
		if ctx.Err() != nil {
			m.breakRound(time.Now())
			return
		}
		m.endRound(err)
		due = due.Add(gap)
	}
	sleep(ctx, time.Until(due)) // for what else this publish may cause
}

// waitForRound waits until the event has reached all streams, for roundLimit at most.
func (m *meter) waitForRound(ctx context.Context) {
	m.mu.Lock()
	m.round.answered = true
	m.mu.Unlock()

	limit := time.NewTimer(roundLimit)
	defer limit.Stop()
	select {
	case <-m.round.reached:
	case <-limit.C:
	case <-ctx.Done():
	}
}

// beginRound begins a round. Its deliveries are measured from due.
func (m *meter) beginRound(due time.Time, isLate bool) {
	m.mu.Lock()
	defer m.mu.Unlock()

	r := &m.round
	*r = round{
		n:       r.n + 1,
		open:    true,
		isLate:  isLate,
		due:     due,
		start:   time.Now(),
		times:   r.times[:0],
		reached: make(chan struct{}),
	}
	r.expected = m.total.Open - m.total.UnreadOpen
	if r.expected == 0 {
		close(r.reached)
	}
}

// endRound takes the round into the results. One in which more than one new id came is left
// out: which of the events the publish caused cannot be told.
func (m *meter) endRound(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, p := m.closeRoundLocked()
	if err != nil {
		m.complainLocked(wrongPost, "%v", err)
		return
	}
	for i := len(r.times); i < r.expected; i++ {
		p.missed++
		m.complainLocked(wrongMissed, "publish %d", r.n)
	}
	if r.newIDs > 1 {
		p.mixed++
	}
	if r.newIDs > 1 || len(r.times) == 0 {
		return
	}
	for _, d := range r.times {
		p.delivery.add(d)
	}
	p.last.add(slices.Max(r.times))
}

// breakRound counts the round that the end of the run broke off. Its deliveries are left out: those
// still missing might have taken longest. If it had reached all streams, it is a round as any other.
func (m *meter) breakRound(now time.Time) {
	m.mu.Lock()
	r := &m.round
	isOver := r.answered && len(r.times) >= r.expected
	m.mu.Unlock()
	if isOver {
		m.endRound(nil)
		return
	}

	m.mu.Lock()
	defer m.mu.Unlock()
	r, p := m.closeRoundLocked()
	p.unfinished++
	age := now.Sub(r.start)
	if age < unfinished {
		return
	}

	text := "no answer"
	if r.answered {
		text = fmt.Sprintf("%d of %d streams reached", len(r.times), r.expected)
	}
	m.complainLocked(wrongUnfinished, "publish %d: %s in %v", r.n, text,
		age.Round(time.Millisecond))
}

// closeRoundLocked counts the round, however it went.
func (m *meter) closeRoundLocked() (*round, *published) {
	r, p := &m.round, &m.published
	r.open = false
	p.rounds++
	if r.isLate {
		p.late++
	}
	return r, p
}

// judgeRounds says whether the run ended before all publishes were over. n 0 means one at least.
func (m *meter) judgeRounds(n int) {
	m.mu.Lock()
	defer m.mu.Unlock()

	n = max(n, 1)
	over := m.published.rounds - m.published.unfinished
	isKnown := m.wrong[wrongUnfinished] != nil
	if over < n && !isKnown {
		m.complainLocked(wrongRounds, "the run ended after %d of %d", over, n)
	}
}
