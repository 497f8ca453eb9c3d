package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"reflect"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

func TestStreamHeadAndFirstEventAreAsDocumented(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	s.waitForSnapshot(t)
	c := s.connect(t, "GET /dashboard/stream HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n")
	var got []byte
	for !bytes.Contains(got, []byte("}\n\n")) {
		got = append(got, c.read(t, 1)...)
	}
	want := regexp.MustCompile(`^HTTP/1.1 200 OK\r
Content-Type: text/event-stream\r
Cache-Control: no-cache, no-transform\r
Connection: close\r
X-Accel-Buffering: no\r
Vary: Origin, Accept-Encoding\r
\r
retry: [1-4]\d\d\d
id: \d{13}
data: \{.*\}

$`)
	if !want.Match(got) {
		t.Errorf("the stream begins with\n%s", got)
	}
}

func TestStreamServesOldAndNewClientsWithAnyAccept(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	for _, request := range []string{
		"GET /dashboard/stream HTTP/1.0\r\n\r\n",
		"GET /dashboard/stream HTTP/1.0\r\nAccept: text/event-stream\r\n\r\n",
		"GET /dashboard/stream HTTP/1.1\r\nHost: localhost\r\n\r\n",
		"GET /dashboard/stream?a=b HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\nLast-Event-ID: 7\r\n\r\n",
	} {
		c := s.connect(t, request)
		c.head(t)
		if e := c.event(t); e.id == 0 || !json.Valid(e.data) {
			t.Errorf("%q: first event is %d %s", request, e.id, e.data)
		}
	}
}

var snapshotPattern = regexp.MustCompile(`^\{"system_status":\{"status":"(online|degraded|critical)",` +
	`"uptime":"(less than a minute|(\d+ (day|hour|minute)s?)(, \d+ (hour|minute)s?)?)",` +
	`"last_check":"\d\d:\d\d:\d\d","message":"[^"]+"\},` +
	`"metrics":\{"cpu":"\d+%","memory":"\d+%","disk":"\d+%",` +
	`"network":"(\d\.\d|\d\d+) Mbps|N/A","response_time":"\d+ms"\},` +
	`"activities":\[\{"time":"\d\d:\d\d:\d\d","message":"Dashboard updated","level":"info",` +
	`"css_class":"activity-info"\}.*\],"timestamp":"\d\d:\d\d:\d\d"\}$`)

func TestSnapshotHasTheRailsKeysOrderAndFormats(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("figures are Linux's")
	}
	s := startServer(t)
	if e := s.stream(t).event(t); !snapshotPattern.Match(e.data) {
		t.Errorf("the first snapshot is\n%s", e.data)
	}
}

func TestFirstSnapshotIsThereAfterHalfASecond(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	c := s.stream(t)
	c.event(t)
	if d := time.Since(s.started); d < firstDelay {
		t.Errorf("the first snapshot came after %v: rates need two readings", d)
	}
}

func TestSnapshotsComeEachInterval(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "100ms")
	c := s.stream(t)
	first := c.event(t)
	start := time.Now()
	for i := 0; i < 5; i++ {
		c.event(t)
	}
	if last := c.event(t); last.id-first.id < 500 || time.Since(start) < 400*time.Millisecond {
		t.Errorf("six intervals of 100ms took %d ms by id", last.id-first.id)
	}
}

func TestIntervalZeroSendsOnlyWhenTriggered(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "0")
	c := s.stream(t)
	first := c.event(t)
	time.Sleep(300 * time.Millisecond)
	now := time.Now()
	s.tick(now) // reads the host all the same
	s.mu.Lock()
	got := s.figures.at
	s.mu.Unlock()
	if !got.Equal(now) {
		t.Errorf("the last reading is of %v, want %v", got, now)
	}
	reply := s.trigger(t)
	if e := c.event(t); e.id != reply.ID || e.id <= first.id {
		t.Errorf("after event %d and trigger %d came event %d", first.id, reply.ID, e.id)
	}
}

