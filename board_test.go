package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net"
	"net/http/httptest"
	"reflect"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"
)

// deleteSnapshot ends an external snapshot.
func (s *server) deleteSnapshot(t testing.TB) {
	t.Helper()
	code, _, body := s.request(t, "DELETE", "/dashboard/snapshot")
	if code != 204 || body != "" {
		t.Errorf("DELETE returns %d %q", code, body)
	}
}

// post posts an activity, as JSON.
func (s *server) post(t testing.TB, activity string) (code int, body string) {
	t.Helper()
	code, _, body = s.send(t, "POST", "/dashboard/activities", activity, "Content-Type", typeJSON)
	return code, body
}

// messages are those of the activities of an event.
func (e received) messages(t testing.TB) []string {
	t.Helper()
	var list []string
	for _, a := range e.snapshot(t).Activities {
		list = append(list, a.Message)
	}
	return list
}

// heartbeat reads the next lines, which must be a heartbeat.
func (c *client) heartbeat(t testing.TB) {
	t.Helper()
	got := c.line(t) + c.line(t)
	if got != ": heartbeat\n\n" {
		t.Fatalf("instead of a heartbeat comes %q", got)
	}
}

// recent returns the recent activities, newest first.
func (b *board) recent() []activity {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.activities)
}

// longMessage is an activity whose message has n characters.
func longMessage(n int) string {
	return `{"message":"` + strings.Repeat("ä", n) + `"}`
}

func TestActivityReachesEachStream(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "1h")
	clients := []*client{s.stream(t), s.stream(t)}
	for _, c := range clients {
		c.event(t)
	}

	code, head, body := s.send(t, "POST", "/dashboard/activities",
		`{"message":"Deployed v42 — 🚀","level":"success"}`,
		"Content-Type", "application/json; charset=utf-8")
	var reply struct {
		Activity activity
		ID       int64
		Streams  int
	}
	err := json.Unmarshal([]byte(body), &reply)
	if code != 201 || err != nil || head.Get("Content-Type") != typeJSON {
		t.Fatalf("posting returns %d %q", code, body)
	}
	if reply.Streams != 2 {
		t.Errorf("the answer counts %d streams, want 2", reply.Streams)
	}

	for _, c := range clients {
		e := c.event(t)
		got := e.snapshot(t).Activities[1]
		want := activity{Time: got.Time, Message: "Deployed v42 — 🚀", Level: "success",
			CSSClass: "activity-success"}
		if got != want || reply.Activity != got || reply.ID != e.id {
			t.Errorf("event %d has %+v, want %+v; the answer is %+v", e.id, got, want, reply)
		}
	}
}

func TestActivityLevelIsInfoByDefault(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "1h")
	s.waitForSnapshot(t)
	code, body := s.post(t, `{"message":"x"}`)
	if code != 201 || !strings.Contains(body, `"level":"info","css_class":"activity-info"`) {
		t.Errorf("without a level, posting returns %d %q", code, body)
	}
}

func TestActivityRejectionsSayWhy(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "1h")
	s.waitForSnapshot(t)
	before := s.newest.Load()

	tests := []struct {
		contentType, body string
		code              int
		want              string
	}{
		{"", `{"message":"x"}`, 415, "Content-Type"},
		{"text/plain", `{"message":"x"}`, 415, "Content-Type"},
		{"application/x-www-form-urlencoded", `message=x`, 415, "Content-Type"},
		{typeJSON, `{"message":"x"}` + strings.Repeat(" ", 4096), 413, "4096"},
		{typeJSON, ``, 400, "JSON"},
		{typeJSON, ` `, 400, "JSON"},
		{typeJSON, `{"message":"x"`, 400, "JSON"},
		{typeJSON, `{"message":"x"}{}`, 400, "JSON"},
		{typeJSON, `[{"message":"x"}]`, 400, "JSON"},
		{typeJSON, `"x"`, 400, "JSON"},
		{typeJSON, `null`, 400, "JSON"},
		{typeJSON, `{}`, 400, "message"},
		{typeJSON, `{"Message":"x"}`, 400, "message"},
		{typeJSON, `{"message":""}`, 400, "message"},
		{typeJSON, `{"message":null}`, 400, "message"},
		{typeJSON, `{"message":7}`, 400, "message"},
		{typeJSON, `{"message":["x"]}`, 400, "message"},
		{typeJSON, `{"message":"a\nb"}`, 400, "message"},
		{typeJSON, `{"message":"a\u0000b"}`, 400, "message"},
		{typeJSON, `{"message":"a\u0085b"}`, 400, "message"},
		{typeJSON, longMessage(501), 400, "message"},
		{typeJSON, "{\"message\":\"a\xffb\"}", 400, "UTF-8"},
		{typeJSON, `{"message":"x","level":"fatal"}`, 400, "level"},
		{typeJSON, `{"message":"x","level":""}`, 400, "level"},
		{typeJSON, `{"message":"x","level":null}`, 400, "level"},
		{typeJSON, `{"message":"x","level":1}`, 400, "level"},
		{typeJSON, `{"message":"x","levle":"info"}`, 400, "level"},
	}
	for _, test := range tests {
		code, _, body := s.send(t, "POST", "/dashboard/activities", test.body,
			"Content-Type", test.contentType)
		if code != test.code || !oneSentence.MatchString(body) || !strings.Contains(body, test.want) {
			t.Errorf("%.60q (%s) returns %d %q, want %d and %q",
				test.body, test.contentType, code, body, test.code, test.want)
		}
	}

	half := dial(t, s.addr, "POST /dashboard/activities HTTP/1.1\r\nHost: localhost\r\n"+
		"Content-Type: application/json\r\nContent-Length: 50\r\n\r\n{\"mess")
	half.Conn.(*net.TCPConn).CloseWrite()
	if line := half.line(t); line != "HTTP/1.1 400 Bad Request\r\n" {
		t.Errorf("half a body returns %q", line)
	}

	if s.newest.Load() != before || len(s.board.recent()) != 0 {
		t.Errorf("a rejected activity is there: %+v", s.board.recent())
	}
	code, body := s.post(t, longMessage(500))
	if code != 201 {
		t.Errorf("500 characters return %d %q", code, body)
	}
}

