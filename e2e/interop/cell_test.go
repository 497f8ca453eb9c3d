package interop

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"sse-server/e2e/proxies"
	"sse-server/e2e/tools"
)

// What a run asks of the server, and how much of it is measured.
const (
	interval        = 500 * time.Millisecond
	heartbeat       = 2 * time.Second
	eventsMeasured  = 10
	heartbeatsAsked = 2
	eventsToSettle  = 6 // that a browser gets before, because it is busy when it has started
)

// A way leads from the clients to the server.
type way struct {
	name  string
	proxy *proxies.Proxy // nil: there is none
}

var direct = way{name: "direct"}

// A cell is what one client has got through one way.
type cell struct {
	client     client
	problem    string // why there is nothing else
	delays     []time.Duration
	missing    int // events that never came
	wrong      int // events whose data has another length
	heartbeats []time.Duration
	end        string        // cleanEnd, what the client said of it, or "" if it shows none
	back       time.Duration // after the server's end; 0: it did not come back
	encoding   string        // of its stream, as the server shows it
	reopened   int           // streams that all clients together opened once more before the end
}

// notGiven is the problem of a client that shows nothing.
const notGiven = "shows no event"

func (c cell) median() time.Duration { return median(c.delays) }

// A target is a server as one run sees it.
type target struct {
	addr    string           // its own
	path    string           // of its stream
	command func() *exec.Cmd // starts it on addr
	way     way
}

// A reading is one client that reads.
type reading struct {
	client  client
	record  *record
	program *program
}

// serve answers with the page that browsers open, and notes what that page tells.
func (k *kit) serve(t *testing.T) {
	files := http.FileServer(http.Dir(k.dir + "/testdata"))
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/tell":
			line, _ := io.ReadAll(r.Body)
			k.recordOf(r.URL.Query().Get("client")).noteShown(string(line))
		case "/":
			r.URL.Path = "/page.html"
			files.ServeHTTP(w, r)
		default:
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(s.Close)
	k.origin = s.URL
}

// recordOf returns the client's record of the run under way.
func (k *kit) recordOf(name string) *record {
	k.mu.Lock()
	defer k.mu.Unlock()
	r := k.records[name]
	if r == nil {
		r = newRecord()
		k.records[name] = r
	}
	return r
}

func (k *kit) forget() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.records = map[string]*record{}
}

// sseServerTarget is the server under test, reached through a way.
func (k *kit) sseServerTarget(t *testing.T, w way) target {
	t.Helper()
	addr := tools.FreeAddr(t)
	return target{
		addr: addr, path: "/dashboard/stream", way: w,
		command: func() *exec.Cmd { return sseServer(addr, k.origin) },
	}
}

// open starts what lies before the server, and returns the URL of the stream for clients.
func (x target) open(t *testing.T, k *kit) string {
	t.Helper()
	if x.way.proxy == nil {
		return "http://" + x.addr + x.path
	}

	place := proxies.Place{
		Dir: openDir(t), Addr: tools.FreeAddr(t), Inner: tools.FreeAddr(t), Server: x.addr,
		Host: siteName, Deploy: project + "/deploy",
	}
	err := quietly("cp", k.dir+"/tls.pem", place.Dir)
	if err != nil {
		t.Fatal(err)
	}
	startProxy(t, *x.way.proxy, place)

	scheme := "http"
	if x.way.proxy.TLS {
		scheme = "https"
	}
	_, port, _ := strings.Cut(place.Addr, ":")
	return scheme + "://" + place.Host + ":" + port + x.path
}

// measure runs clients through one way: it fills one column of the table. All read at the same
// time; what is measured begins when all have started.
func (k *kit) measure(t *testing.T, x target, chosen []client) (cells []cell) {
	t.Helper()
	k.forget()
	server := serve(t, x.addr, x.command())
	streamURL := x.open(t, k)
	reference := reference(t, "http://"+x.addr+x.path)
	var all []*reading
	for _, c := range chosen {
		all = append(all, k.startReading(t, c, streamURL))
	}
	waitUntilReading(t, all, reference)

	begin := time.Now()
	ids := waitForEvents(t, reference, begin)
	within(5*time.Second, func() bool {
		return !slices.ContainsFunc(all, func(r *reading) bool { return !r.record.has(ids) })
	})
	state := stateOf(x.addr)

	stopped := time.Now()
	server.end(t)
	serve(t, x.addr, x.command())
	within(patience, func() bool {
		return !slices.ContainsFunc(all, func(r *reading) bool { return !r.isDone(stopped) })
	})

	for _, r := range all {
		c := r.cell(reference, ids, begin, stopped)
		c.encoding = state.encodingOf(r.client)
		c.reopened = state.Opened - len(all) - 1 // the reference's
		cells = append(cells, c)
		r.program.kill()
	}
	return cells
}