func TestTriggerReachesAllAndSaysHowMany(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "0")
	var clients []*client
	for i := 0; i < 7; i++ {
		clients = append(clients, s.stream(t))
		clients[i].event(t)
	}
	reply := s.trigger(t)
	if reply.Streams != 7 || reply.Message != "Test broadcast sent" {
		t.Errorf("the trigger answers %+v", reply)
	}
	for _, c := range clients {
		e := c.event(t)
		if a := e.snapshot(t).Activities; e.id != reply.ID || a[0].Message != "Dashboard updated" ||
			a[1].Message != "Test broadcast" || a[1].Level != "info" {
			t.Errorf("event %d has the activities %v", e.id, a)
		}
	}
}

func TestTestBroadcastsInARowBecomeOne(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "0")
	c := s.stream(t)
	c.event(t)
	s.add(newActivity(time.Now(), "info", "Deployed"))
	for i := 0; i < 3; i++ {
		s.trigger(t)
	}
	var e event
	for i := 0; i < 3; i++ {
		e = c.event(t)
	}
	got := []string{}
	for _, a := range e.snapshot(t).Activities {
		got = append(got, a.Message)
	}
	want := []string{"Dashboard updated", "Test broadcast", "Deployed"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("activities are %q, want %q", got, want)
	}
}

func TestActivitiesAreTheLastTenNewestFirst(t *testing.T) {
	t.Parallel()
	s := testServer(t)
	for i := 1; i <= 12; i++ {
		s.add(newActivity(time.Now(), "info", strconv.Itoa(i)))
	}
	got := event{data: []byte(formatSnapshot(figures{}, s.feed, time.Now()))}.snapshot(t).Activities
	if len(got) != 11 || got[0].Message != "Dashboard updated" || got[1].Message != "12" ||
		got[10].Message != "3" {
		t.Errorf("activities are %v", got)
	}
}

func TestTriggerFloodCostsAtMostTwentyBroadcastsASecond(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "0")
	c := s.stream(t)
	c.event(t)
	last := make([]int64, 100)
	s.flood(t, len(last), func(g int) {
		for i := 0; i < 100; i++ {
			last[g] = s.trigger(t).ID
		}
	}, func() {})
	state := s.debug(t)
	for e := c.event(t); e.id != state.NewestID; e = c.event(t) {
	}
	for _, id := range last {
		if id > state.NewestID {
			t.Errorf("trigger %d was answered but its broadcast never came", id)
		}
	}
}