func TestActivityIsRejectedWhileExternalShows(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "1h")
	c := s.stream(t)
	c.event(t)
	s.put(t, `{"n":1}`)
	c.event(t)

	code, body := s.post(t, `{"message":"unseen"}`)
	if code != 409 || !oneSentence.MatchString(body) {
		t.Errorf("posting returns %d %q", code, body)
	}
	s.deleteSnapshot(t)
	if got := c.event(t).messages(t); !slices.Equal(got, []string{"Dashboard updated"}) {
		t.Errorf("after DELETE the activities are %q", got)
	}
}

func TestActivityFloodKeepsTheLatestTen(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "1h")
	c := s.stream(t)
	c.event(t)

	post := func(message string) {
		code, body := s.post(t, `{"message":"`+message+`"}`)
		if code != 201 {
			t.Errorf("posting returns %d %q", code, body)
		}
	}
	s.flood(t, 8, func(worker int) {
		for i := 0; i < 10; i++ {
			post(fmt.Sprintf("%d of %d", i, worker))
		}
	}, func() { post("last") })

	got := c.event(t).messages(t)
	for len(got) < 2 || got[1] != "last" {
		got = c.event(t).messages(t)
	}
	if len(got) != 11 {
		t.Errorf("there are %d activities, want 11", len(got))
	}
}

func TestActivitiesAreTheLatestTenNewestFirst(t *testing.T) {
	t.Parallel()
	var b board
	b.update(metrics{time: time.Now()}, []activity{newActivity(time.Now(), "warning", "alarm")})
	want := []string{"Dashboard updated"}
	for i := 1; i <= 12; i++ {
		b.add(newActivity(time.Now(), "info", strconv.Itoa(i)))
	}
	for i := 12; i > 2; i-- {
		want = append(want, strconv.Itoa(i))
	}

	line, _ := b.snapshot(time.Now())
	got := received{data: line}.messages(t)
	if !slices.Equal(got, want) {
		t.Errorf("the activities are %q, want %q", got, want)
	}
}

func TestActivitiesHaveTestBroadcastsInARowOnce(t *testing.T) {
	t.Parallel()
	b := board{metrics: metrics{time: time.Now()}}
	now := time.Now()
	b.add(newTestActivity(now))
	b.add(newTestActivity(now))
	b.add(newActivity(now, "info", "Deployed"))
	b.add(newTestActivity(now))
	b.add(newTestActivity(now.Add(time.Second)))

	line, _ := b.snapshot(now)
	e := received{data: line}
	want := []string{"Dashboard updated", "Test broadcast", "Deployed", "Test broadcast"}
	if got := e.messages(t); !slices.Equal(got, want) {
		t.Errorf("the activities are %q, want %q", got, want)
	}
	newest := now.Add(time.Second).Format(time.TimeOnly)
	if got := e.snapshot(t).Activities[1].Time; got != newest {
		t.Errorf("the test broadcast is of %s, want %s", got, newest)
	}
}

func TestActivityNamedTestBroadcastStays(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "0")
	c := s.stream(t)
	c.event(t)

	s.post(t, `{"message":"Test broadcast"}`)
	c.event(t)
	s.trigger(t)
	c.event(t)
	s.trigger(t)
	got := c.event(t).messages(t)
	want := []string{"Dashboard updated", "Test broadcast", "Test broadcast"}
	if !slices.Equal(got, want) {
		t.Errorf("after two triggers the activities are %q, want %q", got, want)
	}
}

func TestSnapshotPutIsSentAsItIs(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "1h")
	c := s.stream(t)
	before := c.event(t)

	tests := []struct{ put, want string }{
		{"{\n  \"b\": 1.50,\r\n\t\"a\": [\"é \\u2028\"]\n}", `{"b":1.50,"a":["é \u2028"]}`},
		{`{"c":2}`, `{"c":2}`},
		{`{"html":"<a href='x'>&amp;</a>"}`, `{"html":"<a href='x'>&amp;</a>"}`},
		{`{"escaped":"\u003c\/\u003e"}`, `{"escaped":"\u003c\/\u003e"}`},
		{"{\"line ends\":\"\u2028 \u2029 \u0085\"}", `{"line ends":"\u2028 \u2029 \u0085"}`},
		{"{\"\\\\\u2028\":\"\u2027\u202a\u0084\"}", "{\"\\\\\\u2028\":\"\u2027\u202a\u0084\"}"},
		{`{"n":1e999,"n":0.10,"":[]}`, `{"n":1e999,"n":0.10,"":[]}`},
		{`{}`, `{}`},
	}
	for _, test := range tests {
		s.put(t, test.put)
		got := c.event(t)
		if string(got.data) != test.want || got.id <= before.id {
			t.Errorf("%s is sent as %d %s, want %s", test.put, got.id, got.data, test.want)
		}

		first := s.stream(t).event(t)
		if string(first.data) != test.want || first.id != got.id {
			t.Errorf("a new stream begins with %d %s, want %d %s",
				first.id, first.data, got.id, test.want)
		}
		before = got
	}
}