// waitUntilReading waits until each client shows an event, or has ended, and browsers have settled.
func waitUntilReading(t *testing.T, all []*reading, reference *record) {
	t.Helper()
	within(patience, func() bool {
		return !slices.ContainsFunc(all, func(r *reading) bool { return r.isStarting() })
	})
	if !slices.ContainsFunc(all, func(r *reading) bool { return r.client.page }) {
		return
	}

	opened := reference.newest()
	waitFor(t, "browsers have settled", func() bool {
		return len(reference.after(opened)) >= eventsToSettle
	})
}

// waitForEvents waits until enough was sent, and returns the ids of the events to measure.
func waitForEvents(t *testing.T, reference *record, begin time.Time) (ids []int64) {
	t.Helper()
	first := reference.newest()
	waitFor(t, "the events and heartbeats are sent", func() bool {
		return len(reference.after(first)) >= eventsMeasured &&
			len(reference.heartbeatsAfter(begin)) >= heartbeatsAsked
	})
	ids = reference.after(first)
	slices.Sort(ids)
	return ids[:eventsMeasured]
}

func (k *kit) startReading(t *testing.T, c client, streamURL string) *reading {
	t.Helper()
	r := &reading{client: c, record: k.recordOf(c.name)}
	note := c.note
	if note == nil {
		note = (*record).noteLines
	}
	r.program = start(t, k.command(t, c, streamURL), func(shown io.Reader) {
		lines := bufio.NewScanner(shown)
		lines.Buffer(nil, 1<<20)
		note(r.record, lines)
	})
	return r
}

// isStarting tells whether the client has neither shown an event nor ended.
func (r *reading) isStarting() bool {
	return r.record.newest() == 0 && !r.program.hasEnded()
}

// isDone tells whether the client has ended or is back. One that never showed an event is given up.
func (r *reading) isDone(stopped time.Time) bool {
	if r.program.hasEnded() {
		return true
	}
	newest := r.record.newest()
	return newest == 0 || newest > stopped.UnixMilli()
}

// cell says what the client has got of these events and of the reference's heartbeats.
func (r *reading) cell(reference *record, ids []int64, begin, stopped time.Time) cell {
	c := cell{client: r.client, end: r.howItEnded()}
	r.record.mu.Lock()
	defer r.record.mu.Unlock()
	if len(r.record.events) == 0 {
		c.problem = notGiven + ": " + c.end
		return c
	}

	for _, id := range ids {
		got, ok := r.record.events[id]
		if !ok {
			c.missing++
			continue
		}
		c.delays = append(c.delays, got.at.Sub(time.UnixMilli(id)))
		if got.length != reference.events[id].length {
			c.wrong++
		}
	}
	slices.Sort(c.delays)
	c.heartbeats = heartbeatDelays(r.record.heartbeats, reference.heartbeatsAfter(begin))
	for id, got := range r.record.events {
		after := got.at.Sub(stopped)
		isNew := id > stopped.UnixMilli() && after > 0
		if isNew && (c.back == 0 || after < c.back) {
			c.back = after
		}
	}
	return c
}

// heartbeatDelays finds for each heartbeat that was sent the one that came for it. The reference
// may be a moment later than a client: that counts as 0.
func heartbeatDelays(came, sent []time.Time) (delays []time.Duration) {
	for i, at := range sent {
		earliest, latest := at.Add(-heartbeat/2), time.Now()
		if i+1 < len(sent) {
			latest = sent[i+1].Add(-heartbeat / 2)
		}
		for _, other := range came {
			if !other.Before(earliest) && other.Before(latest) {
				delays = append(delays, max(0, other.Sub(at)))
				break
			}
		}
	}
	slices.Sort(delays)
	return delays
}

// howItEnded is what the client said of the end, or its exit status.
func (r *reading) howItEnded() string {
	r.record.mu.Lock()
	end := r.record.end
	r.record.mu.Unlock()
	switch {
	case end != "" && end != "EOF":
		return end
	case end == "EOF":
		return cleanEnd
	case !r.program.hasEnded() || r.client.page:
		return ""
	case r.program.err == nil:
		return cleanEnd
	}
	said := strings.Split(strings.TrimSpace(r.program.said.String()), "\n")
	return fmt.Sprintf("%v: %.100s", r.program.err, said[len(said)-1])
}