func TestHealthSaysOK(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	if code, _, body := s.request(t, "GET", "/health"); code != 200 || body != "OK" {
		t.Errorf("/health answers %d %q", code, body)
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
	eventually(t, "the closed stream is counted", func() bool { return s.debug(t).Closed["client"] == 1 })
	d := s.debug(t)
	if d.Version != "dev" || d.Open != 1 || d.Allowed != s.maxStreams || d.Opened != 2 ||
		d.Settings["heartbeat"] != "7s" || d.Events < 2 || d.Bytes < uint64(2*len(first.data)) ||
		d.NewestID < first.id || d.Goroutines < 5 || d.Heap == 0 || d.Memory < d.Heap {
		t.Errorf("the state is %+v", d)
	}
	if len(d.Streams) != 1 || d.Streams[0].Remote != c.LocalAddr().String() ||
		d.Streams[0].UserAgent != strings.Repeat("u", maxUserAgent) || d.Streams[0].Events < 1 ||
		d.Streams[0].Encoding != "identity" || time.Since(d.Streams[0].Since) > time.Minute {
		t.Errorf("the streams are %+v", d.Streams)
	}
}

func TestDebugListsTheNewestHundredStreams(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	for i := 0; i < maxListed+5; i++ {
		s.stream(t)
	}
	d := s.debug(t)
	if d.Open != maxListed+5 || len(d.Streams) != maxListed || d.Streams[0].Stream != maxListed+5 {
		t.Errorf("%d streams, %d listed, the first is %d", d.Open, len(d.Streams), d.Streams[0].Stream)
	}
}

func TestEachEndpointTakesItsMethodsOnly(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	for _, c := range []struct {
		method, path string
		code         int
		allow        string
	}{
		{"POST", "/dashboard/stream", 405, "GET"},
		{"HEAD", "/dashboard/stream", 405, "GET"},
		{"OPTIONS", "/dashboard/stream", 405, "GET"},
		{"POST", "/dashboard/trigger-test", 405, "GET"},
		{"HEAD", "/dashboard/trigger-test", 405, "GET"},
		{"DELETE", "/dashboard/debug", 405, "GET, HEAD"},
		{"PUT", "/health", 405, "GET, HEAD"},
		{"HEAD", "/dashboard/debug", 200, ""},
		{"HEAD", "/health", 200, ""},
		{"GET", "/dashboard/stream/", 404, ""},
		{"GET", "/nothing", 404, ""},
		{"POST", "/nothing", 404, ""},
	} {
		code, head, body := s.request(t, c.method, c.path)
		if code != c.code || head.Get("Allow") != c.allow {
			t.Errorf("%s %s answers %d, Allow %q", c.method, c.path, code, head.Get("Allow"))
		}
		if code >= 400 && c.method != "HEAD" && !oneSentence.MatchString(body) {
			t.Errorf("%s %s answers %q, which is not one sentence", c.method, c.path, body)
		}
	}
	if n := s.debug(t).Broadcasts; n > 3 {
		t.Errorf("refused triggers made broadcasts: %d", n)
	}
}

var oneSentence = regexp.MustCompile(`^[A-Z][^\n]*\.\n$`)

func TestPagesOfAllowedOriginsMayUseTheServer(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	for _, path := range []string{"/dashboard/stream", "/dashboard/debug",
		"/dashboard/trigger-test", "/health"} {
		for origin, want := range map[string]string{
			"http://localhost:3000": "http://localhost:3000",
			"http://127.0.0.1:3000": "http://127.0.0.1:3000",
			"http://evil.example":   "",
			"http://localhost:3001": "",
			"":                      "",
		} {
			_, head, _ := s.request(t, "GET", path, "Origin", origin)
			if got := head.Get("Access-Control-Allow-Origin"); got != want {
				t.Errorf("%s from %q allows origin %q", path, origin, got)
			}
			if !strings.HasPrefix(head.Get("Vary"), "Origin") {
				t.Errorf("%s from %q has Vary %q", path, origin, head.Get("Vary"))
			}
		}
		code, head, _ := s.request(t, "OPTIONS", path, "Origin", "http://localhost:3000",
			"Access-Control-Request-Method", "GET")
		if code != 204 || !strings.Contains(head.Get("Access-Control-Allow-Methods"), "GET") ||
			head.Get("Access-Control-Allow-Headers") !=
				"Authorization, Content-Type, Cache-Control, Last-Event-ID" {
			t.Errorf("OPTIONS %s answers %d %v", path, code, head)
		}
	}
}

func TestFullServerSendsBrowsersAwayAndOthersA503(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-max-streams", "2")
	a, b := s.stream(t), s.stream(t)
	a.event(t)
	code, head, body := s.request(t, "GET", "/dashboard/stream", "Accept", "text/event-stream",
		"Origin", "http://localhost:3000")
	if code != 200 || head.Get("Content-Type") != "text/event-stream" ||
		head.Get("Access-Control-Allow-Origin") == "" ||
		!regexp.MustCompile(`^retry: ([5-9]|[12]\d)\d{3}\n: full, 2 streams are open\n\n$`).MatchString(body) {
		t.Errorf("a third EventSource gets %d %v %q", code, head, body)
	}
	code, head, body = s.request(t, "GET", "/dashboard/stream", "Accept", "*/*")
	if wait, _ := strconv.Atoi(head.Get("Retry-After")); code != 503 || wait < 5 || wait > 30 ||
		!oneSentence.MatchString(body) {
		t.Errorf("a third curl gets %d, Retry-After %q, %q", code, head.Get("Retry-After"), body)
	}
	if code, _, _ := s.request(t, "GET", "/health"); code != 200 {
		t.Errorf("/health answers %d when the server is full", code)
	}
	if d := s.debug(t); d.Refused != 2 || d.Open != 2 {
		t.Errorf("refused %d, open %d", d.Refused, d.Open)
	}
	b.Close()
	time.Sleep(2 * retryEvery) // the last look whether a client is gone must not be too fresh
	s.stream(t).event(t)
}

func TestRoomOfStreamsThatAreGoneIsForAllWhoComeAtOnce(t *testing.T) {
	const most = 2000
	var l syscall.Rlimit
	syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l)
	if l.Cur < 3*most {
		t.Skipf("%d descriptors are too few", l.Cur)
	}
	s := startServer(t, "-interval", "1h", "-max-streams", strconv.Itoa(most))
	s.waitForSnapshot(t)
	gone := make([]*client, most)
	for i := range gone {
		gone[i] = s.connect(t, "GET /dashboard/stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
	}
	eventually(t, "the server is full", func() bool { return s.debug(t).Open == most })
	for _, c := range gone {
		c.Conn.(*net.TCPConn).SetLinger(0)
		c.Close()
	}
	time.Sleep(2 * retryEvery) // the last look whether a client is gone must not be too fresh
	var wg sync.WaitGroup
	for i := 0; i < 300; i++ {
		wg.Add(1)
		go func() {
			defer wg.Done()
			s.connect(t, "GET /dashboard/stream HTTP/1.1\r\nHost: localhost\r\n\r\n").line(t)
		}()
	}
	wg.Wait()
	if n := s.debug(t).Refused; n > 0 {
		t.Errorf("%d were refused", n)
	}
}

func TestHeadersOver16KiBAreRefused(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	for size, want := range map[int]int{15 << 10: 200, 17 << 10: 431} {
		code, _, _ := s.request(t, "GET", "/health", "X-Long", strings.Repeat("x", size))
		if code != want {
			t.Errorf("a header of %d bytes is answered with %d, want %d", size, code, want)
		}
	}
}

func TestHalfARequestIsGivenUpAndHoldsNothingUp(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("takes five seconds")
	}
	s := startServer(t)
	c := s.connect(t, "GET /dashboard/stream HTTP/1.1\r\nHost: localhost\r\nX-")
	s.stream(t).event(t)
	c.SetReadDeadline(time.Now().Add(4 * headerTimeout))
	start := time.Now()
	io.ReadAll(c)
	if d := time.Since(start); d < headerTimeout/2 || d > 3*headerTimeout {
		t.Errorf("half a request was given up after %v", d)
	}
}

