package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand"
	"net"
	"net/http"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestForwardSendsEachEvent(t *testing.T) {
	t.Setenv("SSE_FORWARD_TOKEN", " s3cret\n")
	got := make(chan string, 10)
	edge := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		got <- fmt.Sprintf("%s %s %s %s", r.Method, r.Header.Get("Authorization"),
			r.Header.Get("Content-Type"), body)
	})
	arrived := make(chan bool)
	upstream := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		begin(w, "data: {\"a\":1}\n\n")
		<-arrived
		begin(w, "data: "+strings.Repeat("x", defaultMaxEvent+1)+"\n\ndata: {\ndata: }\n\n")
		<-r.Context().Done()
	})
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	var out, errs bytes.Buffer
	done := make(chan int)
	go func() {
		done <- dispatch(ctx, []string{"-url", upstream, "-forward", edge, "-forward-method",
			"POST"},
			&out, &errs)
	}()
	const head = "POST Bearer s3cret application/json "
	if s := receive(t, got); s != head+`{"a":1}` {
		t.Errorf("got %s", s)
	}
	close(arrived)
	if s := receive(t, got); s != head+"{\n}" {
		t.Errorf("got %s", s)
	}
	time.Sleep(50 * time.Millisecond) // for the answer
	stop()
	if code := <-done; code != 1 { // an event was dropped
		t.Errorf("exit status %d, %s", code, errs.String())
	}
	if want := "2 events forwarded, 0 failed, 0 replaced by a newer one, 1 too large\n"; out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
	if n := strings.Count(errs.String(), "\n"); n != 2 ||
		!strings.Contains(errs.String(), "over -max-event-bytes") {
		t.Errorf("logged %s", errs.String())
	}
}

// A page's onmessage gets the same. Pings, as events or as Centrifugo's, are heartbeats.
func TestForwardSendsEventsOfOneName(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		args []string
		text string
	}{
		{nil, "event: ping\ndata: now\n\ndata: {}\n\nevent: message\ndata: {}\n\ndata: wanted\n\n"},
		{nil, "event: Message\ndata: 1\n\nevent: message\ndata: wanted\n\n"},
		{[]string{"-event", "message"}, "event: ping\ndata: now\n\ndata: wanted\n\n"},
		{[]string{"-event", "snapshot"}, "data: 1\n\nevent: message\ndata: 2\n\n" +
			"event: snapshot\ndata: {}\n\nevent: snapshot\ndata: wanted\n\n"},
	} {
		tt := tt
		t.Run("", func(t *testing.T) {
			t.Parallel()
			upstream := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
				begin(w, tt.text)
				<-r.Context().Done()
			})
			got, _ := forward(t, upstream, tt.args...)
			if data := receive(t, got); data != "wanted" {
				t.Errorf("%q, %q: got %q", tt.args, tt.text, data)
			}
		})
	}
}

// What was dropped did not reach the edge.
func TestForwardDroppedIsWrong(t *testing.T) {
	t.Parallel()
	edge := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {})
	for text, want := range map[string]int{
		"data: 1\n\n": 0,
		"data: " + strings.Repeat("x", 100) + "\n\n":            1,
		"data: " + strings.Repeat("x", 100) + "\n\ndata: 1\n\n": 1,
	} {
		text := text
		upstream := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
			begin(w, text)
			<-r.Context().Done()
		})
		code, out, errs := client(t, "-url", upstream, "-forward", edge, "-max-event-bytes", "50",
			"-duration", "1s")
		if code != want {
			t.Errorf("%q: exit status %d, want %d\n%s%s", text, code, want, out, errs)
		}
	}
}

func TestForwardTakesOtherEventsForHeartbeats(t *testing.T) {
	f := newForwarder("PUT", new(target), "", discardSlog)
	f.opened(nil)
	t0 := time.Now()
	f.event(&event{data: []byte("1")}, t0)
	<-f.next // it is sent
	f.event(&event{name: []byte("ping"), data: []byte("x")}, t0.Add(newsTime))
	if string(f.newest) != "1" || !f.fresh.last.Equal(t0.Add(newsTime)) {
		t.Errorf("the newest is %s, and the last sign of life at %v", f.newest, f.fresh.last)
	}
	if out, ok := f.waiting(); !ok || !out.isRepeat {
		t.Error("the newest is not sent once more, as on a heartbeat")
	}
	f.stop()
}

