package main

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"reflect"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

func TestMain(m *testing.M) {
	// These tests wait more than they work. A flag of the command line wins.
	flag.Set("test.parallel", "8")
	os.Exit(m.Run())
}

var oneSentence = regexp.MustCompile(`^[A-Z][^\n]*\.\n$`)

func TestShutdownAnswersATriggerThatWaits(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "0")
	s.waitForSnapshot(t)
	s.trigger(t) // the next one waits until minInterval has passed

	codes := make(chan int, 1) // has room, so that the goroutine ends
	go func() {
		code, _, _ := s.request(t, "GET", "/dashboard/trigger-test")
		codes <- code
	}()
	eventually(t, "a broadcast is under way", func() bool {
		if !s.publishing.TryLock() {
			return true
		}
		s.publishing.Unlock()
		return len(codes) > 0 // it was too fast to be seen
	})
	s.stop()
	if code := <-codes; code != 200 {
		t.Errorf("the trigger returns %d, want 200", code)
	}
}

func TestShutdownEndsATriggerBeforeAnySnapshot(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	ended := make(chan struct{})
	c := s.connect(t, "GET /dashboard/trigger-test HTTP/1.1\r\nHost: localhost\r\n\r\n")
	go func() {
		defer close(ended)
		io.ReadAll(c)
	}()
	eventually(t, "the trigger waits", func() bool { return len(s.board.recent()) == 1 })

	start := time.Now()
	s.stop()
	<-ended
	if took := time.Since(start); took > 2*time.Second {
		t.Errorf("the shutdown took %v", took)
	}
}

func TestShutdownEndsBroadcastsBeforeAnySnapshot(t *testing.T) {
	t.Parallel()
	s := testServer(t)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		e := s.broadcast("test")
		if e != nil {
			t.Errorf("the broadcast returns event %d, want none", e.id)
		}
	}()

	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	s.sampleLoop(ctx)
	select {
	case <-ended:
	case <-time.After(5 * time.Second):
		t.Error("a broadcast waits for a snapshot that does not come")
	}
}

func TestRequestHalfSentIsGivenUp(t *testing.T) {
	t.Parallel()
	s := testServer(t)
	httpServer := s.newHTTPServer()
	limits := []time.Duration{httpServer.ReadHeaderTimeout, httpServer.ReadTimeout,
		httpServer.WriteTimeout}
	for i, limit := range limits {
		if limit < time.Second || limit > 10*time.Second {
			t.Errorf("limit %d is %v, want 1s to 10s", i, limit)
		}
	}

	httpServer.ReadHeaderTimeout = 200 * time.Millisecond
	go httpServer.Serve(s.listener)
	defer httpServer.Close()
	addr := s.listener.Addr().String()
	half := dial(t, addr, "GET /dashboard/stream HTTP/1.1\r\nHost: localhost\r\nX-")

	// It delays no other request.
	whole := dial(t, addr, "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
	if line := whole.line(t); line != "HTTP/1.1 200 OK\r\n" {
		t.Errorf("another request returns %q", line)
	}
	half.SetReadDeadline(time.Now().Add(10 * time.Second))
	_, err := io.ReadAll(half)
	if err != nil {
		t.Errorf("half a request is not given up: %v", err)
	}
}

func TestRequestIdleTimeoutOutlastsClients(t *testing.T) {
	t.Parallel()
	const ofClients = 90 * time.Second // of Go; load balancers have 60 s
	got := testServer(t).newHTTPServer().IdleTimeout
	if got <= ofClients || got > 5*time.Minute {
		t.Errorf("idle connections are kept for %v, want a little more than %v", got, ofClients)
	}
}

// A fakeConn only tells whether it was closed.
type fakeConn struct {
	net.Conn
	isClosed bool
}

func (c *fakeConn) Close() error {
	c.isClosed = true
	return nil
}

func TestListenerClosesWhoWaitedLongest(t *testing.T) {
	t.Parallel()
	type wait struct {
		isActive bool
		waits    int // looks
	}
	for _, test := range []struct {
		name   string
		conns  []wait
		room   bool
		closed int // index; -1: none
	}{
		{"there is room", []wait{{false, 1000}, {true, 1000}}, true, -1},
		{"all are young", []wait{{false, 0}, {false, 8}, {true, 199}}, false, -1},
		{"a head is due now", []wait{{false, 0}, {false, 9}, {true, 0}}, false, -1},
		{"a head is late", []wait{{false, 0}, {false, 10}, {true, 199}}, true, 1},
		{"a body is late", []wait{{false, 0}, {false, 9}, {true, 201}}, true, 2},
		{"two heads", []wait{{false, 30}, {false, 40}, {true, 190}}, true, 1},
		{"a head and a body", []wait{{false, 30}, {true, 300}, {false, 0}}, true, 1},
	} {
		l := newLimitedListener(nil, 3)
		var conns []*fakeConn
		for _, w := range test.conns {
			conn := &fakeConn{}
			conns = append(conns, conn)
			l.conns[conn] = &connState{isActive: w.isActive, waits: w.waits}
		}

		if got := l.makeRoom(); got != test.room {
			t.Errorf("%s: room is %v, want %v", test.name, got, test.room)
		}
		closed := 0
		for i, conn := range conns {
			_, isKnown := l.conns[conn]
			if conn.isClosed != (i == test.closed) || isKnown == conn.isClosed {
				t.Errorf("%s: connection %d is closed: %v, known: %v",
					test.name, i, conn.isClosed, isKnown)
			}
			if conn.isClosed {
				closed++
			}
		}
		if got := l.closed(); got != uint64(closed) {
			t.Errorf("%s: %d are counted as closed, want %d", test.name, got, closed)
		}
	}
}

func TestListenerCountsWhatIsNoStream(t *testing.T) {
	t.Parallel()
	l := newLimitedListener(nil, 9)
	for _, test := range []struct {
		state             http.ConnState
		isKnown, isActive bool
		isFreed           bool
	}{
		{http.StateNew, true, false, false},
		{http.StateActive, true, true, false},
		{http.StateIdle, true, false, false},
		{http.StateActive, true, true, false},
		{http.StateHijacked, false, false, true},
		{http.StateNew, true, false, false},
		{http.StateClosed, false, false, true},
		{http.StateClosed, false, false, true}, // one that makeRoom has closed
	} {
		conn := &fakeConn{}
		for known := range l.conns {
			conn = known.(*fakeConn)
		}
		l.noteState(conn, test.state)
		state, isKnown := l.conns[conn]
		if isKnown != test.isKnown {
			t.Fatalf("%v: known %v", test.state, isKnown)
		}
		if isKnown && (state.isActive != test.isActive || state.waits != 0) {
			t.Errorf("%v: it is known as %+v", test.state, *state)
		}
		l.look()
		isFreed := false
		select {
		case <-l.freed:
			isFreed = true
		default:
		}
		if isFreed != test.isFreed {
			t.Errorf("%v: Accept is woken: %v", test.state, isFreed)
		}
	}
}

// A scriptedListener hands out connections without a network, and notes how many there were.
type scriptedListener struct {
	outer  *limitedListener
	counts chan int // has room for all
}

func (l *scriptedListener) Accept() (net.Conn, error) {
	l.outer.mu.Lock()
	defer l.outer.mu.Unlock()
	l.counts <- len(l.outer.conns)
	return &fakeConn{}, nil
}

func (l *scriptedListener) Close() error   { return nil }
func (l *scriptedListener) Addr() net.Addr { return nil }

func TestListenerAcceptWaitsForRoom(t *testing.T) {
	t.Parallel()
	inner := &scriptedListener{counts: make(chan int, 10)}
	l := newLimitedListener(inner, 1)
	inner.outer = l

	first, err := l.Accept()
	if _, isKnown := l.conns[first]; err != nil || !isKnown {
		t.Fatalf("the first connection is known: %v, %v", isKnown, err)
	}
	type accepted struct {
		conn net.Conn
		err  error
	}
	results := make(chan accepted, 1) // each is read before the next
	accept := func() {
		conn, err := l.Accept()
		results <- accepted{conn, err}
	}
	waitForAccept := func() {
		t.Helper()
		l.freed <- struct{}{} // it looks, finds no room, and waits again
		eventually(t, "Accept has looked", func() bool { return len(l.freed) == 0 })
	}

	l.noteState(first, http.StateActive)
	go accept()
	waitForAccept()
	if len(results) > 0 {
		t.Fatal("Accept returns while the share is used up")
	}
	l.noteState(first, http.StateHijacked)
	second := <-results
	if second.err != nil || second.conn == first {
		t.Errorf("after the first became a stream Accept returns %v", second.err)
	}

	l.noteState(second.conn, http.StateActive)
	go accept()
	waitForAccept()
	l.noteState(second.conn, http.StateClosed)
	third := <-results
	if third.err != nil {
		t.Errorf("after the second was closed Accept returns %v", third.err)
	}

	l.noteState(third.conn, http.StateActive)
	go accept()
	waitForAccept()
	l.Close()
	l.Close() // as http.Server does
	if got := <-results; got.err != net.ErrClosed {
		t.Errorf("after Close, Accept returns %v", got.err)
	}

	close(inner.counts)
	for count := range inner.counts {
		if count > 0 {
			t.Errorf("a connection was accepted beside %d", count)
		}
	}
}

// The third connection has room only because the second is given up.
func TestListenerAcceptGivesUpAnIdleOne(t *testing.T) {
	t.Parallel()
	inner := &scriptedListener{counts: make(chan int, 10)}
	l := newLimitedListener(inner, 2)
	inner.outer = l
	first, _ := l.Accept()
	l.noteState(first, http.StateActive)
	second, _ := l.Accept()
	l.noteState(second, http.StateIdle)
	third, err := l.Accept()
	if err != nil || third == nil || l.closed() != 1 {
		t.Errorf("Accept returns %v, %d were closed", err, l.closed())
	}
	if first.(*fakeConn).isClosed || !second.(*fakeConn).isClosed {
		t.Errorf("the active one is closed: %v, the idle one: %v",
			first.(*fakeConn).isClosed, second.(*fakeConn).isClosed)
	}
}

// Streams come through a share that is smaller than their number. Peers that send half a head and
// no more use it up, and take nothing from the streams.
func TestListenerShareLeavesStreamsAlone(t *testing.T) {
	t.Parallel()
	const share, streams, peers = 32, 50, 80
	cfg := testConfig(t, "-interval", "1h", "-heartbeat", "1h")
	cfg.openFiles = 200
	s := startServerOf(t, cfg)
	s.waitForSnapshot(t)
	if s.listener.share != share {
		t.Fatalf("the share is %d, want %d", s.listener.share, share)
	}
	var clients []*client
	for i := 0; i < streams; i++ {
		c := s.stream(t)
		c.event(t)
		clients = append(clients, c)
	}

	for i := 0; i < peers; i++ {
		s.connect(t, "GET ")
	}
	reply := s.trigger(t)
	if reply.Streams != streams {
		t.Errorf("the broadcast reached %d streams, want %d", reply.Streams, streams)
	}
	for _, c := range clients {
		if got := c.event(t).id; got != reply.ID {
			t.Fatalf("event %d came, want %d", got, reply.ID)
		}
	}
	const least = peers + 1 - share
	state, metric := s.debug(t), s.metrics(t)["sse_connections_closed_total"]
	if state.Open != streams || state.ConnsClosed < least || metric < least || metric > peers {
		t.Errorf("%d streams are open, %d and %v connections were closed, want at least %d",
			state.Open, state.ConnsClosed, metric, least)
	}
}

// An addrListener has an address and nothing else.
type addrListener struct {
	net.Listener
	addr net.TCPAddr
}

func (l addrListener) Addr() net.Addr { return &l.addr }

func TestListenerURLIsOfThisMachine(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ ip, zone, want, probe string }{
		{"127.0.0.1", "", "http://127.0.0.1:3001", "http://127.0.0.1:3001/health"},
		{"10.0.0.1", "", "http://10.0.0.1:3001", "http://10.0.0.1:3001/health"},
		// The name localhost may be unknown.
		{"0.0.0.0", "", "http://localhost:3001", "http://127.0.0.1:3001/health"},
		{"::", "", "http://localhost:3001", "http://127.0.0.1:3001/health"},
		{"::1", "", "http://[::1]:3001", "http://[::1]:3001/health"},
		{"fe80::1", "eth0", "http://[fe80::1%25eth0]:3001", "http://[fe80::1%25eth0]:3001/health"},
		{"fe80::1", "a b%", "http://[fe80::1%25a%20b%25]:3001",
			"http://[fe80::1%25a%20b%25]:3001/health"},
	} {
		addr := net.TCPAddr{IP: net.ParseIP(test.ip), Zone: test.zone, Port: 3001}
		listener := addrListener{addr: addr}
		if got := localURL(listener); got != test.want {
			t.Errorf("the URL of %v is %q, want %q", &addr, got, test.want)
		}
		s := newSSEServer(testConfig(t), listener, noLog())
		r, err := http.NewRequest("GET", s.sampler.probe.url, nil)
		if err != nil || r.URL.Port() != "3001" || s.sampler.probe.url != test.probe {
			t.Errorf("the probe of %v asks %q, %v", &addr, s.sampler.probe.url, err)
		}
	}
}

