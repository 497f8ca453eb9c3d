package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"
)

const jsonType = "application/json"

func TestPostedActivityIsInTheNextFrameOfEachStream(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "1h")
	c := s.stream(t)
	c.event(t)
	code, head, body := s.send(t, "POST", "/dashboard/activities", `{"message":"Deployed v42 — 🚀","level":"success"}`, "Content-Type", jsonType+"; charset=utf-8")
	var reply struct {
		Activity activity
		ID       int64
		Streams  int
	}
	if err := json.Unmarshal([]byte(body), &reply); code != 201 || err != nil || head.Get("Content-Type") != jsonType {
		t.Fatalf("posting answers %d %q", code, body)
	}
	e := c.event(t)
	got := e.snapshot(t).Activities[1]
	if reply.ID != e.id || reply.Streams != 1 || reply.Activity != got || got.Message != "Deployed v42 — 🚀" ||
		got.Level != "success" || got.CSSClass != "activity-success" {
		t.Errorf("the answer is %+v, the stream has %d %+v", reply, e.id, got)
	}
	if code, _, body = s.send(t, "POST", "/dashboard/activities", `{"message":"x"}`, "Content-Type", jsonType); code != 201 ||
		!strings.Contains(body, `"level":"info"`) {
		t.Errorf("without a level the answer is %d %q", code, body)
	}
}

func TestBadActivityIsRefusedInOneSentenceAndChangesNothing(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "1h")
	s.waitForSnapshot(t)
	before := s.debug(t).NewestID
	long := func(n int) string { return `{"message":"` + strings.Repeat("ä", n) + `"}` }
	for _, c := range []struct {
		code              int
		names, body, kind string
	}{
		{415, "Content-Type", `{"message":"x"}`, ""},
		{415, "Content-Type", `{"message":"x"}`, "text/plain"},
		{415, "Content-Type", `message=x`, "application/x-www-form-urlencoded"},
		{413, "4096", `{"message":"x"}` + strings.Repeat(" ", 4096), jsonType},
		{400, "JSON", ``, jsonType},
		{400, "JSON", ` `, jsonType},
		{400, "JSON", `{"message":"x"`, jsonType},
		{400, "JSON", `{"message":"x"}{}`, jsonType},
		{400, "JSON", `[{"message":"x"}]`, jsonType},
		{400, "JSON", `"x"`, jsonType},
		{400, "JSON", `null`, jsonType},
		{400, "message", `{}`, jsonType},
		{400, "message", `{"message":""}`, jsonType},
		{400, "message", `{"message":null}`, jsonType},
		{400, "message", `{"message":7}`, jsonType},
		{400, "message", `{"message":["x"]}`, jsonType},
		{400, "message", `{"message":"a\nb"}`, jsonType},
		{400, "message", `{"message":"a\u0000b"}`, jsonType},
		{400, "message", `{"message":"a\u0085b"}`, jsonType},
		{400, "message", long(501), jsonType},
		{400, "UTF-8", "{\"message\":\"a\xffb\"}", jsonType},
		{400, "level", `{"message":"x","level":"fatal"}`, jsonType},
		{400, "level", `{"message":"x","level":""}`, jsonType},
		{400, "level", `{"message":"x","level":null}`, jsonType},
		{400, "level", `{"message":"x","level":1}`, jsonType},
		{400, "level", `{"message":"x","levle":"info"}`, jsonType},
	} {
		code, _, body := s.send(t, "POST", "/dashboard/activities", c.body, "Content-Type", c.kind)
		if code != c.code || !oneSentence.MatchString(body) || !strings.Contains(body, c.names) {
			t.Errorf("%.60q (%s) answers %d %q, want %d and %q", c.body, c.kind, code, body, c.code, c.names)
		}
	}
	half := dial(t, s.addr, "POST /dashboard/activities HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{\"mess")
	half.Close()
	if got := s.debug(t); got.NewestID != before || len(s.feed) != 0 {
		t.Errorf("the newest id went from %d to %d, the feed is %+v", before, got.NewestID, s.feed)
	}
	if code, _, body := s.send(t, "POST", "/dashboard/activities", long(500), "Content-Type", jsonType); code != 201 {
		t.Errorf("500 characters are answered %d %q", code, body)
	}
}

