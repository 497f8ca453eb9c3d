package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"reflect"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestStaleReplacesStatusAndMessage(t *testing.T) {
	tests := []struct{ name, data, want string }{
		{
			"a whole snapshot",
			`{"system_status":{"status":"online","uptime":"2 days","message":"All well"},"metrics":{"cpu":"45%"},"timestamp":"15:04:05"}`,
			`{"system_status":{"status":"stale","uptime":"2 days","message":"M"},"metrics":{"cpu":"45%"},"timestamp":"15:04:05"}`,
		},
		{
			"keys in another order, spaces and lines",
			"{\n \"metrics\" : {},\n \"system_status\" : { \"message\" :\t\"x\" , \"status\" : \"online\" } }\n",
			"{\n \"metrics\" : {},\n \"system_status\" : { \"message\" :\t\"M\" , \"status\" : \"stale\" } }\n",
		},
		{
			"no message",
			`{"system_status":{"status":"online"}}`,
			`{"system_status":{"status":"stale"}}`,
		},
		{
			"markup and escapes are not escaped anew",
			`{"a":"<b>&amp;\u003c\u2028é` + "\u2028" + `","system_status":{"status":"<ok>","message":"<&>","x":"<&>"},"b":1e400}`,
			`{"a":"<b>&amp;\u003c\u2028é` + "\u2028" + `","system_status":{"status":"stale","message":"M","x":"<&>"},"b":1e400}`,
		},
		{
			"values that are no strings",
			`{"system_status":{"status":200,"message":{"text":"x"}}}`,
			`{"system_status":{"status":"stale","message":"M"}}`,
		},
		{
			"escaped keys",
			`{"system\u005fstatus":{"st\u0061tus":"online"}}`,
			`{"system\u005fstatus":{"st\u0061tus":"stale"}}`,
		},
		{
			"keys of other objects",
			`{"status":"a","message":"b","x":{"system_status":{"status":"c"}},"system_status":{"x":{"status":"d"},"status":"e"}}`,
			`{"status":"a","message":"b","x":{"system_status":{"status":"c"}},"system_status":{"x":{"status":"d"},"status":"stale"}}`,
		},
		{
			"the last of two keys is the one that counts",
			`{"system_status":{"status":"a"},"system_status":{"status":"stale","status":"b"}}`,
			`{"system_status":{"status":"a"},"system_status":{"status":"stale","status":"stale"}}`,
		},
	}
	for _, tt := range tests {
		got, ok := staleSnapshot([]byte(tt.data), "M")
		if !ok || string(got) != tt.want {
			t.Errorf("%s:\ngot  %s, %v\nwant %s", tt.name, got, ok, tt.want)
		}
	}
}

func TestStaleLeavesOtherDataAlone(t *testing.T) {
	tests := []string{
		``, `null`, `5`, `"system_status"`, `[{"system_status":{"status":"online"}}]`,
		`not JSON`, `{"system_status":{"status":"online"}`, `{"system_status":{"status":"online"}}}`,
		`{}`, `{"status":"online"}`, `{"System_Status":{"status":"online"}}`,
		`{"system_status":null}`, `{"system_status":"online"}`, `{"system_status":["status"]}`,
		`{"system_status":{}}`, `{"system_status":{"message":"x"}}`,
		`{"system_status":{"status":"stale","message":"No data since 15:04:05"}}`,
		`{"system_status":{"status":"st\u0061le"}}`,
		`{"system_status":{"status":"online"},"system_status":{"status":"stale"}}`,
	}
	for _, data := range tests {
		got, ok := staleSnapshot([]byte(data), "M")
		if ok {
			t.Errorf("%s became %s", data, got)
		}
	}
}