func TestSnapshotIsReadAsItIsOnShow(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "1h")
	s.waitForSnapshot(t)
	check := func(when string) {
		t.Helper()
		want := string(dataOf(t, s.newest.Load())) + "\n"
		code, head, body := s.request(t, "GET", "/dashboard/snapshot")
		if code != 200 || head.Get("Content-Type") != typeJSON || body != want {
			t.Errorf("%s GET returns %d %v %q, want %q", when, code, head, body, want)
		}

		code, head, _ = s.request(t, "HEAD", "/dashboard/snapshot")
		length := head.Get("Content-Length")
		if code != 200 || head.Get("Content-Type") != typeJSON || length != strconv.Itoa(len(want)) {
			t.Errorf("%s HEAD returns %d %v, want %d bytes", when, code, head, len(want))
		}
	}

	check("at first")
	s.put(t, "{\n\"a\":\"\u2028\"}")
	check("after a PUT")
	s.deleteSnapshot(t)
	check("after DELETE")
	s.trigger(t)
	check("after a trigger")
}

func TestSnapshotIsMissingBeforeTheFirst(t *testing.T) {
	t.Parallel()
	check := func(when string, s *SSEServer) {
		t.Helper()
		for _, method := range []string{"GET", "HEAD"} {
			w := httptest.NewRecorder()
			s.ServeHTTP(w, httptest.NewRequest(method, "http://localhost/dashboard/snapshot", nil))
			wait, _ := strconv.Atoi(w.Header().Get("Retry-After"))
			if w.Code != 503 || wait < 1 || !oneSentence.MatchString(w.Body.String()) {
				t.Errorf("%s %s returns %d %v %q", when, method, w.Code, w.Header(), w.Body)
			}
		}
	}

	check("before the first reading", testServer(t))
	edge := startServer(t, "-edge")
	check("on an edge", edge.SSEServer)
	edge.put(t, `{"n":1}`)
	code, _, body := edge.request(t, "GET", "/dashboard/snapshot")
	if code != 200 || body != `{"n":1}`+"\n" {
		t.Errorf("after a PUT an edge returns %d %q", code, body)
	}
	edge.deleteSnapshot(t)
	check("after DELETE", edge.SSEServer)
}

func TestSnapshotOf64KiBDoesNotGrow(t *testing.T) {
	t.Parallel()
	const limit = 64 << 10
	s := startServer(t, "-interval", "1h")
	c := s.stream(t)
	c.event(t)

	for _, char := range []string{"<", ">", "&", "x"} {
		fill := limit - len(`{"a":""}`)
		snapshot := `{"a":"` + strings.Repeat(char, fill) + `"}`
		s.put(t, snapshot)
		got := c.event(t)
		if string(got.data) != snapshot {
			t.Errorf("%d bytes of %q are sent as %d bytes", limit, char, len(got.data))
		}
	}
}

func TestSnapshotPutAgainIsSentAgain(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "0")
	c := s.stream(t)
	c.event(t)

	s.put(t, `{"n":1}`)
	first := c.event(t)
	s.put(t, `{"n":1}`)
	again := c.event(t)
	if again.id <= first.id || string(again.data) != string(first.data) {
		t.Errorf("after %d %s comes %d %s", first.id, first.data, again.id, again.data)
	}
}

func TestSnapshotStaysOnShowUntilDelete(t *testing.T) {
	t.Parallel()
	s := testReadyServer(t)
	const snapshot = `{"system_status":{"status":"online","message":"fine"}}`
	ask(t, s, "PUT", "/dashboard/snapshot", []byte(snapshot))
	put := s.newest.Load()

	// The host is read all the same, but nothing of it is sent.
	later := time.Now().Add(24 * time.Hour)
	s.sampler.now = func() time.Time { return later }
	s.readHost()
	s.tick(later)
	if got := s.board.view(time.Now()).metrics.time; !got.Equal(later) {
		t.Errorf("the host was read at %v, want %v", got, later)
	}
	if got := s.newest.Load(); got != put {
		t.Errorf("after a day the newest event is %s", got.plain.data)
	}
	if got, _ := s.board.snapshot(later); string(got) != snapshot {
		t.Errorf("after a day the board shows %s", got)
	}
	if got := s.board.view(time.Now()).status; got != "online" {
		t.Errorf("after a day the status is %q", got)
	}

	ask(t, s, "DELETE", "/dashboard/snapshot", nil)
	got := received{data: dataOf(t, s.newest.Load())}.snapshot(t)
	if got.SystemStatus.Status == "" || s.newest.Load().id <= put.id {
		t.Errorf("after DELETE the newest event is %s", s.newest.Load().plain.data)
	}
}

func TestSnapshotRejectionsSayWhy(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "1h")
	s.waitForSnapshot(t)
	before := s.newest.Load()

	tests := []struct {
		contentType, body string
		code              int
		want              string
	}{
		{"", `{}`, 415, "application/json"},
		{"text/event-stream", `{}`, 415, "application/json"},
		{typeJSON, `{"a":"` + strings.Repeat("x", 64<<10) + `"}`, 413, "65536"},
		{typeJSON, `[]`, 400, "JSON object"},
		{typeJSON, `7`, 400, "JSON object"},
		{typeJSON, `null`, 400, "JSON object"},
		{typeJSON, ``, 400, "JSON object"},
		{typeJSON, ` `, 400, "JSON object"},
		{typeJSON, `{"a":}`, 400, "JSON object"},
		{typeJSON, `{}{}`, 400, "JSON object"},
		{typeJSON, "{\"a\":\"\xff\"}", 400, "UTF-8"},
	}
	for _, test := range tests {
		code, _, body := s.send(t, "PUT", "/dashboard/snapshot", test.body,
			"Content-Type", test.contentType)
		if code != test.code || !oneSentence.MatchString(body) || !strings.Contains(body, test.want) {
			t.Errorf("%.30q (%s) returns %d %q, want %d and %q",
				test.body, test.contentType, code, body, test.code, test.want)
		}
	}
	if s.newest.Load() != before || s.board.source() != sourceHost {
		t.Errorf("a rejected snapshot is on show: %s", s.newest.Load().plain.data)
	}
}

