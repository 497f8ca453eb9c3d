package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// An answering server is asked for a stream of two words, as an API of a language model.
func answering(t *testing.T, end string, requests chan<- string) string {
	return serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if requests != nil {
			requests <- fmt.Sprintf("%s %s %s %q", r.Method, body, r.Header.Get("Content-Type"),
				r.Header.Get("Last-Event-ID"))
		}
		begin(w, "retry: 1\nid: 7\ndata: a\n\ndata: b\n\n"+end)
	})
}

func TestAskSendsMethodAndBody(t *testing.T) {
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"-d", `{"q":1}`}, `POST {"q":1} application/json ""`},
		{[]string{"-d", "@" + writeFile(t, "from a file")}, `POST from a file application/json ""`},
		{[]string{"-d", "x", "-header", "Content-Type: text/plain"}, `POST x text/plain ""`},
		{[]string{"-d", ""}, `POST  application/json ""`},
		{[]string{"-d", "x", "-X", "PUT"}, `PUT x application/json ""`},
		{[]string{"-X", "POST"}, `POST   ""`},
		{[]string{"-X", "GET", "-once"}, `GET   ""`},
	} {
		requests := make(chan string, 10)
		url := answering(t, "", requests)
		clientJSON(t, 0, append(tt.args, url)...)
		if got := <-requests; got != tt.want {
			t.Errorf("%q: the server got %s, want %s", tt.args, got, tt.want)
		}
	}
}

func TestAskReadsBodyFromStandardInput(t *testing.T) {
	file, err := os.Open(writeFile(t, "from a pipe"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	stdin := os.Stdin
	defer func() { os.Stdin = stdin }()

	os.Stdin = file
	o, err := parseFlags([]string{"-d", "@-"}, io.Discard)
	if err != nil || string(o.target.body) != "from a pipe" {
		t.Errorf("got %+v, %v", o, err)
	}
}

// A request may cost its user money.
func TestAskIsSentOnceHoweverItEnds(t *testing.T) {
	for name, tt := range map[string]struct {
		handle func(w http.ResponseWriter)
		code   int
		wrong  string
	}{
		"an orderly end": {func(w http.ResponseWriter) { begin(w, "data: a\n\n") }, 0, ""},
		"a cut": {func(w http.ResponseWriter) {
			begin(w, "data: a\n\n")
			panic(http.ErrAbortHandler)
		}, 1, "1 " + wrongCut},
		"a rejection": {func(w http.ResponseWriter) { w.WriteHeader(503) }, 1,
			"1 " + wrongAnswer},
	} {
		var requests atomic.Int32
		url := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
			requests.Add(1)
			tt.handle(w)
		})
		s := clientJSON(t, tt.code, "-d", "{}", url)
		if got := problems(s); got != tt.wrong || requests.Load() != 1 {
			t.Errorf("%s: %d requests, wrong is %q, want %q", name, requests.Load(), got, tt.wrong)
		}
		if s.EndedWell != 1-tt.code {
			t.Errorf("%s: %d streams ended well", name, s.EndedWell)
		}
	}
}

// An API explains there what is wrong with the request.
func TestAskShowsWhatRejectionSays(t *testing.T) {
	url := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusUnauthorized)
		io.WriteString(w, "{\n  \"error\": \"no such key\"\n}"+strings.Repeat(" ", 1000))
	})
	want := `answered 401 Unauthorized: { "error": "no such key" }`
	s := clientJSON(t, 1, "-d", "{}", url)
	if s.ErrorKinds[want] != 1 {
		t.Errorf("got %v, want %s", s.ErrorKinds, want)
	}
}

// A repeated request is a new one: it has no Last-Event-ID.
func TestAskRepeatsOnlyWhenTold(t *testing.T) {
	t.Parallel()
	requests := make(chan string, 100)
	url := answering(t, "", requests)
	s := clientJSON(t, 0, "-d", "{}", "-repeat", "-duration", "2s", url)
	if s.EndedWell < 2 || s.Reconnects != 0 || s.Away != nil {
		t.Errorf("got %+v, away %v", s.totals, s.Away)
	}
	if n := len(requests); n < 2 {
		t.Errorf("%d requests in two seconds, with 250 ms between two", n)
	}
	for len(requests) > 0 {
		if got, want := <-requests, `POST {} application/json ""`; got != want {
			t.Errorf("the server got %s, want %s", got, want)
		}
	}
}

// A request that fails has no part in the next one.
func TestAskRepeatedKeepsRequestsApart(t *testing.T) {
	t.Parallel()
	url := serve(t, func(n int, w http.ResponseWriter, r *http.Request) {
		begin(w, "retry: 600\nid: 1\ndata: {}\n\nid: 2\ndata: {}\n\n")
		if n%2 == 0 {
			panic(http.ErrAbortHandler)
		}
	})
	s := clientJSON(t, 1, "-d", "{}", "-repeat", "-duration", "3s", "-check", "json", url)
	if len(s.Wrong) != 1 || s.Wrong[0].Problem != wrongCut {
		t.Errorf("wrong is %s", problems(s))
	}
	if s.Reconnects != 0 || s.Away != nil {
		t.Errorf("%d reconnects, away %v", s.Reconnects, s.Away)
	}
	if s.EndedWell == 0 || s.Duration == nil || s.Duration.P50 >= 600 {
		t.Errorf("%d ended well, after %+v; the wait alone is 600 ms", s.EndedWell, s.Duration)
	}
}