func TestStaleSnapshotHardlyGrows(t *testing.T) {
	text := strings.Repeat("<&>", 20_000)
	data := `{"system_status":{"status":"ok","message":""},"text":"` + text + `"}`
	got, ok := staleSnapshot([]byte(data), "No data since 15:04:05")
	if !ok || len(got) > len(data)+30 {
		t.Errorf("%d bytes became %d", len(data), len(got))
	}
}

// Whatever comes, the result is JSON that says stale and is otherwise the same.
func FuzzStaleSnapshot(f *testing.F) {
	f.Add([]byte(goodSnapshot))
	f.Add([]byte(`{"system_status":{"status":"online","message":"<x>"},"a":[1,{"b":null}]}`))
	f.Add([]byte(`{"system_status":{"status":1},"system_status":{"status":"a","status":{}}}`))
	f.Add([]byte("{\"\xff\":\"\xff\",\"system_status\" : { \"status\":\t-1.5e3 , \"message\":[] } } "))
	f.Fuzz(func(t *testing.T, data []byte) {
		before := bytes.Clone(data)
		got, ok := staleSnapshot(data, "M")
		if !bytes.Equal(data, before) {
			t.Fatal("the input was changed")
		}
		if !ok {
			return
		}

		var was, is map[string]any
		useNumbers(t, before, &was)
		useNumbers(t, got, &is)
		status := was["system_status"].(map[string]any)
		status["status"] = "stale"
		if _, has := status["message"]; has {
			status["message"] = "M"
		}
		if !reflect.DeepEqual(is, was) {
			t.Errorf("%q became %q", before, got)
		}
		if _, again := staleSnapshot(got, "N"); again {
			t.Errorf("%q can be marked once more", got)
		}
	})
}

// useNumbers decodes JSON whose numbers may have any size.
func useNumbers(t *testing.T, data []byte, into *map[string]any) {
	t.Helper()
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.UseNumber()
	if err := decoder.Decode(into); err != nil {
		t.Fatalf("%q: %v", data, err)
	}
}