func TestSnapshotFloodSendsTheNewest(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "1h")
	c := s.stream(t)
	c.event(t)

	put := func(i int) { s.put(t, fmt.Sprintf(`{"n":%d}`, i)) }
	s.flood(t, 100, put, func() { s.put(t, `{"n":"last"}`) })
	for string(c.event(t).data) != `{"n":"last"}` {
	}
}

func TestEdgeSendsNothingBeforeTheFirstPut(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-edge", "-interval", "100ms", "-heartbeat", "200ms")
	s.board.add(newActivity(time.Now(), "warning", "Memory at 93%")) // this host's
	c := s.stream(t)

	c.heartbeat(t)
	c.heartbeat(t)
	code, body := s.post(t, `{"message":"x"}`)
	if code != 409 || !oneSentence.MatchString(body) {
		t.Errorf("a posted activity returns %d %q", code, body)
	}
	if h := s.history(t); h.Interval != 0 || len(h.Samples) > 0 {
		t.Errorf("the history is %+v", h)
	}
	if got := s.debug(t).Broadcasts; got != 0 {
		t.Errorf("there were %d broadcasts", got)
	}

	s.put(t, `{"n":1}`)
	if got := c.event(t); string(got.data) != `{"n":1}` {
		t.Errorf("after a PUT the stream has %s", got.data)
	}
}

func TestEdgeWaitsAgainAfterDelete(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-edge", "-interval", "100ms", "-heartbeat", "200ms")
	s.put(t, `{"n":1}`)
	s.stream(t).event(t)

	s.deleteSnapshot(t)
	c := s.stream(t)
	c.heartbeat(t)
	s.put(t, `{"n":2}`)
	if got := c.event(t); string(got.data) != `{"n":2}` {
		t.Errorf("after the next PUT the stream has %s", got.data)
	}
}

func TestEdgeDeleteStallsNoLaggingStream(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-edge")
	c := s.stream(t)
	s.put(t, `{"n":1}`)
	c.event(t)

	// The stream lags as if the kernel had taken nothing of the newest event.
	start := time.Now()
	s.mu.Lock()
	for conn := range s.conns {
		conn.mu.Lock()
		conn.last--
		conn.pending = s.newest.Load().id
		conn.lastProgress = start
		conn.mu.Unlock()
	}
	s.mu.Unlock()

	s.deleteSnapshot(t)
	s.forEachStream(start.Add(2*stallLimit), s.catchUp)
	s.forEachStream(start.Add(4*stallLimit), s.catchUp)
	d := s.debug(t)
	if d.Open != 1 || d.Streams[0].Lagging != 0 {
		t.Fatalf("after DELETE the state is %+v", d)
	}
	s.put(t, `{"n":2}`)
	if got := c.event(t); string(got.data) != `{"n":2}` {
		t.Errorf("after the next PUT the stream has %s", got.data)
	}
}

func TestStatusIsThatOfWhatIsOnShow(t *testing.T) {
	t.Parallel()
	tests := []struct{ snapshot, want string }{
		{`{"system_status":{"status":"degraded","message":"x"}}`, "degraded"},
		{`{"x":{"status":"no"},"system_status":{"x":1,"status":"stale"}}`, "stale"},
		{`{"system_status":{"status":"a\"b\\c\nd é"}}`, "a\"b\\c\nd é"},
		{`{"system_status":{"status":""}}`, ""},
		{`{"system_status":{"status":7}}`, ""},
		{`{"system_status":{"status":null}}`, ""},
		{`{"system_status":{"status":["online"]}}`, ""},
		{`{"system_status":{"status":{"status":"online"}}}`, ""},
		{`{"system_status":{"Status":"online"}}`, ""},
		{`{"system_status":"online"}`, ""},
		{`{"system_status":null}`, ""},
		{`{"status":"online"}`, ""},
		{`{}`, ""},
	}
	for _, test := range tests {
		b := board{metrics: metrics{status: "online"}}
		b.putExternal([]byte(test.snapshot), time.Now())
		if got := b.view(time.Now()).status; got != test.want {
			t.Errorf("the status of %s is %q, want %q", test.snapshot, got, test.want)
		}
		b.deleteExternal(time.Now())
		if got := b.view(time.Now()).status; got != "online" {
			t.Errorf("after DELETE the status is %q, want that of the host", got)
		}
	}

	edge := board{edge: true, metrics: metrics{status: "online"}}
	if got := edge.view(time.Now()).status; got != "" {
		t.Errorf("the status of an edge without a snapshot is %q", got)
	}
}