func TestFloodOfActivitiesIsAtMostTwentyFramesASecondAndLosesNothingOfTheLastTen(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "1h")
	c := s.stream(t)
	c.event(t)
	post := func(message string) {
		if code, _, body := s.send(t, "POST", "/dashboard/activities", `{"message":"`+message+`"}`, "Content-Type", jsonType); code != 201 {
			t.Errorf("posting answers %d %q", code, body)
		}
	}
	s.flood(t, 8, func(w int) {
		for i := 0; i < 50; i++ {
			post(fmt.Sprintf("%d of %d", i, w))
		}
	}, func() { post("last") })
	for {
		if a := c.event(t).snapshot(t).Activities; a[1].Message == "last" {
			if len(a) != 1+feedLength {
				t.Errorf("there are %d activities", len(a))
			}
			return
		}
	}
}

// put puts a snapshot in the place of the host's own.
func (s *server) put(t testing.TB, snapshot string) {
	t.Helper()
	if code, _, body := s.send(t, "PUT", "/dashboard/snapshot", snapshot, "Content-Type", jsonType); code != 204 || body != "" {
		t.Errorf("putting answers %d %q", code, body)
	}
}

func TestPutSnapshotIsSentToEachStreamAsItIs(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "100ms")
	c := s.stream(t)
	before := c.event(t)
	const sent = "{\n  \"b\": 1.50,\r\n\t\"a\": {\"text\": \"<é> \\u2028\"}\n}"
	const want = `{"b":1.50,"a":{"text":"<é> \u2028"}}`
	s.put(t, sent)
	var e event
	for e = c.event(t); strings.Contains(string(e.data), "system_status"); e = c.event(t) {
	}
	if string(e.data) != want || e.id <= before.id {
		t.Errorf("the stream has %d %s", e.id, e.data)
	}
	time.Sleep(500 * time.Millisecond) // the host's own are not sent meanwhile
	s.put(t, `{"c":2}`)
	if e = c.event(t); string(e.data) != `{"c":2}` {
		t.Errorf("the next is %s", e.data)
	}
	if h := s.historyReply(t); len(h.Samples) > 0 {
		t.Errorf("the history has %d samples of a host that is not shown", len(h.Samples))
	}
	late := s.stream(t)
	if first := late.event(t); string(first.data) != `{"c":2}` || first.id != e.id {
		t.Errorf("a new stream begins with %s", first.data)
	}
	s.trigger(t)
	if e = c.event(t); string(e.data) != `{"c":2}` {
		t.Errorf("after a trigger there is %s", e.data)
	}
	code, _, body := s.send(t, "POST", "/dashboard/activities", `{"message":"unseen"}`, "Content-Type", jsonType)
	if code != 409 || !oneSentence.MatchString(body) {
		t.Errorf("an activity that no snapshot will carry is answered %d %q", code, body)
	}
	if code, _, body := s.send(t, "DELETE", "/dashboard/snapshot", ""); code != 204 {
		t.Errorf("deleting answers %d %q", code, body)
	}
	if e = c.event(t); e.snapshot(t).SystemStatus.Status == "" {
		t.Errorf("the host's own come no more: %s", e.data)
	}
}

