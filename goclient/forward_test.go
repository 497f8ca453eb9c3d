package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"
)

func TestForwardSendsEachEventOn(t *testing.T) {
	t.Setenv("SSE_FORWARD_TOKEN", "s3cret")
	got := make(chan string, 10)
	receiver := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		got <- fmt.Sprintf("%s %s %s %s", r.Method, r.Header.Get("Authorization"),
			r.Header.Get("Content-Type"), body)
	})
	arrived := make(chan bool)
	upstream := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		begin(w, "data: {\"a\":1}\n\n")
		<-arrived
		begin(w, "data: "+strings.Repeat("x", maxEvent+1)+"\n\ndata: {\ndata: }\n\n")
		<-r.Context().Done()
	})
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	var out, errs bytes.Buffer
	done := make(chan int)
	go func() {
		done <- run(ctx, []string{"-url", upstream, "-forward", receiver, "-forward-method",
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
	if code := <-done; code != 0 {
		t.Errorf("exit status %d, %s", code, errs.String())
	}
	if want := "2 events forwarded, 0 failed, 0 replaced by a newer one, 1 too large\n"; out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
	if n := strings.Count(errs.String(), "\n"); n != 2 ||
		!strings.Contains(errs.String(), "over 1 MiB") {
		t.Errorf("logged %s", errs.String())
	}
}

func TestForwardKeepsOnlyTheNewestForASlowReceiver(t *testing.T) {
	got, release := make(chan string, 10), make(chan bool)
	receiver := serve(t, func(n int, w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		got <- string(body)
		<-release
	})
	f := newForwarder("PUT", receiver, "", slog.New(slog.NewTextHandler(io.Discard, nil)))
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan bool)
	go func() {
		f.run(ctx)
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

func TestForwardLogsFailuresOncePerChange(t *testing.T) {
	status := []int{500, 503, 200, 201, 404, 200}
	receiver := serve(t, func(n int, w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(status[n])
	})
	var logged bytes.Buffer
	f := newForwarder("PUT", receiver, "", slog.New(slog.NewTextHandler(&logged, nil)))
	for range status {
		f.note(f.send(context.Background(), []byte("{}")))
	}
	f.url = "http://127.0.0.1:1/" // nobody there
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

func TestForwardComesBackEvenAfter204(t *testing.T) {
	t.Parallel()
	got := make(chan string, 10)
	receiver := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
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
		done <- run(ctx, []string{"-url", upstream, "-forward", receiver}, io.Discard,
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

func TestBackoffGrowsToAMinuteWithJitter(t *testing.T) {
	s := newStream(nil, nil)
	s.backoff = true
	s.retryIn = 0
	for fails, least := range map[int]time.Duration{0: 0, 1: 3 * time.Second, 2: 6 * time.Second,
		3: 12 * time.Second, 7: time.Minute, 1000: time.Minute} {
		seen := map[time.Duration]bool{}
		for i := 0; i < 50; i++ {
			d := s.wait(fails)
			if d < least || d > least*3/2 {
				t.Errorf("after %d failures: %v, at least %v was due", fails, d, least)
			}
			seen[d] = true
		}
		if least > 0 && len(seen) < 10 {
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