func TestRequestHeadersOver16KiBAreRejected(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	for size, want := range map[int]int{15 << 10: 200, 17 << 10: 431} {
		code, _, _ := s.request(t, "GET", "/health", "X-Long", strings.Repeat("x", size))
		if code != want {
			t.Errorf("a header of %d bytes returns %d, want %d", size, code, want)
		}
	}
}

func TestBroadcastFirstNeedsTwoReadings(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	s.stream(t).event(t)
	if got := time.Since(s.started); got < 500*time.Millisecond {
		t.Errorf("the first snapshot came after %v: rates need two readings", got)
	}
}

func TestBroadcastComesEachInterval(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "100ms")
	c := s.stream(t)
	first := c.event(t)
	last := first
	for i := 0; i < 6; i++ {
		last = c.event(t)
	}
	if got := last.id - first.id; got < 350 {
		t.Errorf("six intervals of 100ms took %d ms by id", got)
	}
}

func TestBroadcastIntervalZeroWaitsForTrigger(t *testing.T) {
	t.Parallel()
	tests := []struct {
		interval   string
		sampled    time.Duration
		isPeriodic bool
	}{
		{"0", 20 * time.Millisecond, false},
		{"1h", 20 * time.Millisecond, false},
		{"50ms", 50 * time.Millisecond, true}, // each sample
		{"50ms", time.Hour, true},
	}
	for _, test := range tests {
		idle := testServer(t, "-interval", test.interval)
		idle.sampler.interval = test.sampled
		s := serve(t, idle)
		s.waitForSnapshot(t)
		if test.isPeriodic {
			eventually(t, "there are more broadcasts", func() bool { return s.debug(t).Broadcasts > 3 })
			continue
		}

		// The host is read all the same.
		first := s.board.view(time.Now()).metrics.time
		eventually(t, "the host is read again and again", func() bool {
			return s.board.view(time.Now()).metrics.time.Sub(first) >= 5*test.sampled
		})
		if got := s.debug(t).Broadcasts; got != 1 {
			t.Errorf("at %s there are %d broadcasts, want 1", test.interval, got)
		}
	}
}

func TestBroadcastFloodIsTwentyASecond(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "0")
	c := s.stream(t)
	c.event(t)

	last := make([]int64, 20)
	s.flood(t, len(last), func(worker int) {
		for i := 0; i < 10; i++ {
			last[worker] = s.trigger(t).ID
		}
	}, func() {})

	newest := s.debug(t).LastID
	for e := c.event(t); e.id != newest; e = c.event(t) {
	}
	for _, id := range last {
		if id > newest {
			t.Errorf("a trigger returned %d, but the newest event is %d", id, newest)
		}
	}
}

// reserved is a stream that was not begun: it takes everything.
func (s *SSEServer) reserved(t testing.TB) *SSEConnection {
	t.Helper()
	c := &SSEConnection{fd: notOpen}
	if !s.reserve(c) {
		t.Fatal("there is no room for a stream")
	}
	return c
}

func TestForEachStreamGoesByNumber(t *testing.T) {
	t.Parallel()
	s := testServer(t)
	visited := func() (numbers []uint64) {
		s.forEachStream(time.Now(), func(c *SSEConnection, _ time.Time) error {
			numbers = append(numbers, c.number)
			return nil
		})
		return numbers
	}
	check := func(when string, want []uint64) {
		t.Helper()
		if got := visited(); !slices.Equal(got, want) {
			t.Errorf("%s the streams are visited as %v, want %v", when, got, want)
		}
	}

	conns := map[uint64]*SSEConnection{}
	var want []uint64
	check("at first", want)
	for number := uint64(1); number <= 40; number++ {
		conns[number] = s.reserved(t)
		want = append(want, number)
	}
	check("with forty open,", want)
	check("again", want)

	s.remove(conns[1], io.EOF)
	s.remove(conns[17], io.EOF)
	s.remove(conns[40], io.EOF)
	want = slices.DeleteFunc(want, func(n uint64) bool { return n == 1 || n == 17 || n == 40 })
	check("after removals", want)

	s.reserved(t)
	s.reserved(t)
	check("after newcomers", append(want, 41, 42))
}

func TestForEachStreamRemovesThoseThatFail(t *testing.T) {
	t.Parallel()
	s := testServer(t)
	const streams = 1500 // enough for several goroutines
	for i := 0; i < streams; i++ {
		s.reserved(t)
	}

	var visits [streams + 1]atomic.Int64 // by number
	count := s.forEachStream(time.Now(), func(c *SSEConnection, _ time.Time) error {
		visits[c.number].Add(1)
		switch c.number % 3 {
		case 0:
			return io.EOF
		case 1:
			return errLagging
		}
		return nil
	})

	if count != streams/3 || len(s.conns) != 2*streams/3 {
		t.Errorf("%d streams succeeded and %d are left, want %d and %d",
			count, len(s.conns), streams/3, 2*streams/3)
	}
	for number := 1; number <= streams; number++ {
		if got := visits[number].Load(); got != 1 {
			t.Errorf("stream %d was visited %d times", number, got)
		}
	}
	if got := s.totals.closed["client"]; got != streams/3 {
		t.Errorf("%d streams were closed, want %d", got, streams/3)
	}
}