func TestSnapshotAgeIsThatOfItsContent(t *testing.T) {
	t.Parallel()
	start := time.Now()
	at := func(seconds int) time.Time { return start.Add(time.Duration(seconds) * time.Second) }
	b := board{}
	check := func(when string, now, want float64) {
		t.Helper()
		got := b.view(at(int(now))).age
		if got != want && !(math.IsNaN(got) && math.IsNaN(want)) {
			t.Errorf("%s the age is %v, want %v", when, got, want)
		}
	}

	check("before the first reading", 0, math.NaN())
	b.update(metrics{time: at(0)}, nil)
	b.snapshot(at(1))
	check("of the host's snapshot", 3, 2)
	b.putExternal([]byte(`{"n":1}`), at(10))
	check("after a PUT", 15, 5)
	b.putExternal([]byte(`{"n":1}`), at(20))
	b.snapshot(at(21))
	check("after the same was put again", 22, 12)
	b.putExternal([]byte(`{"n":2}`), at(30))
	check("after another was put", 31, 1)

	b.deleteExternal(at(40))
	b.snapshot(at(40))
	check("after DELETE", 42, 2)
	b.putExternal([]byte(`{"n":2}`), at(50))
	check("after the same was put anew", 51, 1)

	b.edge = true
	b.deleteExternal(at(55))
	check("on an edge without a snapshot", 60, math.NaN())
}

type historyReply struct {
	Now      int64
	Zone     int64
	Interval float64
	Streams  int
	Page     string
	Source   struct {
		Kind  string
		Since int64
	}
	Alarms  []alarmReply
	Samples []struct {
		Time         int64
		CPU          *float64
		Memory       *float64
		Disk         *float64
		Network      *float64
		ResponseTime *float64           `json:"response_time"`
		Max          map[string]float64 `json:",omitempty"`
	}
}

// history is the answer of /dashboard/history, which may have no other fields.
func (s *SSEServer) history(t testing.TB, after ...int64) historyReply {
	t.Helper()
	path := "/dashboard/history"
	for _, ms := range after {
		path = fmt.Sprintf("%s?after=%d", path, ms)
	}
	w := httptest.NewRecorder()
	s.ServeHTTP(w, httptest.NewRequest("GET", "http://localhost"+path, nil))
	var reply historyReply
	decoder := json.NewDecoder(w.Body)
	decoder.DisallowUnknownFields()
	err := decoder.Decode(&reply)
	if err != nil || w.Header().Get("Content-Type") != typeJSON {
		t.Fatalf("%v in %q, %v", err, w.Body, w.Header())
	}
	if reply.Samples == nil || reply.Alarms == nil {
		t.Errorf("the samples are %v, the alarms %v, want lists", reply.Samples, reply.Alarms)
	}
	return reply
}

// nothingMeasured are metrics of a time at which nothing could be measured.
func nothingMeasured(now time.Time) metrics {
	m := noMetrics
	m.time = now
	return m
}

func TestHistoryHasTheLastTenMinutes(t *testing.T) {
	t.Parallel()
	for _, interval := range []time.Duration{500 * time.Millisecond, 700 * time.Millisecond,
		time.Second, 2 * time.Second} {
		s := testServer(t, "-interval", interval.String())
		if h := s.history(t); len(h.Samples) != 0 {
			t.Errorf("before the first reading there are %d samples", len(h.Samples))
		}
		now := time.Now()
		end := now.Add(25 * time.Minute)
		for now.Before(end) {
			now = now.Add(interval)
			s.board.update(metrics{time: now}, nil)
		}

		h := s.history(t)
		if len(h.Samples) != 300 || h.Interval != interval.Seconds() {
			t.Fatalf("at %v there are %d samples, want 300; the interval is %v",
				interval, len(h.Samples), h.Interval)
		}
		if got, want := h.Samples[299].Time, now.UnixMilli()/2000*2000; got != want {
			t.Errorf("at %v the newest sample is of %d, want %d", interval, got, want)
		}
		for i, sample := range h.Samples {
			if want := h.Samples[299].Time - int64(299-i)*2000; sample.Time != want {
				t.Errorf("at %v sample %d is of %d, want %d", interval, i, sample.Time, want)
			}
		}
	}
}

func TestHistorySlotHasMeanAndMax(t *testing.T) {
	t.Parallel()
	s := testServer(t)
	start := time.UnixMilli(1795509612000)
	at := func(ms int) time.Time { return start.Add(time.Duration(ms) * time.Millisecond) }
	add := func(m metrics) { s.board.update(m, nil) }
	add(metrics{time: at(0), cpu: 45.216, memory: 67.004, disk: 23, network: 124.956,
		responseTime: 1})
	add(metrics{time: at(2000), cpu: 10, memory: 50, disk: 23, network: math.NaN(),
		responseTime: math.NaN()})
	add(metrics{time: at(2500), cpu: 97.5, memory: 50, disk: 23, network: 8,
		responseTime: math.NaN()})
	add(metrics{time: at(3999), cpu: math.NaN(), memory: 50.001, disk: 23, network: 4,
		responseTime: math.NaN()})
	add(nothingMeasured(at(4000)))
	add(metrics{time: at(8500)}) // a slot without a reading is missing

	got, err := json.Marshal(s.history(t).Samples)
	want := `[{"Time":1795509612000,"CPU":45.22,"Memory":67,"Disk":23,"Network":124.96,` +
		`"response_time":1},` +
		`{"Time":1795509614000,"CPU":53.75,"Memory":50,"Disk":23,"Network":6,` +
		`"response_time":null,"Max":{"cpu":97.5,"network":8}},` +
		`{"Time":1795509616000,"CPU":null,"Memory":null,"Disk":null,"Network":null,` +
		`"response_time":null},` +
		`{"Time":1795509620000,"CPU":0,"Memory":0,"Disk":0,"Network":0,"response_time":0}]`
	if err != nil || string(got) != want {
		t.Errorf("the samples are\n%s, want\n%s", got, want)
	}
}