func TestSettingsThatMakeNoSenseAreRefusedInOneLine(t *testing.T) {
	for _, c := range []struct{ args, env, want string }{
		{"-interval 10ms", "", "-interval 10ms"},
		{"-interval -1s", "", "-interval -1s"},
		{"-interval 2", "", "-interval"},
		{"-heartbeat 0", "", "-heartbeat 0s"},
		{"-addr 3001", "", `-addr "3001"`},
		{"-addr :http:", "", `-addr ":http:"`},
		{"-addr :70000", "", `-addr ":70000"`},
		{"-probe localhost:3000", "", `-probe "localhost:3000"`},
		{"-probe ftp://x/", "", `-probe "ftp://x/"`},
		{"-disk=", "", "-disk"},
		{"-origins http://a/b", "", "-origins"},
		{"-origins *", "", "-origins"},
		{"-max-streams -1", "", "-max-streams -1"},
		{"-max-streams 99999999", "", "ulimit -n"},
		{"-max-streams many", "", "-max-streams"},
		{"-log-format xml", "", `-log-format "xml"`},
		{"-log-level loud", "", "-log-level"},
		{"-nonsense", "", "-nonsense"},
		{"stray", "", `"stray"`},
		{"", "SSE_INTERVAL=soon", "SSE_INTERVAL"},
		{"", "SSE_MAX_STREAMS=x", "SSE_MAX_STREAMS"},
		{"", "SSE_HEARTBEAT=1ms", "-heartbeat 1ms"},
	} {
		_, err := parseSettings(strings.Fields(c.args), env(c.env))
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q %q: error is %v, want one line with %q", c.args, c.env, err, c.want)
		}
	}
}