func TestRoutesTakeTheirMethodsOnly(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "1h")
	s.waitForSnapshot(t)
	before := s.newest.Load()

	tests := []struct {
		method, path string
		code         int
		allow        string
	}{
		{"POST", "/", 405, "GET, HEAD"},
		{"POST", "/dashboard/stream", 405, "GET, HEAD"},
		{"OPTIONS", "/dashboard/stream", 405, "GET, HEAD"},
		{"POST", "/dashboard/trigger-test", 405, "GET"},
		{"HEAD", "/dashboard/trigger-test", 405, "GET"},
		{"POST", "/dashboard/snapshot", 405, "GET, HEAD, PUT, DELETE"},
		{"GET", "/dashboard/activities", 405, "POST"},
		{"PUT", "/dashboard/activities", 405, "POST"},
		{"POST", "/dashboard/history", 405, "GET, HEAD"},
		{"DELETE", "/dashboard/debug", 405, "GET, HEAD"},
		{"PUT", "/metrics", 405, "GET, HEAD"},
		{"PUT", "/health", 405, "GET, HEAD"},
		{"HEAD", "/", 200, ""},
		{"HEAD", "/dashboard/stream", 200, ""},
		{"HEAD", "/dashboard/snapshot", 200, ""},
		{"HEAD", "/dashboard/history", 200, ""},
		{"HEAD", "/dashboard/debug", 200, ""},
		{"HEAD", "/metrics", 200, ""},
		{"HEAD", "/health", 200, ""},
		{"GET", "/dashboard/stream/", 404, ""},
		{"GET", "/dashboard", 404, ""},
		{"GET", "/nothing", 404, ""},
		{"POST", "/nothing", 404, ""},
	}
	for _, test := range tests {
		code, head, body := s.request(t, test.method, test.path)
		if code != test.code || head.Get("Allow") != test.allow {
			t.Errorf("%s %s returns %d, Allow %q, want %d, %q", test.method, test.path,
				code, head.Get("Allow"), test.code, test.allow)
		}
		if code >= 400 && test.method != "HEAD" && !oneSentence.MatchString(body) {
			t.Errorf("%s %s returns %q, which is not one sentence", test.method, test.path, body)
		}
		if test.method == "HEAD" && body != "" {
			t.Errorf("HEAD %s has the body %q", test.path, body)
		}
	}
	if s.newest.Load() != before {
		t.Error("a rejected request made a broadcast")
	}
}

func TestRoutesServePagesOfAllowedOrigins(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	tests := []struct{ origin, want string }{
		{"http://localhost:3000", "http://localhost:3000"},
		{"http://127.0.0.1:3000", "http://127.0.0.1:3000"},
		{"http://evil.example", ""},
		{"http://localhost:3001", ""},
		{"", ""},
	}
	for _, path := range []string{"/dashboard/stream", "/dashboard/snapshot", "/dashboard/debug",
		"/dashboard/trigger-test", "/health"} {
		for _, test := range tests {
			_, head, _ := s.request(t, "GET", path, "Origin", test.origin)
			if got := head.Get("Access-Control-Allow-Origin"); got != test.want {
				t.Errorf("%s allows %q the origin %q, want %q", path, test.origin, got, test.want)
			}
			if got := head.Get("Vary"); !strings.HasPrefix(got, "Origin") {
				t.Errorf("%s has Vary %q for %q", path, got, test.origin)
			}
		}

		code, head, _ := s.request(t, "OPTIONS", path, "Origin", "http://localhost:3000",
			"Access-Control-Request-Method", "GET")
		methods := head.Get("Access-Control-Allow-Methods")
		headers := head.Get("Access-Control-Allow-Headers")
		if code != 204 || !strings.Contains(methods, "GET") {
			t.Errorf("OPTIONS %s returns %d with the methods %q", path, code, methods)
		}
		if headers != "Authorization, Content-Type, Cache-Control, Last-Event-ID" {
			t.Errorf("OPTIONS %s allows the headers %q", path, headers)
		}
	}
}

func TestPageIsSmallAndComplete(t *testing.T) {
	t.Parallel()
	if len(page) > 50_000 {
		t.Errorf("the page has %d bytes, want at most 50,000", len(page))
	}
	var compressed bytes.Buffer
	w, _ := gzip.NewWriterLevel(&compressed, gzip.BestCompression)
	io.WriteString(w, page)
	w.Close()
	if compressed.Len() > 15_000 {
		t.Errorf("the page has %d bytes with gzip, want at most 15,000", compressed.Len())
	}

	if comment := regexp.MustCompile(`(?m)(^ *| )// .*$`).FindString(page); comment != "" {
		t.Errorf("a viewer gets the comment %q", comment)
	}
	if !strings.HasSuffix(page, "</html>\n") || strings.Contains(page, "{{") {
		t.Error("the page is not complete")
	}
}

func TestPagePolicyAllowsOnlyItself(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	code, head, body := s.request(t, "GET", "/")
	if code != 200 || body != page {
		t.Errorf("the page returns %d and %d bytes", code, len(body))
	}
	for name, want := range map[string]string{
		"Content-Type":           "text/html; charset=utf-8",
		"X-Content-Type-Options": "nosniff",
		"Referrer-Policy":        "no-referrer",
	} {
		if got := head.Get(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}

	want := []string{"default-src 'none'", "connect-src 'self'", "base-uri 'none'",
		"form-action 'none'"}
	for _, element := range []string{"script", "style"} {
		pattern := regexp.MustCompile("(?s)<" + element + ">(.*?)</" + element + ">")
		texts := pattern.FindAllStringSubmatch(body, -1)
		if len(texts) != 1 {
			t.Fatalf("the page has %d %s elements, want one without attributes", len(texts), element)
		}
		sum := sha256.Sum256([]byte(texts[0][1]))
		hash := base64.StdEncoding.EncodeToString(sum[:])
		want = append(want, element+"-src 'sha256-"+hash+"'")
	}
	policy := strings.Split(head.Get("Content-Security-Policy"), "; ")
	for _, directive := range want {
		if !slices.Contains(policy, directive) {
			t.Errorf("the policy %q lacks %q", policy, directive)
		}
	}
}

func TestPageMayBeFramedByAllowedOrigins(t *testing.T) {
	t.Parallel()
	for origins, want := range map[string]string{
		defaultOrigins: "frame-ancestors 'self' http://localhost:3000 http://127.0.0.1:3000",
		"https://a.example, capacitor://localhost": "frame-ancestors 'self' https://a.example " +
			"capacitor://localhost",
		"": "frame-ancestors 'self'",
	} {
		s := testServer(t, "-origins", origins)
		w := httptest.NewRecorder()
		s.ServeHTTP(w, httptest.NewRequest("GET", "http://localhost/", nil))
		found := regexp.MustCompile(`frame-ancestors [^;]*`).
			FindAllString(w.Header().Get("Content-Security-Policy"), -1)
		if len(found) != 1 || strings.TrimSpace(found[0]) != want {
			t.Errorf("with -origins %q the policy has %q, want %q", origins, found, want)
		}
	}
}

func TestPageIsNamedWhereNothingIs(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	code, _, body := s.request(t, "GET", "/index.html")
	if code != 404 || !strings.Contains(body, "the page is /,") {
		t.Errorf("another path returns %d %q", code, body)
	}
}

func TestPageLoadsNothingElse(t *testing.T) {
	t.Parallel()
	for _, pattern := range []string{
		`(?i)https?://[^"' ]*`,
		`(?i)<[^>]* (on\w+|style)=`,
		`(?i)innerHTML|outerHTML|insertAdjacentHTML|document\.write`,
		`(?i)(src|href|action)="/`,
	} {
		for _, found := range regexp.MustCompile(pattern).FindAllString(page, -1) {
			if found != "http://www.w3.org/2000/svg" { // a name, not a place
				t.Errorf("the page has %q", found)
			}
		}
	}
}

func TestStreamHeadIsAsDocumented(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	s.waitForSnapshot(t)
	const head = `^HTTP/1.1 200 OK\r
Cache-Control: no-cache, no-transform\r
Connection: close\r
Content-Type: text/event-stream\r
Date: ([^\r\n]+)\r
`
	const headEnd = `Vary: Origin, Accept-Encoding, User-Agent\r
X-Accel-Buffering: no\r
X-Content-Type-Options: nosniff\r
\r
`
	const firstLine, event = "retry: [1-4]\\d\\d\\d\n", "id: \\d{13}\ndata: \\{.*\\}\n\n"

	for proto, want := range map[string]string{
		"HTTP/1.0": head + headEnd + firstLine + event + "$",
		"HTTP/1.1": head + "Transfer-Encoding: chunked\r\n" + headEnd +
			"c\r\n" + firstLine + "\r\n[0-9a-f]{3}\r\n" + event + "$",
	} {
		c := s.connect(t, "GET /dashboard/stream "+proto+"\r\nHost: localhost\r\n"+
			"Accept: text/event-stream\r\n\r\n")
		var got []byte
		for !bytes.Contains(got, []byte("}\n\n")) {
			got = append(got, c.read(t, 1)...)
		}
		m := regexp.MustCompile(want).FindSubmatch(got)
		if m == nil {
			t.Errorf("over %s the stream begins with\n%s", proto, got)
			continue
		}
		date, err := http.ParseTime(string(m[1]))
		if err != nil || time.Since(date).Abs() > time.Minute {
			t.Errorf("the date is %q, %v", m[1], err)
		}
	}
}

func TestStreamHeadRequestOpensNoStream(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	for _, agent := range []string{"curl/8", "Mozilla/5.0"} {
		header := []string{"User-Agent", agent, "Accept-Encoding", "gzip",
			"Origin", "http://localhost:3000"}
		before := s.debug(t).Opened
		code, head, _ := s.request(t, "HEAD", "/dashboard/stream", header...)
		if opened := s.debug(t).Opened - before; code != 200 || opened != 0 {
			t.Errorf("HEAD returns %d and opens %d streams", code, opened)
		}

		getCode, want, _ := s.request(t, "GET", "/dashboard/stream", header...)
		head.Del("Date")
		want.Del("Date")
		if getCode != 200 || !reflect.DeepEqual(head, want) {
			t.Errorf("HEAD has %v, GET %d %v", head, getCode, want)
		}
	}

	c := s.connect(t, "HEAD /dashboard/stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
	got, err := readAll(c)
	_, body, hasEnd := strings.Cut(string(got), "\r\n\r\n")
	if err != nil || !hasEnd || body != "" {
		t.Errorf("HEAD returns %q, %v", got, err)
	}
}

// Each chunk is one event, one heartbeat, or the start or the end of the body.
func TestStreamChunksAreWholeEvents(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		proto  string
		isGzip bool
	}{
		{"HTTP/1.1", false},
		{"HTTP/1.1", true},
		{"HTTP/1.0", false},
		{"HTTP/1.0", true},
	} {
		checkBody(t, test.proto, test.isGzip)
	}
}

// checkBody checks each byte after the head of a stream with two events and two heartbeats.
func checkBody(t *testing.T, proto string, isGzip bool) {
	t.Helper()
	s := startServer(t, "-edge", "-heartbeat", "1h")
	s.put(t, `{"n":1}`)
	request := "GET /dashboard/stream " + proto + "\r\nHost: localhost\r\n"
	if isGzip {
		request += "User-Agent: Mozilla/5.0\r\nAccept-Encoding: gzip\r\n"
	}
	c := s.connect(t, request+"\r\n")

	want := []string{"retry: ", string(s.newest.Load().plain.data)}
	s.waitForAllSent(t)
	s.heartbeat(time.Now())
	s.waitForAllSent(t)
	s.heartbeat(time.Now())
	s.waitForAllSent(t)
	s.trigger(t)
	s.waitForAllSent(t)
	want = append(want, heartbeatText, heartbeatText, string(s.newest.Load().plain.data), "retry: ")
	s.stop()

	all, err := readAll(c)
	_, body, _ := strings.Cut(string(all), "\r\n\r\n")
	if err != nil || body == "" {
		t.Fatalf("%s, gzip %v: the stream has %q, %v", proto, isGzip, all, err)
	}
	if proto == "HTTP/1.1" {
		chunks := chunksOf(t, body)
		body = strings.Join(chunks, "")
		if len(chunks) != len(want) {
			t.Errorf("gzip %v: there are %d chunks, want %d", isGzip, len(chunks), len(want))
		}
		for i := 0; i < len(chunks) && !isGzip; i++ {
			if !strings.HasPrefix(chunks[i], want[i]) {
				t.Errorf("chunk %d is %q, want %q", i, chunks[i], want[i])
			}
		}
	}
	if isGzip {
		body = string(gunzip(t, []byte(body)))
	}
	middle := regexp.QuoteMeta(strings.Join(want[1:len(want)-1], ""))
	if !regexp.MustCompile(`^retry: \d{4}\n` + middle + `retry: \d{4}\n\n$`).MatchString(body) {
		t.Errorf("%s, gzip %v: the body is %q, want %q in it", proto, isGzip, body, want)
	}
}

// waitForAllSent waits until the one stream has got everything.
func (s *server) waitForAllSent(t testing.TB) {
	t.Helper()
	eventually(t, "the stream has got everything", func() bool {
		count := s.forEachStream(time.Now(), func(c *SSEConnection, _ time.Time) error {
			c.mu.Lock()
			defer c.mu.Unlock()
			hasNewest := c.last == s.newest.Load().id
			if c.fd < 0 || !hasNewest || !c.isUpToDate(s.heartbeats.Load()) {
				return errLagging
			}
			return nil
		})
		return count == 1
	})
}

// chunksOf splits a body that must be whole chunks, the last chunk, and nothing else.
func chunksOf(t testing.TB, body string) (chunks []string) {
	t.Helper()
	for body != "0\r\n\r\n" {
		line, rest, _ := strings.Cut(body, "\r\n")
		size, err := strconv.ParseInt(line, 16, 32)
		isExact := fmt.Sprintf("%x", size) == line && size > 0
		if err != nil || !isExact || !strings.HasPrefix(rest[min(int(size), len(rest)):], "\r\n") {
			t.Fatalf("after %d chunks comes %q", len(chunks), body)
		}
		chunks = append(chunks, rest[:size])
		body = rest[size+2:]
	}
	return chunks
}

func TestStreamAcceptOfEvents(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		lines []string
		want  bool
	}{
		{nil, false},
		{[]string{""}, false},
		{[]string{"*/*"}, false},
		{[]string{"text/*"}, false},
		{[]string{"text/html"}, false},
		{[]string{"text/event-streams"}, false},
		{[]string{"x-text/event-stream"}, false},
		{[]string{"text/event-stream;q=0"}, false},
		{[]string{"text/event-stream ; Q=0.000, */*"}, false},
		{[]string{"text/event-stream;q=x"}, false},
		{[]string{"text/event-stream"}, true},
		{[]string{"TEXT/Event-Stream"}, true},
		{[]string{"text/event-stream;charset=utf-8"}, true},
		{[]string{"text/event-stream;q=0.001"}, true},
		{[]string{"text/html, text/event-stream; q=0.5, */*"}, true},
		{[]string{"application/json", "text/event-stream"}, true},
		{[]string{"text/event-stream", "*/*;q=0"}, true},
	} {
		r := &http.Request{Header: http.Header{"Accept": test.lines}}
		if got := acceptsEvents(r); got != test.want {
			t.Errorf("Accept %q: %v, want %v", test.lines, got, test.want)
		}
	}
}