func TestHistoryFollowsAStepBackOfTheClock(t *testing.T) {
	t.Parallel()
	s := testServer(t)
	start := time.UnixMilli(1795509612000)
	for _, seconds := range []int{0, 2, 4, 6, 2, 4} {
		s.board.update(metrics{time: start.Add(time.Duration(seconds) * time.Second)}, nil)
	}
	var got []int64
	for _, sample := range s.history(t).Samples {
		got = append(got, sample.Time-start.UnixMilli())
	}
	if want := []int64{0, 2000, 4000}; !slices.Equal(got, want) {
		t.Errorf("the slots are %v, want %v", got, want)
	}
}

func TestHistoryAfterHasOnlyLaterSamples(t *testing.T) {
	t.Parallel()
	s := testServer(t)
	const start = 1795509612000
	for i := int64(0); i < 5; i++ {
		s.board.update(metrics{time: time.UnixMilli(start + 2000*i)}, nil)
	}
	for after, want := range map[int64]int{
		-1:           5,
		0:            5,
		start - 1:    5,
		start:        4,
		start + 1:    4,
		start + 2000: 3,
		start + 8000: 0,
		start + 9e9:  0,
	} {
		if got := len(s.history(t, after).Samples); got != want {
			t.Errorf("after %d there are %d samples, want %d", after, got, want)
		}
	}

	for _, after := range []string{"x", "1.5", "1e3", "99999999999999999999", "+", "%20"} {
		w := httptest.NewRecorder()
		target := "http://localhost/dashboard/history?after=" + after
		s.ServeHTTP(w, httptest.NewRequest("GET", target, nil))
		if w.Code != 400 || !oneSentence.MatchString(w.Body.String()) {
			t.Errorf("after %q returns %d %q", after, w.Code, w.Body)
		}
	}
}

func TestHistoryNamesTimeZoneAndPage(t *testing.T) {
	t.Parallel()
	s := testServer(t)
	h := s.history(t)
	if age := time.Now().UnixMilli() - h.Now; age < 0 || age > 60_000 {
		t.Errorf("the server's time is %d, %d ms ago", h.Now, age)
	}
	_, seconds := time.UnixMilli(h.Now).Zone()
	if h.Zone != int64(seconds)*1000 {
		t.Errorf("the zone is %d ms, want %d s", h.Zone, seconds)
	}
	meta := `<meta name="page-hash" content="` + h.Page + `">`
	if len(h.Page) != 64 || !strings.Contains(page, meta) {
		t.Errorf("the page lacks the hash %q", h.Page)
	}
}

func TestHistoryHasTheAlarmsThatAreOn(t *testing.T) {
	t.Parallel()
	s := testServer(t)
	h := newTestHost(t)
	h.disk.reader = func() (diskUse, error) { return diskUse{percent: 99}, nil }
	check := func(want ...alarmReply) {
		t.Helper()
		m, changes := h.measureChanges(t)
		s.board.update(m, changes)
		if got := s.history(t).Alarms; !slices.Equal(got, want) {
			t.Errorf("the alarms are %+v, want %+v", got, want)
		}
	}
	since := h.clock.now().UnixMilli()
	check(alarmReply{Metric: "disk", Level: "critical", Since: since})
	h.clock.advance(time.Hour)
	check(alarmReply{Metric: "disk", Level: "critical", Since: since})

	s.board.putExternal([]byte(`{}`), time.Now())
	if got := s.history(t).Alarms; len(got) != 0 {
		t.Errorf("while an external snapshot is on show the alarms are %+v", got)
	}
	s.board.deleteExternal(time.Now())
	h.disk.reader = func() (diskUse, error) { return diskUse{percent: 50}, nil }
	check()
}

func TestHistoryIsEmptyWhileExternalShows(t *testing.T) {
	t.Parallel()
	s := testServer(t, "-interval", "2s")
	s.board.update(metrics{time: time.Now()}, nil)
	check := func(when string, interval float64, samples int) {
		t.Helper()
		h := s.history(t)
		if h.Interval != interval || len(h.Samples) != samples {
			t.Errorf("%s the interval is %v with %d samples, want %v with %d",
				when, h.Interval, len(h.Samples), interval, samples)
		}
	}

	check("before", 2, 1)
	s.board.putExternal([]byte(`{}`), time.Now())
	check("while an external snapshot is on show,", 0, 0)
	s.board.deleteExternal(time.Now())
	check("after DELETE", 2, 1)
}

func TestHistorySourceIsThatSinceItsChange(t *testing.T) {
	t.Parallel()
	start := time.UnixMilli(1795509612000)
	at := func(seconds int) time.Time { return start.Add(time.Duration(seconds) * time.Second) }
	for _, isEdge := range []bool{false, true} {
		own := sourceHost
		if isEdge {
			own = sourceNone
		}
		s := testServer(t)
		s.board = newBoard(isEdge, at(0))
		check := func(when, kind string, since int) {
			t.Helper()
			got := s.history(t).Source
			if got.Kind != kind || got.Since != at(since).UnixMilli() {
				t.Errorf("%s the source is %+v, want %s since %d",
					when, got, kind, at(since).UnixMilli())
			}
		}

		check("at first", own, 0)
		s.board.update(metrics{time: at(2)}, nil)
		check("after a reading", own, 0)
		s.board.deleteExternal(at(5))
		check("after a DELETE of nothing", own, 0)
		s.board.putExternal([]byte(`{"n":1}`), at(10))
		check("after a PUT", sourceExternal, 10)
		s.board.putExternal([]byte(`{"n":2}`), at(20))
		check("after another", sourceExternal, 10)
		s.board.deleteExternal(at(30))
		check("after DELETE", own, 30)
	}
}

