package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// A server runs in this process on a free port.
type server struct {
	*SSEServer
	addr string
	stop func() // and wait until it has ended
}

// testConfig is the config of these flags, on a free port of 127.0.0.1.
func testConfig(t testing.TB, args ...string) config {
	t.Helper()
	cfg, err := parseConfig(append([]string{"-addr", "127.0.0.1:0"}, args...), env(), io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// testServer returns a server that does not run.
func testServer(t testing.TB, args ...string) *SSEServer {
	t.Helper()
	return testServerOf(t, testConfig(t, args...))
}

func testServerOf(t testing.TB, cfg config) *SSEServer {
	t.Helper()
	listener, err := net.Listen("tcp", cfg.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	return newSSEServer(cfg, listener, noLog())
}

func noLog() *slog.Logger {
	return slog.New(slog.NewTextHandler(io.Discard, nil))
}

func startServer(t testing.TB, args ...string) *server {
	t.Helper()
	return startServerOf(t, testConfig(t, args...))
}

func startServerOf(t testing.TB, cfg config) *server {
	t.Helper()
	return serve(t, testServerOf(t, cfg))
}

// serve starts a server that does not run yet.
func serve(t testing.TB, idle *SSEServer) *server {
	t.Helper()
	s := &server{SSEServer: idle}
	s.addr = s.listener.Addr().String()

	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1) // read once
	go func() { ended <- s.serve(ctx) }()

	var once sync.Once
	stop := func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("the server ended with %v", err)
			}
		case <-time.After(5 * time.Second):
			t.Error("the server did not end")
		}
	}
	s.stop = func() { once.Do(stop) }
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

const streamRequest = "GET /dashboard/stream HTTP/1.1\r\nHost: localhost\r\n\r\n"

// stream opens a stream and reads its head.
func (s *server) stream(t testing.TB) *client {
	t.Helper()
	c := s.connect(t, streamRequest)
	c.head(t)
	return c
}

// request returns the status, the header and, except for a stream, the body.
func (s *server) request(t testing.TB, method, path string, header ...string) (int, http.Header, string) {
	t.Helper()
	return s.send(t, method, path, "", header...)
}

// send is request with a body. The header is names and values in turn: a value "" leaves the line
// out, "empty" sends it empty.
func (s *server) send(t testing.TB, method, path, body string, header ...string) (int, http.Header, string) {
	t.Helper()
	req, err := http.NewRequest(method, "http://"+s.addr+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		name, value := header[i], header[i+1]
		switch {
		case name == "Host":
			req.Host = value
		case value == "empty":
			req.Header.Set(name, "")
		case value != "":
			req.Header.Set(name, value)
		}
	}

	transport := &http.Transport{DisableKeepAlives: true}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		t.Error(err)
		return 0, http.Header{}, ""
	}
	defer resp.Body.Close()
	isStream := resp.Header.Get("X-Accel-Buffering") != ""
	if isStream {
		return resp.StatusCode, resp.Header, ""
	}
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Error(err)
	}
	return resp.StatusCode, resp.Header, string(answer)
}

// flood calls each for 0 to n-1 at the same time and then last. Together they must make at most
// twenty broadcasts a second.
func (s *server) flood(t testing.TB, n int, each func(i int), last func()) {
	t.Helper()
	start, before := time.Now(), s.debug(t).Broadcasts
	var calls sync.WaitGroup
	for i := 0; i < n; i++ {
		calls.Add(1)
		go func(i int) {
			defer calls.Done()
			each(i)
		}(i)
	}
	calls.Wait()
	last()

	most := int(time.Since(start)/minInterval) + 1
	got := s.debug(t).Broadcasts - before
	if got > most || got < 2 {
		t.Errorf("a flood of %v made %d broadcasts, want 2 to %d", time.Since(start), got, most)
	}
}

type triggerReply struct {
	Message string
	ID      int64
	Streams int
}

func (s *server) trigger(t testing.TB) triggerReply {
	t.Helper()
	var reply triggerReply
	code, head, body := s.request(t, "GET", "/dashboard/trigger-test")
	err := json.Unmarshal([]byte(body), &reply)
	if code != 200 || err != nil || head.Get("Content-Type") != "application/json" {
		t.Errorf("the trigger answers %d %q", code, body)
	}
	return reply
}

// put shows an external snapshot.
func (s *server) put(t testing.TB, snapshot string) {
	t.Helper()
	code, _, body := s.send(t, "PUT", "/dashboard/snapshot", snapshot, "Content-Type", typeJSON)
	if code != 204 || body != "" {
		t.Errorf("putting answers %d %q", code, body)
	}
}

// debugState is the answer of /dashboard/debug.
type debugState struct {
	Version     string
	Started     time.Time
	Settings    map[string]string
	Source      string
	Status      string
	SnapshotAge *float64       `json:"snapshot_age_seconds"`
	Open        int            `json:"streams_open"`
	Allowed     int            `json:"streams_allowed"`
	Opened      int            `json:"streams_opened"`
	Rejected    int            `json:"streams_rejected"`
	Closed      map[string]int `json:"streams_closed"`
	ConnsClosed int            `json:"connections_closed"`
	Events      int            `json:"events_sent"`
	Skipped     int            `json:"events_skipped"`
	Bytes       uint64         `json:"bytes_sent"`
	Broadcasts  int
	LastID      int64 `json:"last_id"`
	Goroutines  int
	Heap        uint64 `json:"heap_bytes"`
	Memory      uint64 `json:"memory_bytes"`
	Streams     []struct {
		Stream    int
		Remote    string
		UserAgent string `json:"user_agent"`
		Since     time.Time
		Events    int
		Skipped   int
		Bytes     uint64
		Encoding  string
		Lagging   float64 `json:"lagging_seconds"`
	}
}