func TestForwardWithoutEventsIsWrong(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		handle func(w http.ResponseWriter, r *http.Request)
		want   int
	}{
		"no answer": {func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, 1},
		"closed each time": {func(w http.ResponseWriter, r *http.Request) {
			begin(w, "retry: 1\n\n")
		}, 1},
		"rejected": {http.NotFound, 1},
		"an edge without a snapshot": {func(w http.ResponseWriter, r *http.Request) {
			begin(w, ": heartbeat\n\n")
			<-r.Context().Done()
		}, 0},
	} {
		tt := tt
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			upstream := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
				tt.handle(w, r)
			})
			edge := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {})
			code, _, errs := client(t, "-duration", "6s", "-url", upstream, "-forward", edge)
			if code != tt.want {
				t.Errorf("exit status %d, want %d\n%s", code, tt.want, errs)
			}
		})
	}
}

// Five seconds, less those that a dial may last that began before its upstream was back.
func TestForwardComesBackSoon(t *testing.T) {
	s := newStream(nil, nil)
	s.backoff = true
	for _, said := range []time.Duration{0, 3 * time.Second, time.Hour} {
		s.retryIn = said
		for fails := 0; fails < 100; fails++ {
			if wait := s.wait(fails); wait > 3*time.Second {
				t.Errorf("after retry %v and %d failures, it waits %v", said, fails, wait)
			}
		}
	}
}

func TestForwardReplacesWaitingEvent(t *testing.T) {
	got, release := make(chan string, 10), make(chan bool)
	edge := serve(t, func(n int, w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		got <- string(body)
		<-release
	})
	f := newForwarder("PUT", mustTarget(t, edge), "", discardSlog)
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan bool)
	go func() {
		f.sendAll(ctx)
		close(done)
	}()
	data := []byte("1")
	f.event(&event{data: data}, time.Time{})
	if s := receive(t, got); s != "1" {
		t.Errorf("got %s", s)
	}
	for _, data[0] = range []byte("23456") { // the same slice, as the parser's is
		f.event(&event{data: data}, time.Time{})
	}
	data[0] = '!'
	close(release)
	if s := receive(t, got); s != "6" {
		t.Errorf("got %s, want the newest", s)
	}
	stop()
	<-done
	if f.stats.Replaced != 4 || len(got) != 0 {
		t.Errorf("%d replaced, %d more sent", f.stats.Replaced, len(got))
	}
}

func TestForwardLogsFailureOncePerChange(t *testing.T) {
	status := []int{500, 503, 200, 201, 404, 200}
	edge := serve(t, func(n int, w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(status[n])
	})
	var logged bytes.Buffer
	f := newForwarder("PUT", mustTarget(t, edge), "", slog.New(slog.NewTextHandler(&logged, nil)))
	for range status {
		f.note(f.send(context.Background(), []byte("{}")))
	}
	f.to = mustTarget(t, "http://127.0.0.1:1/") // nobody there
	f.note(f.send(context.Background(), nil))
	f.note(f.send(context.Background(), nil))
	if f.stats.Sent != 3 || f.stats.Failed != 5 || !f.stats.failing {
		t.Errorf("got %+v", f.stats)
	}
	var levels []string
	for _, line := range strings.Split(strings.TrimSpace(logged.String()), "\n") {
		levels = append(levels, strings.Fields(line)[1])
	}
	if got, want := strings.Join(levels, " "),
		"level=WARN level=INFO level=WARN level=INFO level=WARN"; got != want {
		t.Errorf("got %s, want %s\n%s", got, want, logged.String())
	}
}

func TestForwardComesBackAfter204(t *testing.T) {
	t.Parallel()
	got := make(chan string, 10)
	edge := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		got <- string(body)
	})
	upstream := serve(t, func(n int, w http.ResponseWriter, r *http.Request) {
		switch n {
		case 0:
			begin(w, "retry: 10\nid: 1\ndata: a\n\n")
		case 1:
			w.WriteHeader(http.StatusNoContent)
		default:
			begin(w, "id: 2\ndata: after "+r.Header.Get("Last-Event-ID")+"\n\n")
			<-r.Context().Done()
		}
	})
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	var errs bytes.Buffer
	done := make(chan int)
	go func() {
		done <- dispatch(ctx, []string{"-url", upstream, "-forward", edge}, io.Discard,
			&errs)
	}()
	if a, b := receive(t, got), receive(t, got); a != "a" || b != "after 1" {
		t.Errorf("got %q and %q", a, b)
	}
	stop()
	<-done
	for _, want := range []string{"stream open", "stream closed", "stream failing"} {
		if !strings.Contains(errs.String(), want) {
			t.Errorf("%q was not logged:\n%s", want, errs.String())
		}
	}
}