func TestFlagsWinOverVariables(t *testing.T) {
	s, err := parseSettings([]string{"-interval", "3s", "-origins", "https://A.example/ ,http://b:1"},
		env("SSE_INTERVAL=5s", "SSE_HEARTBEAT=9s", "SSE_PROBE=", "SSE_LOG_LEVEL=warn"))
	if err == nil {
		t.Fatal("an upper-case origin with a slash is no origin")
	}
	s, err = parseSettings([]string{"-interval", "3s", "-origins", "https://a.example, http://b:1"},
		env("SSE_INTERVAL=5s", "SSE_HEARTBEAT=9s", "SSE_PROBE=", "SSE_LOG_LEVEL=warn"))
	if err != nil {
		t.Fatal(err)
	}
	if s.interval != 3*time.Second || s.heartbeat != 9*time.Second || s.probe != "" ||
		s.logLevel != slog.LevelWarn || s.addr != ":3001" || s.disk != "/" ||
		!reflect.DeepEqual(s.origins, []string{"https://a.example", "http://b:1"}) {
		t.Errorf("settings are %+v", s)
	}
}

func TestDefaultMaxStreamsLeavesDescriptors(t *testing.T) {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		t.Fatal(err)
	}
	limit := int(l.Cur)
	s, err := parseSettings(nil, env())
	if want := limit - max(limit/20, 64); err != nil || s.maxStreams != want {
		t.Errorf("with %d descriptors -max-streams is %d, want %d (%v)", limit, s.maxStreams, want, err)
	}
}

func TestShutdownAnswersTheTriggerThatWaits(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "0")
	s.waitForSnapshot(t)
	s.trigger(t) // the next one waits for 50 ms
	codes := make(chan int, 1)
	go func() {
		code, _, _ := s.request(t, "GET", "/dashboard/trigger-test")
		codes <- code
	}()
	time.Sleep(minInterval / 5)
	s.stop()
	if code := <-codes; code != 200 {
		t.Errorf("the trigger was answered with %d", code)
	}
}

func TestLogBeyondItsBoundIsDroppedAndCounted(t *testing.T) {
	r, out := io.Pipe() // writes wait for a reader
	w := newLogWriter(out)
	for i := 0; i < maxLog+10; i++ {
		fmt.Fprintf(w, "line %d\n", i)
	}
	got, dropped := 0, 0
	lines := bufio.NewScanner(r)
	for got+dropped < maxLog+10 && lines.Scan() {
		if lines.Text() == fmt.Sprint("line ", got) {
			got++
		} else if _, err := fmt.Sscanf(lines.Text(), "%d log lines were dropped:", &dropped); err != nil {
			t.Fatalf("%q after %d lines", lines.Text(), got)
		}
	}
	if dropped == 0 || got < maxLog {
		t.Errorf("%d lines, %d dropped", got, dropped)
	}
}

// Below is the harness: servers in this process, and a client on a bare socket.

// A server runs in this process on a free port.
type server struct {
	*SSEServer
	addr string
	stop func() // and wait until it has ended
}