func TestStreamServesOldAndNewClients(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	for _, request := range []string{
		"GET /dashboard/stream HTTP/1.0\r\n\r\n",
		"GET /dashboard/stream HTTP/1.0\r\nAccept: text/event-stream\r\n\r\n",
		"GET /dashboard/stream HTTP/1.1\r\nHost: localhost\r\n\r\n",
		"GET /dashboard/stream?a=b HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n" +
			"Last-Event-ID: 7\r\n\r\n",
	} {
		c := s.connect(t, request)
		c.head(t)
		got := c.event(t)
		if got.id == 0 || !json.Valid(got.data) {
			t.Errorf("%q: the first event is %d %s", request, got.id, got.data)
		}
	}
}

func TestStreamIsRejectedWhereThereIsNoRoom(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-max-streams", "2")
	a, b := s.stream(t), s.stream(t)
	a.event(t)

	code, head, body := s.request(t, "GET", "/dashboard/stream", "Accept", "text/event-stream",
		"Origin", "http://localhost:3000")
	wantBody := regexp.MustCompile(
		`^retry: ([5-9]|[12]\d)\d{3}\n: full, 2 streams are open\n\n$`)
	if code != 200 || head.Get("Content-Type") != "text/event-stream" || !wantBody.MatchString(body) {
		t.Errorf("a third EventSource gets %d %v %q", code, head, body)
	}
	if head.Get("Access-Control-Allow-Origin") != "http://localhost:3000" {
		t.Errorf("a third EventSource may not read its answer: %v", head)
	}

	code, head, body = s.request(t, "GET", "/dashboard/stream", "Accept", "*/*")
	wait, _ := strconv.Atoi(head.Get("Retry-After"))
	if code != 503 || wait < 5 || wait > 30 || !oneSentence.MatchString(body) {
		t.Errorf("a third curl gets %d, Retry-After %d, %q", code, wait, body)
	}
	code, _, _ = s.request(t, "GET", "/health")
	if code != 200 {
		t.Errorf("/health returns %d while the server is full", code)
	}
	if d := s.debug(t); d.Rejected != 2 || d.Open != 2 {
		t.Errorf("%d streams were rejected and %d are open, want 2 and 2", d.Rejected, d.Open)
	}

	b.Close()
	eventually(t, "a stream is gone", func() bool { return s.debug(t).Open == 1 })
	s.stream(t).event(t)
}

func TestStreamsThatAreGoneMakeRoomForAll(t *testing.T) {
	t.Parallel()
	const most = 200
	s := startServer(t, "-interval", "1h", "-max-streams", strconv.Itoa(most))
	var gone []*client
	for i := 0; i < most; i++ {
		gone = append(gone, s.connect(t, streamRequest))
	}
	eventually(t, "the server is full", func() bool { return s.debug(t).Open == most })
	for _, c := range gone {
		c.Conn.(*net.TCPConn).SetLinger(0)
		c.Close()
	}

	// Whether clients are gone must be looked for anew.
	s.sweeper.mu.Lock()
	s.sweeper.last = time.Time{}
	s.sweeper.mu.Unlock()
	var newcomers []*client
	for i := 0; i < most; i++ {
		newcomers = append(newcomers, s.connect(t, streamRequest))
	}
	for _, c := range newcomers {
		c.head(t)
	}
	if got := s.debug(t).Rejected; got > 0 {
		t.Errorf("%d streams were rejected", got)
	}
}

func TestTriggerReachesAllStreams(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "0")
	var clients []*client
	for i := 0; i < 7; i++ {
		c := s.stream(t)
		c.event(t)
		clients = append(clients, c)
	}

	reply := s.trigger(t)
	if reply.Streams != 7 || reply.Message != "Test broadcast sent" {
		t.Errorf("the trigger returns %+v", reply)
	}
	want := []string{"Dashboard updated", "Test broadcast"}
	for _, c := range clients {
		e := c.event(t)
		if got := e.messages(t); e.id != reply.ID || !slices.Equal(got, want) {
			t.Errorf("event %d has the activities %q, want %d %q", e.id, got, reply.ID, want)
		}
	}
}

func TestTriggerSendsExternalSnapshotAgain(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "0")
	c := s.stream(t)
	c.event(t)
	s.put(t, `{"n":1}`)
	first := c.event(t)

	reply := s.trigger(t)
	if reply.Streams != 1 || reply.Message != "External snapshot sent again" {
		t.Errorf("the trigger returns %+v", reply)
	}
	again := c.event(t)
	if again.id != reply.ID || again.id <= first.id || string(again.data) != `{"n":1}` {
		t.Errorf("after event %d and trigger %d comes %d %s",
			first.id, reply.ID, again.id, again.data)
	}

	s.deleteSnapshot(t)
	if got := c.event(t).messages(t); !slices.Equal(got, []string{"Dashboard updated"}) {
		t.Errorf("after DELETE the activities are %q", got)
	}
}