// newTestForwarder forwards what its open stream brings until the test ends.
func newTestForwarder(t *testing.T, method, url string) (f *forwarder, log *lockedBuffer) {
	log = &lockedBuffer{}
	f = newForwarder(method, mustTarget(t, url), "", slog.New(slog.NewTextHandler(log, nil)))
	f.minPause, f.maxPause = time.Millisecond, 5*time.Millisecond
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan bool)
	go func() {
		f.sendAll(ctx)
		close(done)
	}()
	t.Cleanup(func() {
		stop()
		<-done
		f.stop()
	})
	f.opened(nil)
	return f, log
}

func TestForwardTriesNewestUntilItIsTaken(t *testing.T) {
	t.Parallel()
	got := make(chan string, 10)
	edge := serve(t, func(n int, w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		got <- string(body)
		switch n {
		case 0:
			w.WriteHeader(http.StatusBadGateway)
		case 1:
			w.WriteHeader(http.StatusTooManyRequests)
		case 2:
			panic(http.ErrAbortHandler) // cut
		case 3:
			<-r.Context().Done() // hangs
		}
	})
	f, log := newTestForwarder(t, "PUT", edge)
	f.client.Timeout = 500 * time.Millisecond
	f.event(&event{data: []byte("1")}, time.Time{})
	for i := 0; i < 4; i++ {
		if s := receive(t, got); s != "1" {
			t.Errorf("attempt %d: %s", i+1, s)
		}
	}
	f.event(&event{data: []byte("2")}, time.Time{})
	if s := receive(t, got); s != "2" {
		t.Errorf("got %s, want the newest", s)
	}
	log.wait(t, "forwarding works again")
	if n := strings.Count(log.String(), "forwarding fails"); n != 1 {
		t.Errorf("failing was logged %d times:\n%s", n, log)
	}
	if len(got) > 0 {
		t.Errorf("%s was sent, too", <-got)
	}
}

func TestForwardDoesNotRepeatRejectedEvent(t *testing.T) {
	t.Parallel()
	for _, status := range []int{301, 400, 401, 403, 404, 409, 413, 415} {
		var requests atomic.Int32
		edge := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
			requests.Add(1)
			w.WriteHeader(status)
		})
		log := &lockedBuffer{}
		f := newForwarder("PUT", mustTarget(t, edge), "", slog.New(slog.NewTextHandler(log, nil)))
		f.opened(nil)
		f.deliver(context.Background(), outgoing{data: []byte("1")})
		if n := requests.Load(); n != 1 {
			t.Errorf("%d: sent %d times", status, n)
		}
		if !strings.Contains(log.String(), "forwarding is rejected") {
			t.Errorf("%d: logged %s", status, log)
		}
	}
}

// A redirect that makes GET of PUT leads to a page, whose 200 says nothing.
func TestForwardFollowsRedirectOnlyWithData(t *testing.T) {
	for status, want := range map[int]string{301: "PUT 1", 302: "PUT 1", 303: "PUT 1",
		307: "PUT 1, PUT 1", 308: "PUT 1, PUT 1"} {
		var got []string
		edge := serve(t, func(n int, w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			got = append(got, r.Method+" "+string(body))
			if n == 0 {
				http.Redirect(w, r, "/elsewhere", status)
			}
		})
		f := newForwarder("PUT", mustTarget(t, edge), "", discardSlog)
		err := f.send(context.Background(), []byte("1"))
		if s := strings.Join(got, ", "); s != want || (err == nil) != (status > 303) {
			t.Errorf("%d: the edge had %s, want %s; %v", status, s, want, err)
		}
	}
}