// testServer is a server that does not run.
func testServer(t testing.TB, args ...string) *SSEServer {
	t.Helper()
	set, err := parseSettings(append([]string{"-addr", "127.0.0.1:0"}, args...), env())
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", set.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return newSSEServer(set, l, slog.New(slog.NewTextHandler(io.Discard, nil)))
}

func startServer(t testing.TB, args ...string) *server {
	t.Helper()
	s := &server{SSEServer: testServer(t, args...)}
	s.addr = s.listener.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.serve(ctx) }()
	var once sync.Once
	s.stop = func() {
		once.Do(func() {
			cancel()
			select {
			case err := <-ended:
				if err != nil {
					t.Errorf("the server ended with %v", err)
				}
			case <-time.After(5 * time.Second):
				t.Error("the server did not end")
			}
		})
	}
	t.Cleanup(s.stop)
	return s
}

func (s *server) waitForSnapshot(t testing.TB) {
	t.Helper()
	eventually(t, "there is a snapshot", func() bool { return s.newest.Load() != nil })
}

func (s *server) connect(t testing.TB, request string) *client {
	t.Helper()
	return dial(t, s.addr, request)
}

// stream opens a stream and reads its head.
func (s *server) stream(t testing.TB) *client {
	t.Helper()
	c := s.connect(t, "GET /dashboard/stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
	c.head(t)
	return c
}

// request gives the status, the header and, but for a stream, the body.
func (s *server) request(t testing.TB, method, path string, header ...string) (int, http.Header, string) {
	t.Helper()
	return s.send(t, method, path, "", header...)
}

// send is request with a body.
func (s *server) send(t testing.TB, method, path, body string, header ...string) (int, http.Header, string) {
	t.Helper()
	req, err := http.NewRequest(method, "http://"+s.addr+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		if header[i] == "Host" {
			req.Host = header[i+1]
		} else if header[i+1] == "empty" { // the line is there
			req.Header.Set(header[i], "")
		} else if header[i+1] != "" {
			req.Header.Set(header[i], header[i+1])
		}
	}
	tr := &http.Transport{DisableKeepAlives: true}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		t.Error(err)
		return 0, http.Header{}, ""
	}
	defer resp.Body.Close()
	if resp.Header.Get("X-Accel-Buffering") != "" {
		return resp.StatusCode, resp.Header, ""
	}
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Error(err)
	}
	return resp.StatusCode, resp.Header, string(answer)
}

// flood calls each for 0 to n-1 at the same time and then last, which must make at most twenty
// broadcasts a second.
func (s *server) flood(t testing.TB, n int, each func(i int), last func()) {
	t.Helper()
	start, before := time.Now(), s.debug(t).Broadcasts
	var wg sync.WaitGroup
	for i := 0; i < n; i++ {
		wg.Add(1)
		go func(i int) {
			defer wg.Done()
			each(i)
		}(i)
	}
	wg.Wait()
	last()
	most := int(time.Since(start)/minInterval) + 1
	if got := s.debug(t).Broadcasts - before; got > most || got < 2 {
		t.Errorf("a flood of %v cost %d broadcasts, at most %d are allowed", time.Since(start), got, most)
	}
}

type triggerReply struct {
	Message string
	ID      int64
	Streams int
}

func (s *server) trigger(t testing.TB) (reply triggerReply) {
	t.Helper()
	code, head, body := s.request(t, "GET", "/dashboard/trigger-test")
	if err := json.Unmarshal([]byte(body), &reply); code != 200 || err != nil ||
		head.Get("Content-Type") != "application/json" {
		t.Errorf("the trigger answers %d %q", code, body)
	}
	return reply
}

