package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

// runForward forwards until ctx ends.
func runForward(ctx context.Context, o *options, stdout, stderr io.Writer) int {
	ctx, stop := withDuration(ctx, o.duration)
	defer stop()

	log := slog.New(slog.NewTextHandler(stderr, nil))
	token := strings.TrimSpace(os.Getenv("SSE_FORWARD_TOKEN"))
	f := newForwarder(o.forwardMethod, o.forwardTarget, token, log)
	f.name = o.event
	f.fresh.unknown = 2 * o.heartbeat
	o.target.dialTimeout = forwardDialTimeout
	o.target.probes = true
	s := newStream(o.target, f)
	s.ending.once, s.backoff, s.silence = o.once, true, 2*o.heartbeat
	s.p.limit = o.maxEventBytes

	done := make(chan struct{})
	go func() {
		defer close(done)
		defer stop() // with -once
		s.keepOpen(ctx)
	}()
	f.sendAll(ctx)
	<-done
	f.stop()

	if o.json {
		printJSON(stdout, map[string]any{"url": o.url, "forward": f.stats})
	} else {
		n := &f.stats
		fmt.Fprintf(stdout, "%d events forwarded, %d failed, %d replaced by a newer one, "+
			"%d too large\n", n.Sent, n.Failed, n.Replaced, n.Dropped)
	}
	return exitStatus(f.isWrong())
}

// forwarded is what -forward came to.
type forwarded struct {
	Sent     int  `json:"sent"`
	Failed   int  `json:"failed"`
	Replaced int  `json:"replaced"`
	Dropped  int  `json:"dropped"` // too large
	failing  bool // the newest attempt failed
}

const (
	minPause = 250 * time.Millisecond // before the second attempt; doubled for each one after it
	maxPause = 2 * time.Second
	newsTime = 3 * time.Second // an event need not be repeated for so long

	// A dial that began before its upstream's return delays the stream for so long at most.
	forwardDialTimeout = 3 * time.Second
)

// A forwarder sends the data of one stream's events to an edge. It is the observer of that stream.
//
// It sends the events of one name. "message" stands for no name, too, as in a page's onmessage. An
// event of another name, or with an empty object for its data, is a heartbeat: it counts as a
// comment.
//
// It holds one event only, the newest, and tries until the edge takes it, a newer one takes its
// place, or the stream has ended. So data may arrive twice, if the answer was lost. What the edge
// rejects (4xx, or a redirect that would lose the data) is not tried again.
//
// When the upstream is silent or gone, the newest snapshot becomes stale: it is sent once more with
// a status that says so, and tried until the edge takes it. The next event ends that.
//
// A comment shows that the upstream is alive and has nothing newer. So a stale snapshot is sent
// once more as it came. With PUT, which may be repeated, each comment sends the newest event again,
// unless that has just come, so that an edge that was restarted gets it. A comment before the first
// event of a connection counts for nothing: it may come from a full server that turns the client
// away, or from an edge that has no snapshot.
type forwarder struct {
	method, token      string
	name               string // of the events that are sent
	to                 *target
	client             http.Client
	log                *slog.Logger
	minPause, maxPause time.Duration
	next               chan outgoing // room for one: the newest that waits
	sending            teller        // of sendAll

	mu          sync.Mutex // guards all below, and stats.Replaced and stats.Dropped
	newest      []byte     // data of the newest event; nil: none yet
	newestAt    time.Time  // when it came
	isCurrent   bool       // it came on this connection, and nothing newer was dropped
	isStale     bool       // it was sent as a stale one
	fresh       freshness
	timer       *time.Timer // runs markStale when fresh says so
	upstream    string      // how the stream is: open, closed or failing; empty: not yet known
	emptyCloses int         // in a row
	streaming   teller

	stats forwarded // Sent, Failed and failing belong to sendAll
}

// An outgoing is data on its way to the edge.
type outgoing struct {
	data     []byte
	isRepeat bool // it was sent before
	isStale  bool // it is the last snapshot of an upstream that is silent or gone
}