func TestTriggerOnAnEmptyEdgeIsRejected(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-edge")
	code, _, body := s.request(t, "GET", "/dashboard/trigger-test")
	if code != 409 || !oneSentence.MatchString(body) {
		t.Errorf("the trigger returns %d %q, want 409", code, body)
	}

	s.put(t, `{"n":1}`)
	if reply := s.trigger(t); reply.Message != "External snapshot sent again" {
		t.Errorf("after a PUT the trigger returns %+v", reply)
	}
}

func TestHealthSaysOK(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	code, _, body := s.request(t, "GET", "/health")
	if code != 200 || body != "OK" {
		t.Errorf("/health returns %d %q", code, body)
	}
}

func TestDebugShowsTheState(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-heartbeat", "7s")
	c := s.connect(t, "GET /dashboard/stream HTTP/1.1\r\nHost: localhost\r\nUser-Agent: "+
		strings.Repeat("u", 300)+"\r\n\r\n")
	c.head(t)
	first := c.event(t)
	gone := s.stream(t)
	gone.event(t)
	gone.Close()
	eventually(t, "a stream is closed", func() bool { return s.debug(t).Closed["client"] == 1 })

	d := s.debug(t)
	if d.Version != version || !d.Started.Equal(s.started) || d.Settings["heartbeat"] != "7s" {
		t.Errorf("the version is %q, the start %v, the settings %v",
			d.Version, d.Started, d.Settings)
	}
	if d.Settings["addr"] != s.addr {
		t.Errorf("the address is %q, want that in use, %q", d.Settings["addr"], s.addr)
	}
	if d.Open != 1 || d.Allowed != s.config.maxStreams || d.Opened != 2 || d.Rejected != 0 {
		t.Errorf("the streams are %d open, %d allowed, %d opened, %d rejected",
			d.Open, d.Allowed, d.Opened, d.Rejected)
	}
	if d.Events < 2 || d.Bytes < uint64(2*len(first.data)) || d.LastID < first.id {
		t.Errorf("%d events, %d bytes, last id %d", d.Events, d.Bytes, d.LastID)
	}
	if d.Goroutines < 5 || d.Heap == 0 || d.Memory < d.Heap {
		t.Errorf("%d goroutines, %d of heap, %d of memory", d.Goroutines, d.Heap, d.Memory)
	}

	if len(d.Streams) != 1 {
		t.Fatalf("the streams are %+v", d.Streams)
	}
	stream := d.Streams[0]
	if stream.Stream != 1 || stream.Remote != c.LocalAddr().String() ||
		stream.UserAgent != strings.Repeat("u", 128) {
		t.Errorf("the stream is %+v", stream)
	}
	if stream.Events < 1 || stream.Encoding != "identity" || stream.Lagging != 0 ||
		time.Since(stream.Since) > time.Minute {
		t.Errorf("the stream is %+v", stream)
	}
}

func TestDebugListsTheNewestHundredStreams(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	for i := 0; i < 105; i++ {
		s.reserved(t)
	}
	d := s.debug(t)
	if d.Open != 105 || len(d.Streams) != 100 || d.Streams[0].Stream != 105 {
		t.Errorf("%d streams, %d listed, the first is %d",
			d.Open, len(d.Streams), d.Streams[0].Stream)
	}
}

// oddStatuses are statuses of external snapshots, as they stand in /metrics.
var oddStatuses = []struct{ snapshot, status, label string }{
	{`{"system_status":{"status":"stale","message":"x"}}`, "stale", "stale"},
	{`{"system_status":{"status":"a\"b\\c\nd é"}}`, "a\"b\\c\nd é", `a\"b\\c\nd é`},
	{`{"system_status":{"status":"` + strings.Repeat("ä", 300) + `"}}`,
		strings.Repeat("ä", 300), strings.Repeat("ä", 100)},
	{`{"system_status":{"status":7}}`, "", ""},
	{`{"n":1}`, "", ""},
}

func TestDebugShowsSourceStatusAndAge(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "1h")
	s.waitForSnapshot(t)
	check := func(source, status string) {
		t.Helper()
		d := s.debug(t)
		if d.Source != source || d.Status != status {
			t.Errorf("the source is %q, the status %q, want %q, %q",
				d.Source, d.Status, source, status)
		}
		if d.SnapshotAge == nil || *d.SnapshotAge < 0 || *d.SnapshotAge > 60 {
			t.Errorf("the age is %v", d.SnapshotAge)
		}
	}

	check("host", s.board.view(time.Now()).metrics.status)
	for _, test := range oddStatuses {
		s.put(t, test.snapshot)
		check("external", test.status)
	}
	s.deleteSnapshot(t)
	check("host", s.board.view(time.Now()).metrics.status)

	edge := startServer(t, "-edge")
	d := edge.debug(t)
	if d.Source != "none" || d.Status != "" || d.SnapshotAge != nil {
		t.Errorf("on an edge the source is %q, the status %q, the age %v",
			d.Source, d.Status, d.SnapshotAge)
	}
}

func TestMetricsCountWhatHappened(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "100ms", "-max-streams", "2")
	c := s.stream(t)
	c.event(t)
	gone := s.stream(t)
	gone.event(t)
	s.request(t, "GET", "/dashboard/stream") // one too many
	gone.Close()
	eventually(t, "a stream is closed", func() bool { return s.debug(t).Closed["client"] == 1 })
	s.trigger(t)
	c.event(t)

	before := float64(s.debug(t).Broadcasts)
	m := s.metrics(t)
	after := float64(s.debug(t).Broadcasts)
	if got := m["sse_broadcasts_total"]; got < before || got > after {
		t.Errorf("sse_broadcasts_total is %v, want %v to %v", got, before, after)
	}
	for name, want := range map[string]float64{
		"sse_streams_open":                                                    1,
		"sse_streams_allowed":                                                 float64(s.config.maxStreams),
		"sse_streams_opened_total":                                            2,
		"sse_streams_rejected_total":                                          1,
		`sse_streams_closed_total{reason="client"}`:                           1,
		`sse_streams_closed_total{reason="stalled"}`:                          0,
		`sse_streams_closed_total{reason="shutdown"}`:                         0,
		`sse_streams_closed_total{reason="error"}`:                            0,
		"sse_events_skipped_total":                                            0,
		"sse_connections_closed_total":                                        0,
		`sse_status{status="` + s.debug(t).Status + `"}`:                      1,
		`sse_build_info{version="dev",goversion="` + runtime.Version() + `"}`: 1,
	} {
		got, ok := m[name]
		if !ok || got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
	for _, name := range []string{"sse_events_sent_total", "sse_bytes_sent_total",
		"sse_broadcast_seconds_total", "sse_snapshot_age_seconds"} {
		if m[name] <= 0 {
			t.Errorf("%s is %v", name, m[name])
		}
	}
	for name := range m {
		if !strings.HasPrefix(name, "sse_") {
			t.Errorf("%s is not about the server", name)
		}
	}
}

func TestMetricsOfTheHost(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("the metrics are those of Linux")
	}
	s := startServer(t)
	eventually(t, "the host is read", func() bool { return s.metrics(t)["sse_host_memory_ratio"] > 0 })
	m := s.metrics(t)
	for _, name := range []string{"sse_host_cpu_ratio", "sse_host_memory_ratio",
		"sse_host_disk_ratio"} {
		got, ok := m[name]
		if !ok || got < 0 || got > 1 {
			t.Errorf("%s is %v", name, got)
		}
	}
	if got := m["sse_probe_duration_seconds"]; got <= 0 {
		t.Errorf("sse_probe_duration_seconds is %v", got)
	}
}

func TestMetricsOfAnEdgeAreNotTheHosts(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-edge")
	m := s.metrics(t)
	for name := range m {
		if strings.HasPrefix(name, "sse_host") || strings.HasPrefix(name, "sse_probe") {
			t.Errorf("an edge has %s", name)
		}
	}
	for name := range m {
		if name == "sse_snapshot_age_seconds" || strings.HasPrefix(name, "sse_status") {
			t.Errorf("on an edge without a snapshot there is %s", name)
		}
	}
}

func TestMetricsLeaveOutWhatIsNotMeasured(t *testing.T) {
	t.Parallel()
	s := testServer(t)
	hostMetrics := func() (names []string) {
		w := httptest.NewRecorder()
		s.ServeHTTP(w, httptest.NewRequest("GET", "http://localhost/metrics", nil))
		return regexp.MustCompile(`(?m)^(sse_host|sse_probe|sse_snapshot)_[a-z_]+`).
			FindAllString(w.Body.String(), -1)
	}

	if got := hostMetrics(); len(got) > 0 {
		t.Errorf("before the first reading there are %q", got)
	}
	s.board.update(metrics{time: time.Now(), cpu: math.NaN(), memory: 50, disk: math.NaN(),
		network: math.NaN(), responseTime: math.NaN()}, nil)
	want := []string{"sse_host_memory_ratio"}
	if got := hostMetrics(); !slices.Equal(got, want) {
		t.Errorf("there are %q, want %q", got, want)
	}
}