func TestHistoryEndsWithWhatTheStreamShows(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "1h")
	shown := s.stream(t).event(t).snapshot(t).Metrics

	h := s.history(t)
	if len(h.Samples) != 1 || h.Streams != 1 {
		t.Fatalf("the history is %+v", h)
	}
	sample := h.Samples[0]
	tests := []struct {
		name, unit, shown string
		value             *float64
	}{
		{"cpu", "%", shown.CPU, sample.CPU},
		{"memory", "%", shown.Memory, sample.Memory},
		{"disk", "%", shown.Disk, sample.Disk},
		{"network", " Mbps", shown.Network, sample.Network},
		{"response time", "ms", shown.ResponseTime, sample.ResponseTime},
	}
	for _, test := range tests {
		if test.value == nil {
			if test.shown != notMeasured {
				t.Errorf("%s is null, the stream has %q", test.name, test.shown)
			}
			continue
		}
		got, err := strconv.ParseFloat(strings.TrimSuffix(test.shown, test.unit), 64)
		if err != nil || math.Abs(got-*test.value) > 0.51 {
			t.Errorf("%s is %v, the stream has %q", test.name, *test.value, test.shown)
		}
	}
}

var snapshotPattern = regexp.MustCompile(
	`^\{"system_status":\{"status":"(online|degraded|critical)",` +
		`"uptime":"(less than a minute|(\d+ (day|hour|minute)s?)(, \d+ (hour|minute)s?)?)",` +
		`"last_check":"\d\d:\d\d:\d\d","message":"[^"]+"\},` +
		`"metrics":\{"cpu":"\d+%","memory":"\d+%","disk":"\d+%",` +
		`"network":"(\d\.\d|\d\d+) Mbps|N/A","response_time":"\d+ms"\},` +
		`"activities":\[\{"time":"\d\d:\d\d:\d\d","message":"Dashboard updated","level":"info",` +
		`"css_class":"activity-info"\}.*\],"timestamp":"\d\d:\d\d:\d\d"\}$`)

func TestSnapshotHasTheFormatOfRails(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 28, 15, 4, 5, 0, time.Local)
	m := metrics{
		time:         now.Add(-time.Second),
		cpu:          44.5,
		memory:       67.2,
		disk:         23,
		network:      124.96,
		responseTime: 87,
		uptime:       62*time.Hour + time.Minute,
		status:       "online",
		message:      "System running normally",
	}
	recent := []activity{newActivity(now.Add(-time.Minute), "warning", "Memory at 93%")}

	got := string(formatSnapshot(m, recent, now))
	want := `{"system_status":{"status":"online","uptime":"2 days, 14 hours",` +
		`"last_check":"15:04:04","message":"System running normally"},` +
		`"metrics":{"cpu":"45%","memory":"67%","disk":"23%","network":"125 Mbps",` +
		`"response_time":"87ms"},` +
		`"activities":[{"time":"15:04:05","message":"Dashboard updated","level":"info",` +
		`"css_class":"activity-info"},` +
		`{"time":"15:03:05","message":"Memory at 93%","level":"warning",` +
		`"css_class":"activity-warning"}],"timestamp":"15:04:05"}`
	if got != want {
		t.Errorf("the snapshot is\n%s, want\n%s", got, want)
	}
	if !snapshotPattern.MatchString(got) {
		t.Errorf("the pattern does not match %s", got)
	}
}

func TestSnapshotOfThisHostIsMeasured(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("the metrics are those of Linux")
	}
	s := startServer(t)
	got := s.stream(t).event(t)
	if !snapshotPattern.Match(got.data) {
		t.Errorf("the first snapshot is\n%s", got.data)
	}
}

// testReadyServer does not run, but has read the host and broadcasts.
func testReadyServer(t testing.TB, args ...string) *SSEServer {
	t.Helper()
	s := testServer(t, args...)
	s.readHost()
	close(s.firstReady)
	s.broadcast("test")
	return s
}

// ask sends a request to a server that does not run. A rejected request must change nothing.
func ask(t testing.TB, s *SSEServer, method, path string, body []byte) *httptest.ResponseRecorder {
	t.Helper()
	before := s.newest.Load()
	before.time = time.Time{} // no broadcast has to wait
	lastID, broadcasts := s.lastID.Load(), s.totals.broadcasts
	recent, external := s.board.recent(), s.board.external

	r := httptest.NewRequest(method, "http://localhost"+path, bytes.NewReader(body))
	r.RemoteAddr = "127.0.0.1:1234"
	r.Header.Set("Content-Type", typeJSON)
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	if w.Code < 400 {
		return w
	}

	if !oneSentence.MatchString(w.Body.String()) {
		t.Errorf("the answer is %d %q", w.Code, w.Body)
	}
	if s.newest.Load() != before || s.lastID.Load() != lastID || s.totals.broadcasts != broadcasts {
		t.Errorf("rejected with %d, it made a broadcast", w.Code)
	}
	if !slices.Equal(s.board.recent(), recent) || !bytes.Equal(s.board.external, external) {
		t.Errorf("rejected with %d, it is on the board", w.Code)
	}
	return w
}

// dataOf returns the data of e, which must be one event with one line of data.
func dataOf(t testing.TB, e *event) []byte {
	t.Helper()
	text, hasID := bytes.CutPrefix(e.plain.data, fmt.Appendf(nil, "id: %d\ndata: ", e.id))
	data, hasEnd := bytes.CutSuffix(text, []byte("\n\n"))
	isLine := hasID && hasEnd && !bytes.ContainsAny(data, "\r\n\u2028\u2029\u0085")
	if !isLine || !utf8.Valid(data) || !json.Valid(data) || data[0] != '{' {
		t.Fatalf("this is no event of one line: %q", e.plain.data)
	}
	return data
}