func newForwarder(method string, to *target, token string, log *slog.Logger) *forwarder {
	f := &forwarder{
		method:    method,
		name:      "message",
		to:        to,
		token:     token,
		log:       log,
		minPause:  minPause,
		maxPause:  maxPause,
		next:      make(chan outgoing, 1),
		sending:   teller{log: log},
		fresh:     freshness{least: minStale},
		streaming: teller{log: log},
	}
	f.client = http.Client{
		Timeout: 10 * time.Second,
		// A dialer of its own means HTTP/1: a dead HTTP/2 connection would be used again.
		Transport: &http.Transport{
			Proxy:           http.ProxyFromEnvironment,
			DialContext:     to.dialContext,
			TLSClientConfig: to.tls,
		},
		CheckRedirect: f.checkRedirect,
	}
	return f
}

// checkRedirect follows only a redirect that keeps the data: 301 makes GET of PUT. Another host
// gets no token.
func (f *forwarder) checkRedirect(req *http.Request, via []*http.Request) error {
	if req.Method != f.method || len(via) > maxRedirects {
		return http.ErrUseLastResponse
	}
	f.to.guard(req)
	return nil
}

// sendAll sends what comes until ctx ends.
func (f *forwarder) sendAll(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case out := <-f.next:
			f.deliver(ctx, out)
		}
	}
}

// deliver tries until the edge takes or rejects the data, it is too old, or ctx ends.
func (f *forwarder) deliver(ctx context.Context, out outgoing) {
	for fails := 1; ; fails++ {
		err := f.send(ctx, out.data)
		if ctx.Err() != nil {
			return
		}
		f.note(err)
		if err == nil || isRejected(err) {
			return
		}

		goesOn := sleep(ctx, backoff(f.minPause, f.maxPause, fails))
		if !goesOn {
			return
		}
		newer, ok := f.waiting()
		if ok {
			out = newer
		} else if !out.isStale && !f.isOpen() {
			return // nobody knows whether it is still the newest
		}
	}
}

// waiting gives what came after the data that could not be sent.
func (f *forwarder) waiting() (newer outgoing, ok bool) {
	select {
	case newer = <-f.next:
		return newer, true
	default:
		return outgoing{}, false
	}
}

func (f *forwarder) isOpen() bool {
	f.mu.Lock()
	defer f.mu.Unlock()

	return f.upstream == "open"
}

func (f *forwarder) send(ctx context.Context, data []byte) error {
	req, err := http.NewRequestWithContext(ctx, f.method, f.to.url.String(),
		bytes.NewReader(data))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", userAgent())
	if f.token != "" {
		req.Header.Set("Authorization", "Bearer "+f.token)
	}

	// This header, which is not sent, says that the request may be repeated on a new connection if
	// a kept one just died.
	if f.method == http.MethodPut {
		req.Header["Idempotency-Key"] = []string{}
	}
	return send(&f.client, req)
}

// isWrong says whether the end of the run finds something that does not work.
func (f *forwarder) isWrong() bool {
	f.mu.Lock()
	defer f.mu.Unlock()

	hasOpened := f.upstream == "open" || f.upstream == "closed"
	hasLost := f.stats.Dropped > 0
	return f.stats.failing || hasLost || !hasOpened || f.emptyCloses >= maxEmptyCloses
}

// note counts, and logs when failing begins or ends.
func (f *forwarder) note(err error) {
	if err == nil {
		f.stats.failing = false
		f.stats.Sent++
		f.sending.good("forwarding works again")
		return
	}

	f.stats.failing = true
	f.stats.Failed++
	if isRejected(err) {
		f.sending.bad("forwarding is rejected, waiting for the next event", err)
	} else {
		f.sending.bad("forwarding fails, trying again", err)
	}
}

func isRejected(err error) bool {
	return errors.As(err, new(rejectedError))
}

// queueLocked leaves data for sendAll, in place of what still waits there. Only with f.mu held may
// something be added to next, so there is room.
func (f *forwarder) queueLocked(out outgoing) {
	waiting, ok := f.waiting()
	if ok && !waiting.isRepeat {
		f.stats.Replaced++
	}
	f.next <- out
}

// event forwards the data, which is the parser's and therefore copied.
func (f *forwarder) event(ev *event, now time.Time) {
	if !f.isForwarded(ev) {
		f.comment(nil, now)
		return
	}

	f.mu.Lock()
	defer f.mu.Unlock()

	f.newest = bytes.Clone(ev.data)
	f.newestAt = now
	f.isCurrent = true
	f.emptyCloses = 0
	f.isStale = false
	f.fresh.came(now)
	f.scheduleLocked()

	f.streaming.good("stream open")
	f.queueLocked(outgoing{data: f.newest})
}