type debugState struct {
	Version    string
	Settings   map[string]string
	Open       int    `json:"streams_open"`
	Allowed    int    `json:"streams_allowed"`
	Opened     int    `json:"streams_opened"`
	Refused    int    `json:"streams_refused"`
	Events     int    `json:"events_sent"`
	Skipped    int    `json:"events_skipped"`
	Bytes      uint64 `json:"bytes_sent"`
	Closed     map[string]int
	Broadcasts int
	NewestID   int64 `json:"newest_id"`
	Goroutines int
	Heap       uint64 `json:"heap_bytes"`
	Memory     uint64 `json:"memory_bytes"`
	Streams    []struct {
		Stream    int
		Remote    string
		UserAgent string `json:"user_agent"`
		Since     time.Time
		Events    int
		Skipped   int
		Bytes     uint64
		Encoding  string
		Behind    float64 `json:"seconds_behind"`
	}
}

func (s *server) debug(t testing.TB) (d debugState) {
	t.Helper()
	_, _, body := s.request(t, "GET", "/dashboard/debug")
	if err := json.Unmarshal([]byte(body), &d); err != nil {
		t.Fatalf("/dashboard/debug: %v in %s", err, body)
	}
	return d
}

// A client reads a stream from a bare socket.
type client struct {
	net.Conn
	r *bufio.Reader
}

type event struct {
	id   int64
	data []byte
}

func dial(t testing.TB, addr, request string) *client {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if _, err := io.WriteString(c, request); err != nil {
		t.Fatal(err)
	}
	return &client{c, bufio.NewReader(c)}
}

// read reads n bytes; it waits for them for ten seconds.
func (c *client) read(t testing.TB, n int) []byte {
	t.Helper()
	b := make([]byte, n)
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.ReadFull(c.r, b); err != nil {
		t.Fatal(err)
	}
	return b
}

func (c *client) line(t testing.TB) string {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	line, err := c.r.ReadString('\n')
	if err != nil {
		t.Fatalf("after %q: %v", line, err)
	}
	return line
}

// head reads up to the line with retry.
func (c *client) head(t testing.TB) {
	t.Helper()
	if line := c.line(t); line != "HTTP/1.1 200 OK\r\n" {
		t.Fatalf("the stream begins with %q", line)
	}
	for c.line(t) != "\r\n" {
	}
	if line := c.line(t); !strings.HasPrefix(line, "retry: ") {
		t.Fatalf("after the head comes %q", line)
	}
}

// event reads the next event, and fails on anything that is neither an event nor a heartbeat.
func (c *client) event(t testing.TB) (e event) {
	t.Helper()
	for {
		line := c.line(t)
		if line == ": heartbeat\n" {
			if blank := c.line(t); blank != "\n" {
				t.Fatalf("after a heartbeat comes %q", blank)
			}
			continue
		}
		data := c.line(t)
		if _, err := fmt.Sscanf(line, "id: %d\n", &e.id); err != nil ||
			!strings.HasPrefix(data, "data: ") || c.line(t) != "\n" {
			t.Fatalf("this is no event: %q %q", line, data)
		}
		e.data = []byte(strings.TrimSuffix(data[6:], "\n"))
		return e
	}
}

// A snapshot is what an event's data says.
type snapshot struct {
	SystemStatus struct {
		Status    string
		Uptime    string
		LastCheck string `json:"last_check"`
		Message   string
	} `json:"system_status"`
	Metrics    metrics
	Activities []activity
	Timestamp  string
}

type metrics struct {
	CPU, Memory, Disk, Network string
	ResponseTime               string `json:"response_time"`
}

func (e event) snapshot(t testing.TB) (s snapshot) {
	t.Helper()
	if err := json.Unmarshal(e.data, &s); err != nil {
		t.Fatalf("%v in %s", err, e.data)
	}
	return s
}

func env(vars ...string) func(string) string {
	return func(name string) string {
		for _, v := range vars {
			if n, value, _ := strings.Cut(v, "="); n == name {
				return value
			}
		}
		return ""
	}
}

// eventually fails if ok does not become true within ten seconds.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("it never came true that %s", what)
}