// Servers close connections that were kept, and may do so just as a request comes.
func TestForwardSurvivesDeadKeptConnection(t *testing.T) {
	edge := rawServe(t, func(c *net.TCPConn) { // which has read the first request
		defer c.Close()
		io.WriteString(c, "HTTP/1.1 204 No Content\r\n\r\n")
		c.Read(make([]byte, 1)) // the second is begun, and not answered
	})
	for _, method := range []string{"PUT", "POST"} {
		f := newForwarder(method, mustTarget(t, edge), "", discardSlog)
		first := f.send(context.Background(), []byte("1"))
		second := f.send(context.Background(), []byte("1"))
		if first != nil || (second == nil) != (method == "PUT") {
			t.Errorf("%s: %v, and then %v", method, first, second)
		}
	}
}

func TestForwardLogsEachOutage(t *testing.T) {
	log := &lockedBuffer{}
	f := newForwarder("PUT", new(target), "", slog.New(slog.NewTextHandler(log, nil)))
	want := []string{"stream open"}
	f.opened(nil)
	for i := 0; i < 3; i++ {
		f.closed(io.EOF)
		f.failed(io.EOF)
		f.opened(nil) // without an event, so it is the same outage
		f.closed(io.EOF)
		f.opened(nil)
		f.event(&event{data: []byte("1")}, time.Time{})
		f.note(io.EOF)
		f.note(nil)
		want = append(want, "stream closed, coming back", "stream failing, coming back",
			"stream open", "forwarding fails, trying again", "forwarding works again")
	}
	var got []string
	for _, m := range regexp.MustCompile(`msg="([^"]*)"`).FindAllStringSubmatch(log.String(), -1) {
		got = append(got, m[1])
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
	if n := strings.Count(log.String(), "outage="); n != 6 {
		t.Errorf("the lengths of %d outages are logged, want 6:\n%s", n, log)
	}
}

func TestForwardLogsRejectionAfterFailure(t *testing.T) {
	log := &lockedBuffer{}
	f := newForwarder("PUT", new(target), "", slog.New(slog.NewTextHandler(log, nil)))
	f.opened(nil)
	f.note(io.EOF)
	f.note(nil)
	f.note(rejectedError{io.EOF})
	f.failed(io.EOF)
	f.failed(answerError("answered 401"))
	for _, want := range []string{"forwarding fails", "forwarding is rejected", "stream failing", "stream rejected"} {
		if strings.Count(log.String(), want) != 1 {
			t.Errorf("%q is not logged once:\n%s", want, log)
		}
	}
}

func TestForwardCountsOnlyUnsentAsReplaced(t *testing.T) {
	f := newForwarder("PUT", new(target), "", discardSlog)
	f.opened(nil)
	f.event(&event{data: []byte("1")}, time.Time{})
	<-f.next // it is sent
	f.comment(nil, time.Time{}.Add(newsTime))
	if len(f.next) != 1 {
		t.Fatal("nothing waits to be sent once more")
	}
	f.event(&event{data: []byte("2")}, time.Time{})
	if f.stats.Replaced != 0 {
		t.Error("what is sent once more counts as replaced")
	}
	f.event(&event{data: []byte("3")}, time.Time{})
	if f.stats.Replaced != 1 {
		t.Errorf("%d events were replaced, want 1", f.stats.Replaced)
	}
}

// What could not be sent before the stream ended is old by then.
func TestForwardGivesUpWhenStreamIsClosed(t *testing.T) {
	t.Parallel()
	got := make(chan string, 10000)
	edge := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		got <- ""
		w.WriteHeader(http.StatusServiceUnavailable)
	})
	f := newForwarder("PUT", mustTarget(t, edge), "", discardSlog)
	f.minPause, f.maxPause = time.Millisecond, 5*time.Millisecond
	f.opened(nil)
	gaveUp := make(chan string, 1)
	go func() {
		f.deliver(context.Background(), outgoing{data: []byte("1")})
		gaveUp <- ""
	}()
	receive(t, got)
	receive(t, got)
	f.closed(io.EOF)
	receive(t, gaveUp)
}

