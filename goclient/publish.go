package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
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

// A rejectedError is an answer that the same request would get again.
type rejectedError struct{ error }

// send sends a request whose answer is of no interest unless it is an error.
func send(c *http.Client, req *http.Request) error {
	resp, err := c.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if resp.StatusCode < 300 {
		return nil
	}
	err = fmt.Errorf("%s: %.200s", resp.Status, bytes.TrimSpace(text))
	switch resp.StatusCode {
	case http.StatusRequestTimeout, http.StatusTooManyRequests:
		return err
	}
	if resp.StatusCode < 500 {
		err = rejectedError{err}
	}
	return err
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

// usage is what a process and its children hold and have used so far.
type usage struct {
	rss int64   // bytes
	cpu float64 // seconds
}

// processUsage reads it from /proc; ok is false where that has no such process.
func processUsage(pid int) (u usage, ok bool) {
	pids := []int{pid}
	for i := 0; i < len(pids); i++ {
		dir := fmt.Sprintf("/proc/%d", pids[i])
		statm, err := os.ReadFile(dir + "/statm")
		stat, err2 := os.ReadFile(dir + "/stat")
		mem := strings.Fields(string(statm))
		cpu := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if err != nil || err2 != nil || len(mem) < 2 || len(cpu) < 13 {
			continue
		}
		ok = true
		pages, _ := strconv.ParseInt(mem[1], 10, 64)
		user, _ := strconv.ParseFloat(cpu[11], 64)
		system, _ := strconv.ParseFloat(cpu[12], 64)
		u.rss += pages * int64(os.Getpagesize())
		u.cpu += (user + system) / 100 // Linux counts in 1/100 s everywhere
		tasks, _ := os.ReadDir(dir + "/task")
		for _, task := range tasks {
			children, _ := os.ReadFile(dir + "/task/" + task.Name() + "/children")
			for _, f := range strings.Fields(string(children)) {
				child, _ := strconv.Atoi(f)
				pids = append(pids, child)
			}
		}
	}
	return u, ok && runtime.GOOS == "linux"
}