func TestMetricsHaveTheStatusOfExternals(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "1h")
	for _, test := range oddStatuses {
		s.put(t, test.snapshot)
		_, _, text := s.request(t, "GET", "/metrics")
		got := regexp.MustCompile(`(?m)^sse_status.*$`).FindAllString(text, -1)
		var want []string
		if test.label != "" {
			want = []string{`sse_status{status="` + test.label + `"} 1`}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%.80s becomes %q, want %q", test.snapshot, got, want)
		}
		if !strings.Contains(text, "\nsse_snapshot_age_seconds ") {
			t.Errorf("%.80s has no age", test.snapshot)
		}
	}
}

func TestConfigFlagsWinOverVariables(t *testing.T) {
	t.Parallel()
	getenv := env("SSE_INTERVAL=5s", "SSE_HEARTBEAT=9s", "SSE_PROBE=", "SSE_LOG_LEVEL=warn",
		"SSE_EDGE=true", "SSE_TOKEN= secret\n", "SSE_GZIP=off")
	args := []string{"-interval", "3s", "-origins", "https://a.example, http://b:1"}
	cfg, err := parseConfig(args, getenv, io.Discard)
	if err != nil {
		t.Fatal(err)
	}

	tests := []struct {
		name      string
		got, want any
	}{
		{"addr", cfg.addr, ":3001"},
		{"interval", cfg.interval, 3 * time.Second},
		{"heartbeat", cfg.heartbeat, 9 * time.Second},
		{"probe", cfg.probe, ""},
		{"disk", cfg.disk, "/"},
		{"origins", cfg.origins, []string{"https://a.example", "http://b:1"}},
		{"gzip", cfg.gzip, "off"},
		{"edge", cfg.edge, true},
		{"token", cfg.token, "secret"},
		{"log-format", cfg.logFormat, "text"},
		{"log-level", cfg.logLevel, slog.LevelWarn},
	}
	for _, test := range tests {
		if !reflect.DeepEqual(test.got, test.want) {
			t.Errorf("%s is %v, want %v", test.name, test.got, test.want)
		}
	}
}

func TestConfigErrorsAreOneLine(t *testing.T) {
	t.Parallel()
	tests := []struct {
		args string
		env  []string
		want []string
	}{
		{"-interval 10ms", nil, []string{"-interval 10ms", "50ms"}},
		{"-interval -1s", nil, []string{"-interval -1s", "0 is allowed"}},
		{"-interval 2", nil, []string{"-interval"}},
		{"-heartbeat 0", nil, []string{"-heartbeat 0s", "200ms"}},
		{"-addr 3001", nil, []string{`-addr "3001"`}},
		{"-addr :http:", nil, []string{`-addr ":http:"`}},
		{"-addr :70000", nil, []string{`-addr ":70000"`}},
		{"-probe localhost:3000", nil, []string{`-probe "localhost:3000"`}},
		{"-probe ftp://x/", nil, []string{`-probe "ftp://x/"`}},
		{"-disk=", nil, []string{"-disk"}},
		{"-disk /nope", nil, []string{`-disk "/nope"`, "no such file"}},
		{"-origins http://a/b", nil, []string{"-origins", "https://example.com:8080"}},
		{"-origins https://A.example/", nil, []string{"-origins"}},
		{"-origins *", nil, []string{`-origins: "*"`, "wildcard"}},
		{"-origins http://a,https://b:443", nil, []string{`"https://b:443"`, "default port"}},
		{"-gzip on", nil, []string{`-gzip "on"`, "browsers", "all", "off"}},
		{"-gzip=", nil, []string{`-gzip ""`}},
		{"-max-streams -1", nil, []string{"-max-streams -1"}},
		{"-max-streams 0", nil, []string{"-max-streams 0"}},
		{"-max-streams 99999999", nil,
			[]string{"-max-streams 99999999", strconv.Itoa(openFilesLimit()), "ulimit -n"}},
		{"-max-streams many", nil, []string{"-max-streams"}},
		{"-log-format xml", nil, []string{`-log-format "xml"`, "text", "json"}},
		{"-log-level verbose", nil, []string{`-log-level "verbose"`, "debug, info, warn"}},
		{"-nonsense", nil, []string{"-nonsense", "-h"}},
		{"stray", nil, []string{`"stray"`, "-h"}},
		{"", []string{"SSE_INTERVAL=soon"}, []string{"SSE_INTERVAL", `"soon"`}},
		{"", []string{"SSE_MAX_STREAMS=x"}, []string{"SSE_MAX_STREAMS"}},
		{"", []string{"SSE_HEARTBEAT=1ms"}, []string{"-heartbeat 1ms"}},
		{"", []string{"SSE_GZIP=ALL"}, []string{`-gzip "ALL"`}},
		{"", []string{"SSE_TOKEN=  "}, []string{"SSE_TOKEN is blank"}},
		{"-token-file x", []string{"SSE_TOKEN=y"}, []string{"SSE_TOKEN", "-token-file", "both"}},
		{"", []string{"SSE_TOKEN=y", "SSE_TOKEN_FILE=x"}, []string{"SSE_TOKEN", "both"}},
		{"-token-file /nope", nil, []string{"-token-file", "no such file"}},
	}
	for _, test := range tests {
		_, err := parseConfig(strings.Fields(test.args), env(test.env...), io.Discard)
		if err == nil {
			t.Errorf("%q %q is no error", test.args, test.env)
			continue
		}
		got := err.Error()
		for _, want := range test.want {
			if !strings.Contains(got, want) {
				t.Errorf("%q %q: the error is %q, want %q in it", test.args, test.env, got, want)
			}
		}
		if strings.Contains(got, "\n") || strings.Contains(got, "slog") || len(got) > 120 {
			t.Errorf("%q %q: the error is %q", test.args, test.env, got)
		}
	}
}

func TestConfigHidesThePasswordOfTheProbe(t *testing.T) {
	t.Parallel()
	for _, probe := range []string{
		"ftp://user:secret@host/",
		"http://user:secret@host:port/",
		"http://user:secret@host/\x7f",
		"//user:secret@host/",
		"user:secret@host/",
		"http:user:secret@host/",
		"http:/user:secret@host/",
	} {
		_, err := parseConfig([]string{"-probe", probe}, env(), io.Discard)
		if err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("the error of %q is %v", probe, err)
		}
	}

	cfg := testConfig(t, "-probe", "http://user:secret@host/?a=b@c")
	s := testServerOf(t, cfg)
	if s.sampler.probe.url != "http://user:secret@host/?a=b@c" {
		t.Errorf("the URL of the probe is %q", s.sampler.probe.url)
	}
	shown := fmt.Sprint(s.config.settings, s.config.changed)
	if strings.Contains(shown, "secret") || !strings.Contains(shown, "@host/?a=b@c") {
		t.Errorf("the settings are shown as %s", shown)
	}
}

func TestConfigHelpNamesEachVariable(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	_, err := parseConfig([]string{"-h"}, env(), &out)
	if err != flag.ErrHelp {
		t.Errorf("the error is %v", err)
	}
	settings := testConfig(t).settings
	for name := range settings {
		variable := "SSE_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
		if !strings.Contains(out.String(), " -"+name) || !strings.Contains(out.String(), variable) {
			t.Errorf("the help lacks -%s or %s:\n%s", name, variable, out.String())
		}
	}
	if len(settings) != 12 {
		t.Errorf("there are %d settings: %v", len(settings), settings)
	}
}

func TestConfigVersionIsPrinted(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	_, err := parseConfig([]string{"-version"}, env("SSE_VERSION=3"), &out)
	if err != flag.ErrHelp || out.String() != "sse-server "+version+"\n" {
		t.Errorf("-version prints %q, the error is %v", out.String(), err)
	}
}

func TestConfigDefaultStreamsLeaveDescriptors(t *testing.T) {
	t.Parallel()
	var limit syscall.Rlimit
	err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit)
	if err != nil {
		t.Fatal(err)
	}
	files := int(min(uint64(limit.Cur), 1<<20))
	want := files - min(max(files/20, 32), 1024) - 32
	if got := testConfig(t).maxStreams; got != want {
		t.Errorf("with %d descriptors -max-streams is %d, want %d", files, got, want)
	}
}

func TestConfigOriginsAreAsBrowsersSendThem(t *testing.T) {
	t.Parallel()
	const form, strict = "must be like https://example.com:8080", "in lower case and without a path"
	for _, test := range []struct{ origin, want string }{
		{"http://localhost:3000", ""},
		{"https://dash.example.com", ""},
		{"https://dash.example.com:8443", ""},
		{"http://dash.example.com:443", ""},
		{"https://dash.example.com:80", ""},
		{"https://xn--bcher-kva.example", ""},
		{"http://[::1]:3000", ""},
		{"capacitor://localhost", ""},
		{"tauri://localhost", ""},
		{"chrome-extension://abcdefghijklmnopabcdefghijklmnop", ""},
		{"https://dash.example.com:443", "default port"},
		{"http://dash.example.com:80", "default port"},
		{"http://[::1]:80", "default port"},
		{"https://bücher.example", "xn--"},
		{"https://*.example.com", "wildcard"},
		{"*", "wildcard"},
		{"https://example.com:*", "wildcard"},
		{"example.com", form},
		{"example.com:3000", form},
		{"null", form},
		{"https://", form},
		{"//example.com", form},
		{"1http://example.com", form},
		{"http://example.com:port", form},
		{"HTTPS://example.com", form},
		{"https://Example.com", strict},
		{"https://example.com/", strict},
		{"https://example.com/path", strict},
		{"https://example.com?x", strict},
		{"https://user@example.com", strict},
		{"https://example.com:", strict},
		{"https://example.com:0443", strict},
		{"https://:3000", strict},
		{"https://a;script-src", strict},
		{"https://a'b", strict},
		{"https://example.com:99999", "browsers do not use"},
		{"http://[0:0:0:0:0:0:0:1]:3000", "browsers do not use"},
	} {
		got := ""
		_, err := parseConfig([]string{"-origins", test.origin}, env(), io.Discard)
		if err != nil {
			got = err.Error()
		}
		if test.want == "" && err == nil {
			continue
		}
		hasName := strings.HasPrefix(got, fmt.Sprintf("-origins: %q ", test.origin))
		if test.want == "" || !hasName || !strings.Contains(got, test.want) {
			t.Errorf("-origins %q: the error is %q, want %q", test.origin, got, test.want)
		}
	}
}