// In each step something comes, or the connection is lost.
func TestStaleIsDueByGapsAndLosses(t *testing.T) {
	type step struct {
		what string
		at   time.Duration
	}
	every := func(what string, interval time.Duration, from, to time.Duration) (steps []step) {
		for at := from; at <= to; at += interval {
			steps = append(steps, step{what, at})
		}
		return steps
	}
	join := func(parts ...[]step) (all []step) {
		for _, part := range parts {
			all = append(all, part...)
		}
		return all
	}
	const s, minute = time.Second, time.Minute
	const never = time.Duration(-1)

	tests := []struct {
		name  string
		steps []step
		due   time.Duration
		since string // of 15:00:00
	}{
		{"nothing ever came", nil, never, ""},
		{"only losses", []step{{"lost", 0}, {"lost", 5 * s}}, never, ""},
		{"no gap is known", []step{{"came", 0}}, 60 * s, "No data since 15:00:00"},
		{"the first gap of a connection", []step{{"came", 0}, {"came", 9 * s}}, 69 * s,
			"No data since 15:00:09"},
		{"at least ten seconds", every("came", 2*s, 0, 20*s), 30 * s, "No data since 15:00:20"},
		{"three times the gap", every("came", 5*s, 0, 20*s), 35 * s, "No data since 15:00:20"},
		{"the second gap", []step{{"came", 0}, {"came", 10 * s}, {"came", 30 * s}}, 90 * s,
			"No data since 15:00:30"},
		{"the longest gap counts", join(every("came", 20*s, 0, 40*s), every("came", s, 41*s, 50*s)),
			110 * s, "No data since 15:00:50"},
		{"but for ten minutes", join(every("came", 20*s, 0, 40*s), every("came", s, 41*s, 641*s)),
			651 * s, "No data since 15:10:41"},
		{"an outage does not count", join(every("came", s, 0, 5*s), every("came", s, 50*s, 55*s)),
			65 * s, "No data since 15:00:55"},
		{"a second long silence does", join(every("came", s, 0, 5*s),
			[]step{{"came", 30 * s}, {"came", 60 * s}}), 150 * s, "No data since 15:01:00"},
		{"but not after ten minutes", join(every("came", s, 0, 5*s), every("came", s, 30*s, 700*s),
			[]step{{"came", 730 * s}}), 740 * s, "No data since 15:12:10"},
		{"a lost connection", join(every("came", 2*s, 0, 10*s), []step{{"lost", 11 * s}}), 21 * s,
			"Connection lost at 15:00:11"},
		{"lost with no gap known", []step{{"came", 0}, {"lost", 3 * s}}, 13 * s,
			"Connection lost at 15:00:03"},
		{"the first loss counts", []step{{"came", 0}, {"lost", 3 * s}, {"lost", 8 * s}}, 13 * s,
			"Connection lost at 15:00:03"},
		{"what comes ends a loss", []step{{"came", 0}, {"lost", 3 * s}, {"came", 8 * s}}, 68 * s,
			"No data since 15:00:08"},
		{"a loss is no gap", join(every("came", s, 0, 5*s), []step{{"lost", 6 * s}},
			every("came", s, 40*s, 45*s)), 55 * s, "No data since 15:00:45"},
		{"silent too long before the loss", join(every("came", 2*s, 0, 10*s),
			[]step{{"lost", 70 * s}}), 20 * s, "No data since 15:00:10"},
		{"silent for two heartbeats, and closed for that", []step{{"came", 0}, {"lost", 60 * s}},
			60 * s, "No data since 15:00:00"},
		{"long gaps, closed before the limit", join(every("came", 30*s, 0, 2*minute),
			[]step{{"lost", 3 * minute}}), 190 * s, "Connection lost at 15:03:00"},
	}
	start := time.Date(2026, 7, 8, 15, 0, 0, 0, time.Local)
	for _, tt := range tests {
		f := freshness{least: minStale, unknown: minute}
		for _, step := range tt.steps {
			at := start.Add(step.at)
			switch step.what {
			case "came":
				f.came(at)
			case "lost":
				f.connectionLost(at)
			}
		}

		at, message := f.due()
		due := never
		if !at.IsZero() {
			due = at.Sub(start)
		}
		if due != tt.due || message != tt.since {
			t.Errorf("%s: due after %v, %q, want %v, %q", tt.name, due, message, tt.due, tt.since)
		}
	}
}

func TestStaleWithoutHeartbeatsNeedsAGap(t *testing.T) {
	start := time.Now()
	f := freshness{least: minStale}
	for hour := 0; hour < 2; hour++ {
		f.came(start.Add(time.Duration(hour) * time.Hour))
		if due, _ := f.due(); !due.IsZero() {
			t.Errorf("after event %d it is due at %v", hour, due)
		}
	}

	last := start.Add(2 * time.Hour)
	f.came(last)
	if due, _ := f.due(); due != last.Add(3*time.Hour) {
		t.Errorf("with gaps of an hour it is due after %v", due.Sub(last))
	}
}

func TestStaleKeepsFewGaps(t *testing.T) {
	f := freshness{least: minStale}
	at := time.Now()
	for i := 0; i < 100_000; i++ {
		at = at.Add(time.Duration(i*7919%1000+1) * time.Millisecond)
		f.came(at)
	}
	if len(f.gaps) > 1000 {
		t.Errorf("%d gaps are kept", len(f.gaps))
	}
}

const onlineSnapshot = `{"system_status":{"status":"online","message":"All <well>"},"n":1}`