func (s *server) debug(t testing.TB) debugState {
	t.Helper()
	var state debugState
	_, _, body := s.request(t, "GET", "/dashboard/debug")
	err := json.Unmarshal([]byte(body), &state)
	if err != nil {
		t.Fatalf("/dashboard/debug: %v in %s", err, body)
	}
	return state
}

var (
	promHead = regexp.MustCompile(`^# (HELP|TYPE) ([a-z_]+) (.+)$`)
	promLine = regexp.MustCompile(
		`^([a-z_]+)(\{[a-z_]+="[^"]*"(?:,[a-z_]+="[^"]*")*\})? ([-+.e0-9]+)$`)
)

// metrics returns the values of /metrics by name and labels.
func (s *server) metrics(t testing.TB) map[string]float64 {
	t.Helper()
	code, head, text := s.request(t, "GET", "/metrics")
	if code != 200 || head.Get("Content-Type") != "text/plain; version=0.0.4" {
		t.Fatalf("/metrics answers %d, %v", code, head)
	}

	values := map[string]float64{}
	described := map[string]bool{}
	for _, line := range strings.Split(strings.TrimSuffix(text, "\n"), "\n") {
		if m := promHead.FindStringSubmatch(line); m != nil {
			described[m[1]+m[2]] = true
			continue
		}
		m := promLine.FindStringSubmatch(line)
		if m == nil {
			t.Fatalf("a line is %q", line)
		}
		name, labels := m[1], m[2]
		if !described["HELP"+name] || !described["TYPE"+name] {
			t.Errorf("%s has no HELP or TYPE before it", name)
		}
		if _, twice := values[name+labels]; twice {
			t.Errorf("%s is there twice", name+labels)
		}
		values[name+labels], _ = strconv.ParseFloat(m[3], 64)
	}
	return values
}

// A client reads a stream from a bare socket.
type client struct {
	net.Conn
	r *bufio.Reader
}

// A received is an event as a client has it.
type received struct {
	id   int64
	data []byte
}

func dial(t testing.TB, addr, request string) *client {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	_, err = io.WriteString(conn, request)
	if err != nil {
		t.Fatal(err)
	}
	return &client{Conn: conn, r: bufio.NewReader(conn)}
}

// read reads n bytes. It waits for them for ten seconds.
func (c *client) read(t testing.TB, n int) []byte {
	t.Helper()
	b := make([]byte, n)
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	_, err := io.ReadFull(c.r, b)
	if err != nil {
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

// head reads up to and with the line that has retry.
func (c *client) head(t testing.TB) {
	t.Helper()
	c.header(t)
	if line := c.line(t); !strings.HasPrefix(line, "retry: ") {
		t.Fatalf("after the head comes %q", line)
	}
}

// header reads the head and returns it. From then on the client reads what is in the chunks.
func (c *client) header(t testing.TB) string {
	t.Helper()
	if line := c.line(t); line != "HTTP/1.1 200 OK\r\n" {
		t.Fatalf("the stream begins with %q", line)
	}
	header := ""
	for line := c.line(t); line != "\r\n"; line = c.line(t) {
		header += line
	}
	if strings.Contains(header, "Transfer-Encoding: chunked\r\n") {
		c.r = bufio.NewReader(httputil.NewChunkedReader(c.r))
	}
	return header
}

// event reads the next event. It fails on anything that is neither an event nor a heartbeat.
func (c *client) event(t testing.TB) received {
	t.Helper()
	line := c.line(t)
	for line == ": heartbeat\n" {
		if blank := c.line(t); blank != "\n" {
			t.Fatalf("after a heartbeat comes %q", blank)
		}
		line = c.line(t)
	}

	var e received
	_, err := fmt.Sscanf(line, "id: %d\n", &e.id)
	data := c.line(t)
	if err != nil || !strings.HasPrefix(data, "data: ") || c.line(t) != "\n" {
		t.Fatalf("this is no event: %q %q", line, data)
	}
	e.data = []byte(strings.TrimSuffix(data[len("data: "):], "\n"))
	return e
}

func (e received) snapshot(t testing.TB) hostSnapshot {
	t.Helper()
	var s hostSnapshot
	err := json.Unmarshal(e.data, &s)
	if err != nil {
		t.Fatalf("%v in %s", err, e.data)
	}
	return s
}

// env returns a getenv for variables like "SSE_ADDR=:1".
func env(vars ...string) func(string) string {
	return func(name string) string {
		for _, v := range vars {
			n, value, _ := strings.Cut(v, "=")
			if n == name {
				return value
			}
		}
		return ""
	}
}

// eventually fails if ok does not become true within ten seconds.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	end := time.Now().Add(10 * time.Second)
	for time.Now().Before(end) {
		if ok() {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("it never became true that %s", what)
}