func TestConfigShareIsOneTwentieth(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ openFiles, share int }{
		{64, 32},
		{200, 32},
		{659, 32},
		{660, 33},
		{1024, 51},
		{20000, 1000},
		{20480, 1024},
		{20500, 1024},
		{1 << 20, 1024},
	} {
		got, reserved := connectionShare(test.openFiles), reservedFiles(test.openFiles)
		if got != test.share || reserved != test.share+32 {
			t.Errorf("of %d descriptors %d are the share and %d reserved, want %d and 32 more",
				test.openFiles, got, reserved, test.share)
		}
	}
}

func TestConfigMaxStreamsKnowsTheLimit(t *testing.T) {
	t.Parallel()
	tests := []struct {
		openFiles, maxStreams int
		want                  []string // in the error; nil: there is none
	}{
		{1000, 918, nil}, // the default
		{1000, 1000, nil},
		{1000, 1, nil},
		{65, 1, nil},
		{1000, 1001, []string{"-max-streams 1001", " 1000,", "ulimit -n"}},
		{1000, 0, []string{"-max-streams 0 must be at least 1"}},
		{64, 0, []string{"64", "ulimit -n", "65"}},   // by default
		{20, -44, []string{"20", "ulimit -n", "65"}}, // by default
	}
	for _, test := range tests {
		cfg := config{openFiles: test.openFiles, maxStreams: test.maxStreams}
		err := cfg.validateMaxStreams()
		if (err == nil) != (test.want == nil) {
			t.Errorf("%d streams of %d files: the error is %v", test.maxStreams, test.openFiles, err)
			continue
		}
		for _, want := range test.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%d streams of %d files: the error is %q, want %q in it",
					test.maxStreams, test.openFiles, err, want)
			}
		}
	}
}

// logLines keeps what was logged.
type logLines struct {
	mu  sync.Mutex // guards following
	buf bytes.Buffer
}

func (l *logLines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

// take returns the lines since the last call.
func (l *logLines) take() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	text := strings.TrimSuffix(l.buf.String(), "\n")
	l.buf.Reset()
	if text == "" {
		return nil
	}
	return strings.Split(text, "\n")
}

// testLog returns a log of all levels.
func testLog(format string) (*slog.Logger, *logLines) {
	lines := &logLines{}
	cfg := config{logFormat: format, logLevel: slog.LevelDebug}
	return slog.New(newLogHandler(lines, cfg)), lines
}

// testLoggedServer returns a server that does not run.
func testLoggedServer(t testing.TB, args ...string) (*SSEServer, *logLines) {
	t.Helper()
	s := testServer(t, args...)
	log, lines := testLog("text")
	s.log = log
	s.streamLog.log = log
	return s, lines
}

func TestLogDurationsHaveAUnitInJSON(t *testing.T) {
	t.Parallel()
	tests := []struct {
		duration time.Duration
		want     string
	}{
		{0, "0s"},
		{1234 * time.Nanosecond, "1µs"},
		{123456 * time.Microsecond, "123.456ms"},
		{1234567 * time.Microsecond, "1.235s"},
		{90*time.Minute + 567*time.Microsecond, "1h30m0.001s"},
	}
	for _, test := range tests {
		log, lines := testLog("json")
		log.Info("stopped", "streams_closed", 3, "duration", test.duration)
		var got struct {
			Msg      string
			Duration string
			Closed   int `json:"streams_closed"`
		}
		line := strings.Join(lines.take(), "\n")
		err := json.Unmarshal([]byte(line), &got)
		if err != nil || got.Msg != "stopped" || got.Duration != test.want || got.Closed != 3 {
			t.Errorf("%v: the line is %s, want %q", test.duration, line, test.want)
		}
	}
}

func TestLogDroppedLinesKeepJSONValid(t *testing.T) {
	t.Parallel()
	const written = maxLogLines + 10
	in, out := io.Pipe() // a write waits for a reader
	log, flush := newLog(out, config{logFormat: "json"})
	for i := 0; i < written; i++ {
		log.Info("line", "number", i)
	}

	// Nobody has read yet: flush gives up after a moment.
	start := time.Now()
	flush()
	if took := time.Since(start); took > 3*time.Second {
		t.Errorf("flush took %v", took)
	}

	got, dropped := 0, 0
	scanner := bufio.NewScanner(in)
	for got+dropped < written && scanner.Scan() {
		var line struct {
			Msg           string
			Level         string
			Number, Lines int
		}
		err := json.Unmarshal(scanner.Bytes(), &line)
		if err != nil {
			t.Fatalf("%v in %s", err, scanner.Text())
		}
		switch {
		case line.Msg == "line" && line.Number == got:
			got++
		case strings.Contains(line.Msg, "lines dropped") && line.Level == "WARN":
			dropped += line.Lines
		default:
			t.Fatalf("after %d lines comes %s", got, scanner.Text())
		}
	}
	if dropped == 0 || got < maxLogLines || got+dropped != written {
		t.Errorf("%d lines were written, %d read, %d dropped", written, got, dropped)
	}
}

func TestLogFlushWaitsForTheLastLine(t *testing.T) {
	t.Parallel()
	lines := &logLines{}
	log, flush := newLog(lines, config{logFormat: "text"})
	for i := 0; i < 1000; i++ {
		log.Info("line")
	}
	flush()
	if got := len(lines.take()); got != 1000 {
		t.Errorf("after flush there are %d lines, want 1000", got)
	}
}

func TestLogStartLineFitsATerminal(t *testing.T) {
	t.Parallel()
	cfg, err := parseConfig(nil, env(), io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	log, lines := testLog("text")
	newSSEServer(cfg, listener, log).logStart()

	got := lines.take()
	want := fmt.Sprintf("level=INFO msg=listening url=http://%s/ version=dev", listener.Addr())
	if len(got) != 1 || !strings.HasSuffix(got[0], want) || len(got[0]) > 100 {
		t.Errorf("the log begins with %q, want one line of 100 columns with %q", got, want)
	}
}

func TestLogStartLineNamesWhatIsNotDefault(t *testing.T) {
	t.Parallel()
	s, lines := testLoggedServer(t, "-edge", "-interval", "5s", "-heartbeat", "30s",
		"-probe", "http://user:secret@host/")
	s.logStart()
	got := strings.Join(lines.take(), "\n")
	for _, want := range []string{" edge=true", " interval=5s", " probe=http://user:xxxxx@host/"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q lacks %q", got, want)
		}
	}
	if strings.Contains(got, "heartbeat") || strings.Contains(got, "map[") {
		t.Errorf("the log begins with %q", got)
	}
}

func TestLogHeartbeatIsInfoWhileWatched(t *testing.T) {
	t.Parallel()
	s, lines := testLoggedServer(t)
	check := func(want string) {
		t.Helper()
		s.heartbeat(time.Now())
		got := lines.take()
		if len(got) != 1 || !strings.HasSuffix(got[0], want) {
			t.Errorf("the log has %q, want %q", got, want)
		}
	}

	check("level=DEBUG msg=heartbeat streams=0")
	c, _ := connectionPair(t)
	s.conns[c] = struct{}{}
	s.connsChanges++
	check("level=INFO msg=heartbeat streams=1")
	s.remove(c, io.EOF)
	lines.take()
	check("level=DEBUG msg=heartbeat streams=0")
}

func TestLogBroadcastIsInfoUnlessPeriodic(t *testing.T) {
	t.Parallel()
	s, lines := testLoggedServer(t)
	s.readHost()
	close(s.firstReady)
	request := func(method, path string) {
		r := httptest.NewRequest(method, "http://localhost"+path, strings.NewReader(`{"message":"x"}`))
		r.RemoteAddr = "127.0.0.1:1"
		r.Header.Set("Content-Type", typeJSON)
		s.ServeHTTP(httptest.NewRecorder(), r)
	}

	tests := []struct {
		name, want string
		act        func()
	}{
		{"tick", "level=DEBUG msg=broadcast cause=interval id=", func() { s.tick(time.Now()) }},
		{"trigger", "level=INFO msg=broadcast cause=trigger id=",
			func() { request("GET", "/dashboard/trigger-test") }},
		{"activity", "level=INFO msg=broadcast cause=activity id=",
			func() { request("POST", "/dashboard/activities") }},
		{"snapshot", "level=INFO msg=broadcast cause=snapshot id=",
			func() { request("PUT", "/dashboard/snapshot") }},
		{"delete", "level=INFO msg=broadcast cause=delete id=",
			func() { request("DELETE", "/dashboard/snapshot") }},
	}
	for _, test := range tests {
		test.act()
		got := lines.take()
		isOne := len(got) == 1 && strings.Contains(got[0], test.want)
		if !isOne || !regexp.MustCompile(` streams=0 duration=[0-9.]+[mµ]?s$`).MatchString(got[0]) {
			t.Errorf("%s: the log has %q, want %q", test.name, got, test.want)
		}
	}
}