func TestSnapshotThatIsNotRenewedIsRepeatedAsStale(t *testing.T) {
	t.Parallel()
	s := testServer(t, "-interval", "2s")
	now := time.Now()
	for _, c := range []struct{ given, stale string }{
		{`{"system_status":{"status":"online","uptime":"1 day","message":"fine"},"metrics":{"cpu":"1%"}}`,
			`{"metrics":{"cpu":"1%"},"system_status":{"message":"No snapshot since ` + now.Format(time.TimeOnly) + `","status":"stale","uptime":"1 day"}}`},
		{`{"system_status":{"status":"online"}}`, `{"system_status":{"status":"stale"}}`},
		{`{"system_status":{"uptime":"1 day"}}`, `{"system_status":{"uptime":"1 day"}}`},
		{`{"system_status":"online","x":1}`, `{"system_status":"online","x":1}`},
		{`{}`, `{}`},
	} {
		s.given, s.givenAt = []byte(c.given), now
		data := func(at time.Time) string {
			e := string(s.broadcast(at).bytes)
			return strings.TrimSuffix(e[strings.Index(e, "data: ")+6:], "\n\n")
		}
		if got := data(now.Add(givenPatience - time.Second)); got != c.given {
			t.Errorf("fresh, it is %s", got)
		}
		if got := data(now.Add(givenPatience + time.Second)); got != c.stale {
			t.Errorf("%s\nbecomes %s\nwant    %s", c.given, got, c.stale)
		}
	}
}

func TestStaleSnapshotIsToldEvenWithoutAnInterval(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("takes ten seconds")
	}
	s := startServer(t, "-interval", "0")
	c := s.stream(t)
	c.event(t)
	s.put(t, `{"system_status":{"status":"online"}}`)
	if e := c.event(t); string(e.data) != `{"system_status":{"status":"online"}}` {
		t.Errorf("the stream has %s", e.data)
	}
	c.SetReadDeadline(time.Now().Add(2 * givenPatience))
	for range [3]int{} { // and that the stream is alive is told, too
		if e := c.event(t); string(e.data) != `{"system_status":{"status":"stale"}}` {
			t.Errorf("then it has %s", e.data)
		}
	}
	s.put(t, `{"system_status":{"status":"fine"}}`)
	if e := c.event(t); string(e.data) != `{"system_status":{"status":"fine"}}` {
		t.Errorf("renewed, it has %s", e.data)
	}
}

// So a forwarder can say that old news are still the newest, and a page hears that its stream is alive.
func TestSnapshotThatIsPutAgainIsSentAgainAndFresh(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "0")
	c := s.stream(t)
	c.event(t)
	put := func(n string) { s.put(t, `{"system_status":{"status":"`+n+`"}}`) }
	age := func(d time.Duration) {
		s.mu.Lock()
		s.givenAt = s.givenAt.Add(-d)
		s.mu.Unlock()
	}
	put("one")
	first := c.event(t)
	age(givenPatience - time.Second)
	put("one")
	if e := c.event(t); e.id <= first.id || string(e.data) != string(first.data) {
		t.Errorf("put again, it is %s", e.data)
	}
	if _, fresh := s.hasGiven(time.Now().Add(givenPatience - time.Second)); !fresh {
		t.Error("a snapshot that is put again is no fresher")
	}
	s.send(t, "DELETE", "/dashboard/snapshot", "")
	c.event(t)
	if s.renew.Stop() {
		t.Error("after its deletion it is still to become stale")
	}
}

// Viewers of another host's figures never take this host's for them.
func TestEdgeShowsSnapshotsFromElsewhereOnly(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-edge", "-interval", "100ms")
	s.add(newActivity(time.Now(), "warning", "Memory at 93%")) // this host's
	c := s.stream(t)
	mustBeUnfed := func() {
		t.Helper()
		e := c.event(t)
		if n := len(e.snapshot(t).Activities); n != 1 || !strings.HasPrefix(string(e.data), `{"system_status":{"status":"stale","uptime":"N/A","last_check":"N/A",`+
			`"message":"No snapshot from elsewhere"},"metrics":{"cpu":"N/A","memory":"N/A","disk":"N/A","network":"N/A","response_time":"N/A"},`) {
			t.Errorf("it shows %s", e.data)
		}
		if m, _ := s.metrics(t); m["sse_snapshot_stale"] != 1 || m["sse_host_memory_ratio"] <= 0 {
			t.Errorf("the metrics are %v", m)
		}
	}
	for range [5]int{} { // the host has rates by then
		mustBeUnfed()
	}
	s.trigger(t)
	mustBeUnfed()
	if code, _, body := s.send(t, "POST", "/dashboard/activities", `{"message":"x"}`, "Content-Type", jsonType); code != 409 || !oneSentence.MatchString(body) {
		t.Errorf("a posted activity is answered %d %q", code, body)
	}
	if _, _, body := s.request(t, "GET", "/dashboard/history"); !strings.Contains(body, `"samples":[]`) || !strings.Contains(body, `"interval":3.3`) {
		t.Errorf("its history is %s", body)
	}
	s.put(t, `{"n":1}`)
	for string(c.event(t).data) != `{"n":1}` {
	}
	if m, _ := s.metrics(t); m["sse_snapshot_stale"] != 0 {
		t.Error("with a fresh snapshot its metrics say that it is stale")
	}
	if code, _, body := s.request(t, "DELETE", "/dashboard/snapshot"); code != 204 {
		t.Errorf("DELETE answers %d %q", code, body)
	}
	mustBeUnfed()
}