func FuzzPostedActivity(f *testing.F) {
	for _, body := range []string{
		`{"message":"Deployed v42 — 🚀","level":"success"}`,
		`{"message":"a\u2028b\ud800"}`,
		`{"Message":"<b>\\n","message":"x"}`,
		"{\"message\":\"a\r\nb\"}",
		`{"message":"a\nid: 1"}`,
		`{"message":"x","level":7}`,
		`[{}]`,
		"\ufeff{}",
		` `,
		"{\"message\":\"\xff\"}",
	} {
		f.Add([]byte(body))
	}
	s := testReadyServer(f)

	f.Fuzz(func(t *testing.T, body []byte) {
		w := ask(t, s, "POST", "/dashboard/activities", body)
		if w.Code >= 400 {
			return
		}
		var reply struct {
			Activity activity
			ID       int64
		}
		err := json.Unmarshal(w.Body.Bytes(), &reply)
		if err != nil || w.Code != 201 || reply.ID != s.newest.Load().id {
			t.Fatalf("the answer is %d %q", w.Code, w.Body)
		}

		var posted struct{ Message, Level string }
		json.Unmarshal(body, &posted)
		got := received{data: dataOf(t, s.newest.Load())}.snapshot(t).Activities[1]
		if got != reply.Activity || got.Message != posted.Message {
			t.Errorf("%q becomes %+v, the answer has %+v", body, got, reply.Activity)
		}
		length := utf8.RuneCountInString(got.Message)
		if length < 1 || length > 500 || strings.ContainsFunc(got.Message, unicode.IsControl) {
			t.Errorf("%q becomes the message %q", body, got.Message)
		}
		isLevel := slices.Contains([]string{"info", "success", "warning", "error"}, got.Level)
		isPosted := posted.Level == "" || posted.Level == got.Level
		if !isLevel || !isPosted || got.CSSClass != "activity-"+got.Level {
			t.Errorf("%q becomes %+v", body, got)
		}
	})
}

func FuzzPutSnapshot(f *testing.F) {
	for _, body := range []string{
		`{"system_status":{"status":"online","message":"fine"},"metrics":{"cpu":"1%"}}`,
		"{\n \"b\": 1.50,\r\n\t\"a\": \"<é> \\u2028\u2028\"}",
		`{"system_status":{"status":null},"system_status":"x"}`,
		`{"a":1}{"b":2}`,
		`{"a":"\n\ndata: x"}`,
		"{\"a\":\"\xff\"}",
		`{"a":"<>&"}`,
		`[]`,
		`{"n":1e999}`,
		"{\"\u0085\\\\\u2028\":\"\u2029\\\u2028\"}",
		"{\"\u0085\\\\\u2028\":\"\u2029\"}",
		``,
	} {
		f.Add([]byte(body))
	}
	s := testReadyServer(f)

	decode := func(t *testing.T, b []byte) map[string]any {
		var value map[string]any
		decoder := json.NewDecoder(bytes.NewReader(b))
		decoder.UseNumber()
		err := decoder.Decode(&value)
		if err != nil && err != io.EOF {
			t.Fatalf("%v in %q", err, b)
		}
		return value
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		w := ask(t, s, "PUT", "/dashboard/snapshot", body)
		if w.Code >= 400 {
			return
		}
		if w.Code != 204 || w.Body.Len() > 0 {
			t.Fatalf("the answer is %d %q", w.Code, w.Body)
		}

		got, want := dataOf(t, s.newest.Load()), decode(t, body)
		text := string(body)
		growth := 3*(strings.Count(text, "\u2028")+strings.Count(text, "\u2029")) +
			4*strings.Count(text, "\u0085")
		if !reflect.DeepEqual(decode(t, got), want) || len(got) > len(body)+growth {
			t.Errorf("%q becomes %q", body, got)
		}
		systemStatus, _ := want["system_status"].(map[string]any)
		status, _ := systemStatus["status"].(string)
		if s.board.view(time.Now()).status != status {
			t.Errorf("the status of %q is %q, want %q", body, s.board.view(time.Now()).status, status)
		}
	})
}

// The PUT comes while the activity waits for its broadcast.
func TestActivityIsTakenBackAfterAPut(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "1h")
	s.waitForSnapshot(t)
	for _, request := range []func() (int, string){
		func() (int, string) { return s.post(t, `{"message":"Deployed"}`) },
		func() (int, string) {
			code, _, body := s.request(t, "GET", "/dashboard/trigger-test")
			return code, body
		},
	} {
		s.publishing.Lock() // the broadcast cannot begin
		type answer struct {
			code int
			body string
		}
		answers := make(chan answer, 1) // read once
		go func() {
			code, body := request()
			answers <- answer{code, body}
		}()
		eventually(t, "the activity is on the board", func() bool {
			s.board.mu.Lock()
			defer s.board.mu.Unlock()
			return len(s.board.activities) == 1
		})
		s.board.putExternal([]byte(`{"n":1}`), time.Now())
		s.publishing.Unlock()

		got := <-answers
		isTrigger := strings.Contains(got.body, "External snapshot sent again")
		if got.code != 409 && !isTrigger {
			t.Errorf("the answer is %d %q", got.code, got.body)
		}
		s.board.mu.Lock()
		if len(s.board.activities) > 0 {
			t.Errorf("the board keeps %v", s.board.activities)
		}
		s.board.mu.Unlock()
		s.board.deleteExternal(time.Now())
	}
}