func TestLogHasRejectedRequestsAtDebug(t *testing.T) {
	t.Parallel()
	s, lines := testLoggedServer(t)
	withToken, tokenLines := testLoggedServer(t)
	withToken.access.token = "secret"

	tests := []struct {
		server       *SSEServer
		lines        *logLines
		method, path string
		origin       string
		status       int
	}{
		{s, lines, "GET", "/nothing", "", 404},
		{s, lines, "POST", "/health", "", 405},
		{s, lines, "POST", "/dashboard/activities", "", 415},
		{s, lines, "GET", "/metrics", "http://evil.example", 403},
		{withToken, tokenLines, "GET", "/metrics", "", 401},
	}
	for _, test := range tests {
		r := httptest.NewRequest(test.method, "http://localhost"+test.path, nil)
		r.RemoteAddr = "127.0.0.1:1234"
		r.Header.Set("Origin", test.origin)
		w := httptest.NewRecorder()
		test.server.ServeHTTP(w, r)

		got := test.lines.take()
		want := fmt.Sprintf("level=DEBUG msg=\"request rejected\" remote=127.0.0.1:1234 method=%s "+
			"path=%s status=%d reason=%q", test.method, test.path, test.status,
			strings.TrimSuffix(w.Body.String(), "\n"))
		if w.Code != test.status || len(got) != 1 || !strings.HasSuffix(got[0], want) {
			t.Errorf("%s %s returns %d, the log has %q, want %q",
				test.method, test.path, w.Code, got, want)
		}
	}
}

func TestLogStreamsHaveALineEach(t *testing.T) {
	t.Parallel()
	log, lines := testLog("text")
	l := streamLog{log: log}
	c := &SSEConnection{number: 7, remote: "10.0.0.1:2", userAgent: "curl/8", since: time.Now(),
		traffic: traffic{events: 3}}
	l.opened(c)
	l.closed(c, "client", errors.New("EOF"), 4)
	l.rejected("10.0.0.2:3", "full, 2 streams are open", nil)
	l.summarize(4)

	got := lines.take()
	want := []string{
		`level=INFO msg="stream opened" stream=7 remote=10.0.0.1:2 user_agent=curl/8$`,
		`level=INFO msg="stream closed" stream=7 remote=10.0.0.1:2 reason=client err=EOF ` +
			`duration=\S+s events=3 streams=4$`,
		`level=WARN msg="stream rejected" remote=10.0.0.2:3 state="full, 2 streams are open"$`,
	}
	if len(got) != len(want) {
		t.Fatalf("the log has %q", got)
	}
	for i, pattern := range want {
		if !regexp.MustCompile(pattern).MatchString(got[i]) {
			t.Errorf("the log has %q, want %q", got[i], pattern)
		}
	}
}

func TestLogSumsUpManyStreams(t *testing.T) {
	t.Parallel()
	log, lines := testLog("text")
	l := streamLog{log: log}
	c := &SSEConnection{since: time.Now()}
	for i := 0; i < 25; i++ {
		l.opened(c)
	}
	l.closed(c, "client", io.EOF, 0)
	l.closed(c, "client", io.EOF, 0)
	l.rejected("10.0.0.2:3", "full", nil)
	if got := len(lines.take()); got != 20 {
		t.Errorf("there are %d lines in a second, want 20", got)
	}

	l.summarize(23)
	want := `level=INFO msg="streams opened and closed" opened=5 closed=2 rejected=1 streams=23`
	if got := lines.take(); len(got) != 1 || !strings.HasSuffix(got[0], want) {
		t.Errorf("the summary is %q, want %q", got, want)
	}

	// The next second has lines again, and a quiet one has none.
	l.summarize(23)
	l.opened(c)
	l.summarize(24)
	if got := lines.take(); len(got) != 1 || !strings.Contains(got[0], "stream opened") {
		t.Errorf("the next second has %q", got)
	}
}

func TestEveryPassesTheTimeOfTheStep(t *testing.T) {
	t.Parallel()
	const interval, slowStep = 20 * time.Millisecond, 70 * time.Millisecond

	ctx, cancel := context.WithCancel(context.Background())
	steps := 0
	every(ctx, 0, interval, func(now time.Time) {
		age := time.Since(now)
		if age > interval {
			t.Errorf("step %d gets a time that is %v old", steps, age)
		}
		steps++
		if steps == 3 {
			cancel()
		}
		time.Sleep(slowStep) // by then a tick waits
	})
}

func TestConfigHelpAnswersInSpiteOfBadVariables(t *testing.T) {
	t.Parallel()
	for _, flagName := range []string{"-h", "-version"} {
		var out strings.Builder
		_, err := parseConfig([]string{flagName}, env("SSE_INTERVAL=2"), &out)
		if !errors.Is(err, flag.ErrHelp) || out.Len() == 0 {
			t.Errorf("%s with a bad SSE_INTERVAL: %v, %q", flagName, err, out.String())
		}
	}
}

func TestConfigNamedOriginsMayWrite(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		args, env []string
		want      bool
	}{
		{nil, nil, false},
		{[]string{"-interval", "1s"}, []string{"SSE_DISK=/"}, false},
		{[]string{"-origins", "https://a.example"}, nil, true},
		{[]string{"-origins", defaultOrigins}, nil, true},
		{nil, []string{"SSE_ORIGINS=" + defaultOrigins}, true},
	} {
		cfg, err := parseConfig(c.args, env(c.env...), io.Discard)
		if err != nil || cfg.hasOrigins != c.want {
			t.Errorf("%q %q: named %v, want %v, %v", c.args, c.env, cfg.hasOrigins, c.want, err)
		}
	}
}

func TestListenerLooksForUnreadInput(t *testing.T) {
	t.Parallel()
	conn, client := tcpPair(t)
	if hasInput(conn) {
		t.Error("there is input before the client has sent any")
	}
	io.WriteString(client, "GET")
	eventually(t, "there is input", func() bool { return hasInput(conn) })

	l := newLimitedListener(nil, 1)
	l.conns[conn] = &connState{waits: 5}
	l.look()
	if got := l.conns[conn].waits; got != 0 {
		t.Errorf("with unread input the server has waited for %d looks, want 0", got)
	}
	l.conns[conn].isActive = true
	l.look()
	if got := l.conns[conn].waits; got != 1 {
		t.Errorf("an active connection with unread input has waited for %d looks, want 1", got)
	}
	l.conns[conn] = &connState{}
	io.ReadFull(conn, make([]byte, len("GET")))
	l.look()
	l.look()
	if got := l.conns[conn].waits; got != 2 {
		t.Errorf("after two looks without input the server has waited for %d", got)
	}
}

func TestListenerClosesTheSilentAtShutdown(t *testing.T) {
	t.Parallel()
	l := newLimitedListener(nil, 3)
	silent, active := &fakeConn{}, &fakeConn{}
	talking, client := tcpPair(t)
	io.WriteString(client, "GET")
	eventually(t, "there is input", func() bool { return hasInput(talking) })
	l.noteState(silent, http.StateNew)
	l.noteState(active, http.StateActive)
	l.noteState(talking, http.StateNew)

	l.closeSilent()
	if !silent.isClosed || active.isClosed || !hasInput(talking) {
		t.Errorf("silent closed: %v, active closed: %v, talking has input: %v",
			silent.isClosed, active.isClosed, hasInput(talking))
	}
}

func TestListenerFullEndsKeepAlive(t *testing.T) {
	t.Parallel()
	s := testServer(t)
	ask := func() string {
		w := httptest.NewRecorder()
		s.ServeHTTP(w, httptest.NewRequest("GET", "http://localhost/health", nil))
		return w.Header().Get("Connection")
	}
	if got := ask(); got != "" {
		t.Errorf("with room Connection is %q", got)
	}
	for i := 0; i < s.listener.share; i++ {
		s.listener.noteState(&fakeConn{}, http.StateActive)
	}
	if got := ask(); got != "close" {
		t.Errorf("without room Connection is %q, want close", got)
	}
}

func (s *SSEServer) announcedCause() string {
	s.causeMu.Lock()
	defer s.causeMu.Unlock()
	return s.nextCause
}

// The trigger comes while an event is on its way to the streams, and makes one of its own.
func TestLogNamesEachEventsOwnCause(t *testing.T) {
	t.Parallel()
	s, lines := testLoggedServer(t)
	close(s.firstReady)
	s.board.update(metrics{time: time.Now()}, nil)

	s.fanOut.mu.Lock()
	var broadcasts sync.WaitGroup
	broadcast := func(cause string) {
		defer broadcasts.Done()
		s.broadcast(cause)
	}
	broadcasts.Add(2)
	go broadcast(causeInterval)
	eventually(t, "an event is on its way", func() bool { return s.newest.Load() != nil })
	go broadcast("trigger")
	eventually(t, "the trigger waits", func() bool { return s.announcedCause() == "trigger" })
	s.fanOut.mu.Unlock()
	broadcasts.Wait()

	got := strings.Join(lines.take(), "\n")
	want := `(?s)level=DEBUG msg=broadcast cause=interval.*level=INFO msg=broadcast cause=trigger`
	if !regexp.MustCompile(want).MatchString(got) {
		t.Errorf("the log is %q", got)
	}
}

// The trigger shares an event that is begun because of the time.
func TestLogNamesTheCauseOfASharedEvent(t *testing.T) {
	t.Parallel()
	s, lines := testLoggedServer(t)
	close(s.firstReady)
	s.board.update(metrics{time: time.Now()}, nil)

	s.publishing.Lock()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.broadcast("trigger")
	}()
	eventually(t, "the trigger waits", func() bool { return s.announcedCause() == "trigger" })
	s.publishLocked(time.Now())
	s.publishing.Unlock()
	<-ended

	got := strings.Join(lines.take(), "\n")
	if !strings.Contains(got, "level=INFO msg=broadcast cause=trigger") {
		t.Errorf("the log is %q", got)
	}
}