// forwardBriefly runs a forwarder until the test ends. For it, ten seconds are 50 ms, and a lost
// connection is opened again at once. unknown is the silence before a gap is known.
func forwardBriefly(t *testing.T, method, upstream, edge string,
	unknown time.Duration) *lockedBuffer {
	t.Helper()
	log := &lockedBuffer{}
	f := newForwarder(method, mustTarget(t, edge), "", slog.New(slog.NewTextHandler(log, nil)))
	f.fresh.least = 50 * time.Millisecond
	f.fresh.unknown = unknown
	f.minPause, f.maxPause = time.Millisecond, 5*time.Millisecond

	s := newStream(&target{url: mustURL(t, upstream)}, f)
	s.retryIn = 5 * time.Millisecond
	ctx, cancel := context.WithCancel(context.Background())
	var both sync.WaitGroup
	both.Add(2)
	go func() {
		defer both.Done()
		s.keepOpen(ctx)
	}()
	go func() {
		defer both.Done()
		f.sendAll(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		both.Wait()
		f.stop()
	})
	return log
}

// recordingEdge gives what is sent to it. It answers 503 to the first stale snapshots.
func recordingEdge(t *testing.T, fails int32) (url string, got chan string) {
	t.Helper()
	var left atomic.Int32
	left.Store(fails)
	got = make(chan string, 1000)
	url = serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		got <- string(body)
		isStale := bytes.Contains(body, []byte(`"stale"`))
		if isStale && left.Add(-1) >= 0 {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	return url, got
}

// expectStale waits for onlineSnapshot, marked as stale with a message that begins like this. The
// unmarked one may come before that.
func expectStale(t *testing.T, got chan string, message string) {
	t.Helper()
	want := `^\{"system_status":\{"status":"stale","message":"` + message +
		` \d\d:\d\d:\d\d"\},"n":1\}$`
	data := onlineSnapshot
	for data == onlineSnapshot {
		data = receive(t, got)
	}
	if !regexp.MustCompile(want).MatchString(data) {
		t.Fatalf("got %s, want %s", data, want)
	}
}

func expectData(t *testing.T, got chan string, want string) {
	t.Helper()
	data := receive(t, got)
	if data != want {
		t.Fatalf("got %s, want %s", data, want)
	}
}

func TestForwardMarksSilentUpstreamStale(t *testing.T) {
	t.Parallel()
	for _, method := range []string{"PUT", "POST"} {
		send := make(chan string)
		upstream := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
			for {
				select {
				case text := <-send:
					begin(w, text)
				case <-r.Context().Done():
					return
				}
			}
		})
		edge, got := recordingEdge(t, 0)
		log := forwardBriefly(t, method, upstream, edge, 50*time.Millisecond)

		send <- "data: " + onlineSnapshot + "\n\n"
		expectStale(t, got, "No data since")

		// A comment shows that the upstream is alive and has nothing newer. On a slow machine the
		// next silence may come before the snapshot is sent.
		data := ""
		for data != onlineSnapshot {
			send <- ": heartbeat\n\n"
			data = receive(t, got)
		}
		expectStale(t, got, "No data since")

		send <- "data: 2\n\n"
		expectData(t, got, "2")
		// Each of the two silences is an outage; on a slow machine there are more.
		if n := strings.Count(log.String(), "snapshot is stale"); n < 2 {
			t.Errorf("logged %d times:\n%s", n, log)
		}
	}
}

func TestForwardMarksLostUpstreamStale(t *testing.T) {
	t.Parallel()
	var isBack atomic.Bool
	upstream := serve(t, func(n int, w http.ResponseWriter, r *http.Request) {
		switch {
		case n == 0:
			begin(w, "retry: 5\ndata: "+onlineSnapshot+"\n\n")
		case isBack.Load():
			begin(w, "data: 2\n\n")
			<-r.Context().Done()
		default:
			begin(w, ": a full server\n\n")
		}
	})
	edge, got := recordingEdge(t, 0)
	forwardBriefly(t, "PUT", upstream, edge, time.Minute)

	expectStale(t, got, "Connection lost at")
	isBack.Store(true)
	expectData(t, got, "2")
}