func TestBadSnapshotIsRefusedInOneSentenceAndChangesNothing(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "1h")
	c := s.stream(t)
	first := c.event(t)
	for _, r := range []struct {
		code       int
		body, kind string
	}{
		{415, `{}`, ""}, {415, `{}`, "text/event-stream"},
		{413, `{"a":"` + strings.Repeat("x", 64<<10) + `"}`, jsonType},
		{400, `[]`, jsonType}, {400, `7`, jsonType}, {400, ``, jsonType}, {400, `{"a":}`, jsonType}, {400, "{\"a\":\"\xff\"}", jsonType},
	} {
		code, _, body := s.send(t, "PUT", "/dashboard/snapshot", r.body, "Content-Type", r.kind)
		if code != r.code || !oneSentence.MatchString(body) {
			t.Errorf("%.30q (%s) answers %d %q", r.body, r.kind, code, body)
		}
	}
	s.trigger(t)
	if e := c.event(t); !strings.Contains(string(e.data), "system_status") || e.id <= first.id {
		t.Errorf("then the stream has %s", e.data)
	}
}

func TestFloodOfSnapshotsIsCoalescedToTheNewest(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "1h")
	c := s.stream(t)
	c.event(t)
	put := func(n string) { s.put(t, `{"n":`+n+`}`) }
	s.flood(t, 200, func(i int) { put(strconv.Itoa(i)) }, func() { put(`"last"`) })
	for string(c.event(t).data) != `{"n":"last"}` {
	}
}

// ask asks a server that does not run, and makes it answer at once: whatever is refused must change nothing.
func ask(t testing.TB, s *SSEServer, method, path string, body []byte) *httptest.ResponseRecorder {
	t.Helper()
	before := s.newest.Load()
	before.at = time.Time{} // a broadcast waits for nothing
	lastID, broadcasts, feed, given := s.lastID, s.broadcasts, slices.Clone(s.feed), s.given
	r, w := httptest.NewRequest(method, "http://localhost"+path, bytes.NewReader(body)), httptest.NewRecorder()
	r.RemoteAddr = "127.0.0.1:1234"
	r.Header.Set("Content-Type", jsonType)
	s.ServeHTTP(w, r)
	s.renew.Stop()
	if w.Code < 400 {
		return w
	}
	if !oneSentence.MatchString(w.Body.String()) {
		t.Errorf("the answer is %d %q", w.Code, w.Body)
	}
	if s.newest.Load() != before || s.lastID != lastID || s.broadcasts != broadcasts || !slices.Equal(s.feed, feed) || !bytes.Equal(s.given, given) {
		t.Errorf("refused with %d, it changed something: the feed was %+v and is %+v", w.Code, feed, s.feed)
	}
	return w
}