func TestAskKeepsBodyFromPublish(t *testing.T) {
	o, err := parseFlags([]string{"-d", "secret", "-X", "PUT", "-publish", "http://localhost/"},
		io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	p := newPublisher(o)
	if p.method != "" || p.body != nil || p.to.header.Get("Content-Type") != "" {
		t.Errorf("-publish sends %q %q %v", p.method, p.body, p.to.header)
	}
}

func TestUntilEndsStreamByDataOrName(t *testing.T) {
	// The server does not end the stream: the client has to.
	hanging := func(text string) string {
		return serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
			begin(w, text)
			<-r.Context().Done()
		})
	}
	for _, tt := range []struct {
		text   string
		events int64
	}{
		{"data: 1\n\ndata: 2\n\ndata: [DONE]\n\ndata: 4\n\n", 3},
		{"data: 1\n\nevent: [DONE]\ndata: {}\n\ndata: 3\n\n: x\n\n", 2},
	} {
		url := hanging(tt.text)
		s := clientJSON(t, 0, "-until", "[DONE]", "-check", "none", url)
		if s.Events != tt.events || s.EndedWell != 1 || s.Heartbeats != 0 || s.Closes != 0 {
			t.Errorf("%q: got %+v", tt.text, s.totals)
		}
		if s.Duration == nil || s.First == nil || s.Gaps == nil {
			t.Errorf("%q: no duration, first event or gaps", tt.text)
		}
	}

	// The text is no JSON, and need not be.
	url := hanging("data: {}\n\ndata: [DONE]\n\n")
	clientJSON(t, 0, "-until", "[DONE]", "-check", "json", url)
}

func TestUntilMissedIsWrong(t *testing.T) {
	var requests atomic.Int32
	url := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		begin(w, "data: a\n\ndata: [DONE] or nearly so\n\n")
	})
	s := clientJSON(t, 1, "-until", "[DONE]", url)
	if got := problems(s); got != "1 "+wrongUntil || requests.Load() != 1 || s.EndedWell != 0 {
		t.Errorf("%d requests, wrong is %s", requests.Load(), got)
	}

	none := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusNoContent)
	})
	s = clientJSON(t, 1, "-until", "[DONE]", none)
	if got := problems(s); got != "1 "+wrongUnopened {
		t.Errorf("after 204: wrong is %s", got)
	}

	hanging := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		begin(w, "data: a\n\n")
		<-r.Context().Done()
	})
	s = clientJSON(t, 1, "-until", "[DONE]", "-duration", "500ms", hanging)
	if got := problems(s); got != "1 "+wrongUntil {
		t.Errorf("when the run ends before: wrong is %s", got)
	}
}

func TestEventsEndStreamAfterSoMany(t *testing.T) {
	url := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		begin(w, "data: 1\n\ndata: 2\n\ndata: 3\n\n")
		<-r.Context().Done()
	})
	s := clientJSON(t, 0, "-events", "2", "-clients", "3", url)
	if s.Events != 6 || s.EndedWell != 3 {
		t.Errorf("got %+v", s.totals)
	}
	s = clientJSON(t, 1, "-events", "4", "-duration", "500ms", url)
	if got := problems(s); got != "1 "+wrongEvents {
		t.Errorf("too few events: wrong is %s", got)
	}

	// They may come on several connections.
	closing := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		begin(w, "retry: 1\ndata: 1\n\n")
	})
	s = clientJSON(t, 0, "-events", "2", closing)
	if s.Events != 2 || s.Reconnects != 1 || s.EndedWell != 1 {
		t.Errorf("over two connections: got %+v", s.totals)
	}
}

// The times of each request count, from its own begin.
func TestAskMeasuresEachRequest(t *testing.T) {
	m := newMeter(newChecker("none"), 0, 1)
	v := &viewer{m: m, ending: ending{asked: true, repeat: true}}
	t0 := time.Now().Add(-time.Hour)
	for i := 0; i < 3; i++ {
		begin := t0.Add(time.Duration(i) * time.Minute)
		v.opened(&conn{start: begin})
		v.event(&event{data: []byte("a")}, begin.Add(200*time.Millisecond))
		v.event(&event{data: []byte("b")}, begin.Add(300*time.Millisecond))
		v.renewed()
		v.m.mu.Lock()
		v.endWellLocked(begin.Add(time.Second))
		v.m.mu.Unlock()
	}
	s := m.summary(time.Second)
	if m.first.n != 3 || s.First.Max != 200 || s.First.P50 != 200 {
		t.Errorf("%d first events, %+v; want three of 200 ms", m.first.n, s.First)
	}
	if m.durations.n != 3 || s.Duration.Max != 1000 {
		t.Errorf("%d durations, %+v; want three of 1 s", m.durations.n, s.Duration)
	}
	if m.gaps.n != 3 || s.Gaps.Max != 100 || m.away.n != 0 {
		t.Errorf("%d gaps, %+v, %d times away; want three of 100 ms", m.gaps.n, s.Gaps, m.away.n)
	}
}

func TestAskExpectsNoHeartbeat(t *testing.T) {
	for args, want := range map[string]time.Duration{
		"-d x": 0, "-X POST": 0, "-X GET": 30 * time.Second, "-once": 30 * time.Second,
		"-d x -heartbeat 7s": 7 * time.Second,
	} {
		o, err := parseFlags(strings.Fields(args), io.Discard)
		if err != nil || o.heartbeat != want {
			t.Errorf("%s: got %v, %v", args, o.heartbeat, err)
		}
	}
}