// A stale snapshot is as new as anything, so it does not get too old when the stream is closed.
func TestForwardTriesStaleUntilItIsTaken(t *testing.T) {
	t.Parallel()
	upstream := serve(t, func(n int, w http.ResponseWriter, r *http.Request) {
		if n == 0 {
			begin(w, "retry: 5\ndata: "+onlineSnapshot+"\n\n")
			return
		}
		w.WriteHeader(http.StatusServiceUnavailable)
	})
	edge, got := recordingEdge(t, 3)
	log := forwardBriefly(t, "PUT", upstream, edge, time.Minute)

	for attempt := 0; attempt < 4; attempt++ {
		expectStale(t, got, "Connection lost at")
	}
	log.wait(t, "forwarding works again")
	if len(got) > 0 {
		t.Errorf("%s was sent, too", <-got)
	}
}

// silentForwarder has got the data of one event a minute ago, and no timer yet. What it forwards
// stays in next.
func silentForwarder(t *testing.T, data string) *forwarder {
	f := newForwarder("PUT", new(target), "", discardSlog)
	t.Cleanup(f.stop)
	f.fresh.unknown = 30 * time.Second
	f.opened(nil)
	f.event(&event{data: []byte(data)}, time.Now())
	<-f.next
	f.timer.Stop()
	f.fresh.last = time.Now().Add(-time.Minute)
	return f
}

func TestForwardMarksStaleOnce(t *testing.T) {
	f := silentForwarder(t, onlineSnapshot)
	f.markStale()
	out, ok := f.waiting()
	if !ok || !out.isStale {
		t.Errorf("got %+v", out)
	}

	f.markStale()
	f.closed(io.EOF)
	f.mu.Lock() // the timer may have run out already
	f.fresh.lost = time.Now().Add(-time.Minute)
	f.mu.Unlock()
	f.markStale()
	out, ok = f.waiting()
	if ok {
		t.Errorf("%s was sent, too", out.data)
	}
}

func TestForwardPassesStaleOnUnchanged(t *testing.T) {
	tests := []string{
		`{"system_status":{"status":"stale","message":"No data since 15:04:05"}}`,
		`{"system_status":{}}`,
		`not JSON`,
	}
	for _, data := range tests {
		f := silentForwarder(t, data)
		f.markStale()
		out, ok := f.waiting()
		if ok {
			t.Errorf("%s was sent after %s", out.data, data)
		}
	}
}

func TestForwardMarksNothingStaleTooEarly(t *testing.T) {
	f := silentForwarder(t, onlineSnapshot)
	f.comment(nil, time.Now().Add(-time.Second)) // just when the timer ran out
	f.waiting()
	f.markStale()
	out, ok := f.waiting()
	if ok {
		t.Errorf("%s was sent", out.data)
	}
}

func TestForwardThatEndsMarksNothingStale(t *testing.T) {
	f := silentForwarder(t, onlineSnapshot)
	f.stop()
	f.markStale()
	out, ok := f.waiting()
	if ok {
		t.Errorf("%s was sent", out.data)
	}
}

func TestForwardOfUnreachedUpstreamPutsNothing(t *testing.T) {
	f := newForwarder("PUT", new(target), "", discardSlog)
	f.fresh.least = 0
	f.failed(io.EOF)
	f.opened(nil)
	f.comment(nil, time.Now())
	f.closed(io.EOF)
	f.markStale()
	out, ok := f.waiting()
	if ok {
		t.Errorf("%s was sent", out.data)
	}
}

// After an event that was too large, the newest one that was forwarded is old.
func TestForwardRepeatsNothingAfterDrop(t *testing.T) {
	f := silentForwarder(t, onlineSnapshot)
	f.dropped()
	f.comment(nil, time.Now())
	out, ok := f.waiting()
	if ok {
		t.Errorf("%s was sent", out.data)
	}

	f.markStale()
	out, _ = f.waiting()
	if !out.isStale {
		t.Errorf("a comment kept the snapshot fresh: %+v", out)
	}
}