func (f *forwarder) isForwarded(ev *event) bool {
	name := string(ev.name)
	if name == "" {
		name = "message"
	}
	return name == f.name && string(bytes.TrimSpace(ev.data)) != "{}"
}

func (f *forwarder) comment(_ []byte, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()

	if !f.isCurrent {
		return
	}
	f.fresh.came(now)
	f.scheduleLocked()

	if f.isStale {
		f.isStale = false
		f.streaming.good("stream open")
		f.queueLocked(outgoing{data: f.newest, isRepeat: true})
		return
	}

	isNews := now.Sub(f.newestAt) < newsTime
	isWaiting := len(f.next) > 0
	if f.method == http.MethodPut && !isNews && !isWaiting {
		f.queueLocked(outgoing{data: f.newest, isRepeat: true})
	}
}

// scheduleLocked sets the timer to the time at which the newest snapshot becomes stale.
func (f *forwarder) scheduleLocked() {
	if f.timer != nil {
		f.timer.Stop()
	}
	due, _ := f.fresh.due()
	if !due.IsZero() {
		f.timer = time.AfterFunc(time.Until(due), f.markStale)
	}
}

// markStale sends the newest snapshot once more, as a stale one.
func (f *forwarder) markStale() {
	f.mu.Lock()
	defer f.mu.Unlock()

	// Something may have come while the timer ran out.
	due, message := f.fresh.due()
	if due.IsZero() || time.Now().Before(due) {
		return
	}
	if f.newest == nil || f.isStale {
		return
	}

	data, ok := staleSnapshot(f.newest, message)
	if !ok {
		return
	}
	f.isStale = true
	f.streaming.bad("snapshot is stale", errors.New(message))
	f.queueLocked(outgoing{data: data, isRepeat: true, isStale: true})
}

// stop ends the timer. The stream and run have ended before.
func (f *forwarder) stop() {
	f.mu.Lock()
	defer f.mu.Unlock()

	f.newest = nil // for a markStale that waits for the lock
	if f.timer != nil {
		f.timer.Stop()
	}
}

func (f *forwarder) opened(*conn) {
	f.mu.Lock()
	defer f.mu.Unlock()

	if f.upstream == "" { // later only an event shows that all is well
		f.log.Info("stream open")
	}
	f.upstream = "open"
}

func (f *forwarder) closed(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()

	f.upstream = "closed"
	if !f.isCurrent {
		f.emptyCloses++
	}
	f.isCurrent = false
	f.fresh.connectionLost(time.Now())
	f.scheduleLocked()
	f.streaming.bad("stream closed, coming back", errors.New(endText(err)))
}

func (f *forwarder) failed(err error) {
	text := "stream failing, coming back"
	if errors.As(err, new(answerError)) {
		text = "stream rejected, coming back"
	}

	f.mu.Lock()
	defer f.mu.Unlock()

	f.upstream = "failing"
	f.streaming.bad(text, err)
}

// dropped notes an event that is too large. What is newest here is old from then on.
func (f *forwarder) dropped() {
	f.mu.Lock()
	defer f.mu.Unlock()

	f.isCurrent = false
	f.stats.Dropped++
	if f.stats.Dropped == 1 {
		f.log.Warn("dropping events over -max-event-bytes")
	}
}

func (f *forwarder) received(int) {}

// A teller logs when trouble begins, each form of it once, and when it is over.
type teller struct {
	log   *slog.Logger
	told  []string  // forms of the trouble there is; nil: all is well
	since time.Time // when it began
}

func (t *teller) bad(text string, err error) {
	if slices.Contains(t.told, text) {
		return
	}
	if t.told == nil {
		t.since = time.Now()
	}
	t.told = append(t.told, text)
	t.log.Warn(text, "err", err)
}

func (t *teller) good(text string) {
	if t.told == nil {
		return
	}
	t.told = nil
	outage := time.Since(t.since).Round(time.Millisecond)
	t.log.Info(text, "outage", outage.String())
}
