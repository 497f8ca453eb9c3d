package main

import (
	"bytes"
	"context"
	"net/http"
	"slices"
	"time"
)

const (
	roundLimit = 10 * time.Second // a stream that gets nothing in it has missed the event
	settleTime = 2 * time.Second  // between the last stream's opening and the first measurement
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
	return &publisher{
		method: o.method,
		to:     o.publishTarget,
		body:   o.publishBody,
		client: http.Client{Timeout: roundLimit, Transport: transport},
	}
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
	start    time.Time       // just before the request was sent
	expected int             // streams open at the start
	times    []time.Duration // one for each stream that was reached
	newIDs   int             // more than one: some other event came in between
	reached  chan struct{}   // closed when all expected streams were reached
}

// published is what all rounds came to.
type published struct {
	rounds, mixed, missed int
	delivery, last        histogram
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
	r.times = append(r.times, at.Sub(r.start))
	if len(r.times) == r.expected {
		close(r.reached)
	}
}

// rounds publishes every gap, n times or (0) until ctx ends; never two at once.
func (m *meter) rounds(ctx context.Context, p *publisher, gap time.Duration, n int) {
	for i := 0; i < n || n == 0; i++ {
		start := m.beginRound()
		err := p.publish(ctx)
		if err == nil {
			limit := time.NewTimer(roundLimit)
			select {
			case <-m.round.reached:
			case <-limit.C:
			case <-ctx.Done():
			}
			limit.Stop()
		}
		if ctx.Err() != nil { // neither the publish nor its deliveries were waited for
			return
		}
		m.endRound(err)
		if !sleep(ctx, time.Until(start.Add(gap))) {
			return
		}
	}
}

// beginRound gives the time from which the round's deliveries are measured.
func (m *meter) beginRound() time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := &m.round
	*r = round{n: r.n + 1, open: true, times: r.times[:0], reached: make(chan struct{})}
	r.expected = m.total.Open - m.total.UnreadOpen
	if r.expected == 0 {
		close(r.reached)
	}
	r.start = time.Now()
	return r.start
}

// endRound takes the round into the results. One in which more than one new id came is left
// out: which of the events the publish caused cannot be told.
func (m *meter) endRound(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, p := &m.round, &m.published
	r.open = false
	p.rounds++
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