// mustBeEvent checks that f is one event with one line of data, and gives that.
func mustBeEvent(t testing.TB, f *frame) []byte {
	t.Helper()
	text, ok := bytes.CutPrefix(f.bytes, fmt.Appendf(nil, "id: %d\ndata: ", f.id))
	data, end := bytes.CutSuffix(text, []byte("\n\n"))
	if !ok || !end || bytes.ContainsAny(data, "\r\n") || !utf8.Valid(data) || !json.Valid(data) || data[0] != '{' {
		t.Fatalf("this is no event of one line: %q", f.bytes)
	}
	return data
}

func FuzzPostedActivity(f *testing.F) {
	for _, body := range []string{`{"message":"Deployed v42 — 🚀","level":"success"}`, `{"message":"a\u2028b\ud800"}`, `{"Message":"<b>\\n","message":"x"}`,
		"{\"message\":\"a\r\nb\"}", `{"message":"a\nid: 1"}`, `{"message":"x","level":7}`, `[{}]`, "\ufeff{}", ` `, "{\"message\":\"\xff\"}"} {
		f.Add([]byte(body))
	}
	s := testServer(f)
	s.broadcast(time.Now())
	f.Fuzz(func(t *testing.T, body []byte) {
		w := ask(t, s, "POST", "/dashboard/activities", body)
		if w.Code >= 400 {
			return
		}
		var reply struct {
			Activity activity
			ID       int64
		}
		if err := json.Unmarshal(w.Body.Bytes(), &reply); err != nil || w.Code != 201 || reply.ID != s.newest.Load().id {
			t.Fatalf("the answer is %d %q", w.Code, w.Body)
		}
		var in struct{ Message, Level string }
		json.Unmarshal(body, &in)
		a := event{data: mustBeEvent(t, s.newest.Load())}.snapshot(t).Activities[1]
		if n := utf8.RuneCountInString(a.Message); a != reply.Activity || a.Message != in.Message || n < 1 || n > maxMessage ||
			strings.ContainsFunc(a.Message, unicode.IsControl) || !slices.Contains([]string{"info", "success", "warning", "error"}, a.Level) ||
			in.Level != "" && a.Level != in.Level || a.CSSClass != "activity-"+a.Level {
			t.Errorf("%q becomes %+v", body, a)
		}
	})
}

func FuzzPutSnapshot(f *testing.F) {
	for _, body := range []string{`{"system_status":{"status":"online","message":"fine"},"metrics":{"cpu":"1%"}}`, "{\n \"b\": 1.50,\r\n\t\"a\": \"<é> \\u2028\u2028\"}",
		`{"system_status":{"status":null},"system_status":"x"}`, `{"a":1}{"b":2}`, `{"a":"\n\ndata: x"}`, "{\"a\":\"\xff\"}", `[]`, `{"n":1e999}`, ``} {
		f.Add([]byte(body))
	}
	s := testServer(f)
	s.broadcast(time.Now())
	f.Fuzz(func(t *testing.T, body []byte) {
		if w := ask(t, s, "PUT", "/dashboard/snapshot", body); w.Code >= 400 {
			return
		} else if w.Code != 204 || w.Body.Len() > 0 {
			t.Fatalf("the answer is %d %q", w.Code, w.Body)
		}
		decode := func(b []byte) (v map[string]any) {
			d := json.NewDecoder(bytes.NewReader(b))
			d.UseNumber()
			if err := d.Decode(&v); err != nil {
				t.Fatalf("%v in %q", err, b)
			}
			return v
		}
		if data := mustBeEvent(t, s.newest.Load()); !reflect.DeepEqual(decode(data), decode(body)) {
			t.Errorf("%q becomes %q", body, data)
		}
		stale := decode(mustBeEvent(t, s.broadcast(s.givenAt.Add(givenPatience))))
		want := decode(body)
		status, _ := want["system_status"].(map[string]any)
		if _, has := status["status"]; has {
			if got, _ := stale["system_status"].(map[string]any); got["status"] != "stale" {
				t.Errorf("%q becomes, stale, %v", body, stale)
			}
			delete(want, "system_status")
			delete(stale, "system_status")
		}
		if !reflect.DeepEqual(stale, want) {
			t.Errorf("%q becomes, stale, %v", body, stale)
		}
	})
}