func TestForwardRepeatsNewestOnHeartbeat(t *testing.T) {
	t.Parallel()
	for _, method := range []string{"PUT", "POST"} {
		got := make(chan string, 10)
		edge := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			got <- string(body)
		})
		f, _ := newTestForwarder(t, method, edge)
		start := time.Now()
		heartbeat := func(after time.Duration) { f.comment([]byte("heartbeat"), start.Add(after)) }
		heartbeat(0) // before the first event
		f.event(&event{data: []byte("1")}, start)
		want := []string{"1", "2"}
		if method == "PUT" {
			want = []string{"1", "1", "2"}
		}
		for i, data := range want {
			if s := receive(t, got); s != data {
				t.Errorf("%s: number %d is %s, want %s", method, i, s, data)
			}
			if i == 0 {
				heartbeat(newsTime - 1)
				time.Sleep(50 * time.Millisecond) // for what must not be sent
				heartbeat(newsTime)
				time.Sleep(50 * time.Millisecond)
			}
			if i == len(want)-2 {
				f.event(&event{data: []byte("2")}, start)
			}
		}
		f.closed(io.EOF)
		f.opened(nil)
		heartbeat(time.Hour) // of another connection: it may be full
		time.Sleep(50 * time.Millisecond)
		f.event(&event{data: []byte("3")}, start)
		if s := receive(t, got); s != "3" {
			t.Errorf("%s: got %s, want 3", method, s)
		}
	}
}

func TestForwardReopensSilentStream(t *testing.T) {
	t.Parallel()
	upstream := serve(t, func(n int, w http.ResponseWriter, r *http.Request) {
		begin(w, fmt.Sprintf("retry: 1\ndata: %d\n\n", n))
		<-r.Context().Done() // as a stopped process
	})
	got, log := forward(t, upstream, "-heartbeat", "100ms")
	for i := 0; i < 3; i++ {
		if s := receive(t, got); s != fmt.Sprint(i) {
			t.Errorf("got %s, want %d", s, i)
		}
	}
	log.wait(t, "silent for 200ms")
}

func TestForwardWaitsBeforeReopening(t *testing.T) {
	t.Parallel()
	var opened atomic.Int32
	upstream := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		opened.Add(1)
		begin(w, "retry: 0\n\n")
	})
	forward(t, upstream)
	time.Sleep(2 * time.Second)
	if n := opened.Load(); n > 3 { // after 0.5, 1 and 2 s at least
		t.Errorf("%d streams were opened in two seconds", n)
	}
}

// Each is one connection; what is sent on follows.
func TestForwardSendsOnlyWholeEvents(t *testing.T) {
	t.Parallel()
	noise := make([]byte, 10<<10)
	rand.New(rand.NewSource(1)).Read(noise)
	for name, c := range map[string]struct {
		head, text string
		want       []string
	}{
		"an event without an id":           {"", "data: 1\n\n", []string{"1"}},
		"half an event":                    {"", "data: 1\n\ndata: 2\ndata: half\n", []string{"1"}},
		"a page":                           {"Content-Type: text/html", "<p>data: 1\n\n", nil},
		"an event that is too large":       {"", "data: " + strings.Repeat("x", 2<<20) + "\n\ndata: 3\n\n", []string{"3"}},
		"noise":                            {"", string(noise) + "\n\ndata: 4\n\n", []string{"4"}},
		"comments, names and no data":      {"", ": x\nevent: y\nid: 5\n\n\n\ndata: 5\n\n", []string{"5"}},
		"what is not for the edge":         {"", "data: not JSON\n\n", []string{"not JSON"}},
		"a compressed stream that is none": {"Content-Encoding: gzip", "data: 1\n\n", nil},
	} {
		c := c
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			upstream := serve(t, func(n int, w http.ResponseWriter, r *http.Request) {
				if n > 0 {
					begin(w, "data: end\n\n")
					<-r.Context().Done()
				} else if c.head != "" {
					name, value, _ := strings.Cut(c.head, ": ")
					w.Header().Set(name, value)
					io.WriteString(w, c.text)
				} else {
					begin(w, "retry: 1\n"+c.text)
				}
			})
			got, log := forward(t, upstream, "-max-event-bytes", "1000000")
			for _, want := range append(c.want, "end") {
				if s := receive(t, got); s != want {
					t.Errorf("got %.100q, want %s", s, want)
				}
			}
			log.wait(t, "stream open")
			if n := strings.Count(log.String(), "\n"); n > 4 {
				t.Errorf("%d lines are logged:\n%s", n, log)
			}
		})
	}
}

// Servers reject some ids in a header, and would do so each time.
func TestForwardOmitsIDThatNoHeaderCanHave(t *testing.T) {
	t.Parallel()
	for _, id := range []string{"\x01", "a\x7f", strings.Repeat("7", 20<<10)} {
		id := id
		t.Run("", func(t *testing.T) {
			t.Parallel()
			upstream := serve(t, func(n int, w http.ResponseWriter, r *http.Request) {
				switch {
				case n == 0:
					begin(w, "retry: 1\nid: "+id+"\ndata: 1\n\n")
				case len(r.Header.Get("Last-Event-ID")) > 8<<10: // net/http allows 1 MiB
					w.WriteHeader(http.StatusRequestHeaderFieldsTooLarge)
				default:
					begin(w, "data: 2\n\n")
					<-r.Context().Done()
				}
			})
			got, _ := forward(t, upstream)
			if a, b := receive(t, got), receive(t, got); a != "1" || b != "2" {
				t.Errorf("got %s and %s", a, b)
			}
		})
	}
}

func TestForwardHoldsOneEventInFlood(t *testing.T) {
	large := "data: " + strings.Repeat("x", 256<<10) + "\n\n"
	sent := make(chan bool)
	upstream := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		for i := 0; i < 200; i++ { // 50 MiB
			begin(w, large)
		}
		close(sent)
		<-r.Context().Done()
	})
	edge := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	})
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	go dispatch(ctx, []string{"-url", upstream, "-forward", edge}, io.Discard, io.Discard)

	// The edge takes none of it. While it comes, there is garbage, however soon one looks.
	<-sent
	held := heldMemory()
	for end := time.Now().Add(10 * time.Second); held > 20<<20 && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
		held = heldMemory()
	}
	if held > 20<<20 {
		t.Errorf("%d MiB are held", held>>20)
	}
}

// heldMemory gives the bytes of the heap that are in use.
func heldMemory() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

var discardSlog = slog.New(slog.NewTextHandler(io.Discard, nil))

// A lockedBuffer is a log that is read while it grows.
type lockedBuffer struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// wait waits until the log has text.
func (b *lockedBuffer) wait(t *testing.T, text string) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !strings.Contains(b.String(), text); {
		if time.Now().After(end) {
			t.Fatalf("%q is not logged:\n%s", text, b)
		}
		time.Sleep(time.Millisecond)
	}
}

// forward runs sse-client -forward until the test ends, and gives what is received.
func forward(t *testing.T, upstream string, args ...string) (got chan string, log *lockedBuffer) {
	t.Helper()
	got, log = make(chan string, 10000), &lockedBuffer{}
	edge := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet { // of another test, whose server had this port before
			return
		}
		body, err := io.ReadAll(r.Body)
		if err != nil || len(body) == 0 {
			t.Errorf("the edge got %s %s from %s, %q, %v", r.Method, r.URL, r.UserAgent(), body, err)
		}
		got <- string(body)
	})
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan bool)
	go func() {
		dispatch(ctx, append([]string{"-url", upstream, "-forward", edge}, args...), io.Discard, log)
		close(done)
	}()
	t.Cleanup(func() { stop(); <-done })
	return got, log
}

func TestStreamBackoffGrowsWithJitter(t *testing.T) {
	s := newStream(nil, nil)
	s.backoff = true
	s.retryIn = 0
	for fails, least := range map[int]time.Duration{0: 500 * time.Millisecond,
		1: 500 * time.Millisecond, 2: time.Second, 3: 2 * time.Second, 1000: 2 * time.Second} {
		seen := map[time.Duration]bool{}
		for i := 0; i < 50; i++ {
			d := s.wait(fails)
			if d < least || d > least*3/2 {
				t.Errorf("after %d failures: %v, at least %v was due", fails, d, least)
			}
			seen[d] = true
		}
		if len(seen) < 10 {
			t.Errorf("after %d failures: no jitter", fails)
		}
	}
	s.backoff, s.retryIn = false, 7*time.Second
	if d := s.wait(5); d != 7*time.Second {
		t.Errorf("as a browser: %v", d)
	}
}

func receive(t *testing.T, c chan string) string {
	t.Helper()
	select {
	case s := <-c:
		return s
	case <-time.After(10 * time.Second):
		t.Fatal("nothing came")
		return ""
	}
}
