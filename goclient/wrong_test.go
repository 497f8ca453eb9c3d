package main

import (
	"io"
	"net/http"
	"testing"
)

// Each of these streams brings nothing, in a way of its own.
func TestWrongIsStreamWithoutAnything(t *testing.T) {
	t.Parallel()
	closing := func(text string) func(w http.ResponseWriter, r *http.Request) {
		return func(w http.ResponseWriter, r *http.Request) { begin(w, text) }
	}
	noContent := func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusNoContent)
	}
	for name, tt := range map[string]struct {
		handle func(w http.ResponseWriter, r *http.Request)
		args   []string
		code   int
		wrong  string
	}{
		"no answer": {
			handle: func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
			args:   []string{"-duration", "500ms"}, code: 1, wrong: "1 " + wrongUnopened,
		},
		"no answer to a stalled stream": {
			handle: func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
			args:   []string{"-duration", "500ms", "-stalled", "1"}, code: 1,
			wrong: "1 " + wrongUnopened,
		},
		"404 to a stalled stream": {
			handle: http.NotFound, args: []string{"-stalled", "1"}, code: 1,
			wrong: "1 " + wrongAnswer,
		},
		"a page to a slow stream": {
			handle: func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "<p>") },
			args:   []string{"-slow", "1"}, code: 1, wrong: "1 " + wrongAnswer,
		},
		"closed at once each time": {
			handle: closing("retry: 1\n\n: hello\n\n"), args: []string{"-duration", "2s"}, code: 1,
			wrong: "1 " + wrongEmpty,
		},
		"closed at once, but once only": {
			handle: closing(": hello\n\n"), args: []string{"-once"}, code: 1,
			wrong: "1 " + wrongNothing,
		},
		"closed at once, in a short run": {
			handle: closing(": hello\n\n"), args: []string{"-duration", "1s"}, code: 1,
			wrong: "1 " + wrongNothing,
		},
		"closed at once, though asked": {
			handle: closing(""), args: []string{"-d", "{}"}, code: 1, wrong: "1 " + wrongNothing,
		},
		"204 at once": {
			handle: noContent, args: []string{"-duration", "5s"}, code: 1,
			wrong: "1 " + wrongUnopened,
		},
		"204 at once, though asked": {
			handle: noContent, args: []string{"-d", "{}"}, code: 1, wrong: "1 " + wrongUnopened,
		},
		"204 to a stalled stream": {
			handle: noContent, args: []string{"-stalled", "1"}, code: 1,
			wrong: "1 " + wrongUnopened,
		},
		"closed at once, with an event": {
			handle: closing("retry: 1\ndata: a\n\n"), args: []string{"-duration", "2s"},
		},
		"gzip that is none": {
			handle: func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Encoding", "gzip")
				begin(w, "data: a\n\n")
			},
			args: []string{"-once"}, code: 1, wrong: "1 " + wrongUnreadable,
		},
		"cut, and back again": {
			handle: func(w http.ResponseWriter, r *http.Request) {
				begin(w, "retry: 1\ndata: a\n\n")
				panic(http.ErrAbortHandler)
			},
			args: []string{"-events", "2"},
		},
	} {
		tt := tt
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) { tt.handle(w, r) })
			s := clientJSON(t, tt.code, append(tt.args, url)...)
			if got := problems(s); got != tt.wrong {
				t.Errorf("got %q, want %q", got, tt.wrong)
			}
		})
	}
}

// Three in a row: an event begins the count anew.
func TestWrongIsEmptyStreamInARow(t *testing.T) {
	m := newMeter(newChecker("none"), 0, 1)
	v := &viewer{m: m}
	connection := func(events int) {
		v.opened(&conn{})
		for i := 0; i < events; i++ {
			v.event(&event{data: []byte("a")}, v.since)
		}
		v.closed(io.EOF)
	}
	for _, events := range []int{0, 0, 1, 0, 0} {
		connection(events)
	}
	if n := len(m.wrong); n != 0 {
		t.Errorf("two in a row: %d problems", n)
	}
	connection(0)
	if f := m.wrong[wrongEmpty]; f == nil || f.Count != 1 {
		t.Errorf("three in a row: got %+v", f)
	}
}

// 204 is how a server says that there is no more to come.
func TestWrongIs204OnlyBeforeAnyEvent(t *testing.T) {
	for text, want := range map[string]string{
		"retry: 1\ndata: a\n\n":   "",
		"retry: 1\n\n: hello\n\n": "1 " + wrongNothing,
	} {
		text := text
		url := serve(t, func(n int, w http.ResponseWriter, r *http.Request) {
			if n > 0 {
				w.WriteHeader(http.StatusNoContent)
				return
			}
			begin(w, text)
		})
		code := 0
		if want != "" {
			code = 1
		}
		s := clientJSON(t, code, url)
		if got := problems(s); got != want || s.EndedBy204 != 1 {
			t.Errorf("%q: wrong is %q, want %q", text, got, want)
		}
	}
}

// However a stream falls short of -events, and whenever the run ends.
func TestWrongIsStreamShortOfEvents(t *testing.T) {
	t.Parallel()
	cut := func(w http.ResponseWriter) {
		begin(w, "data: 1\n\ndata: 2\n\n")
		panic(http.ErrAbortHandler)
	}
	for name, tt := range map[string]struct {
		handle func(n int, w http.ResponseWriter)
		args   []string
		wrong  string
	}{
		"asked, and closed": {
			handle: func(_ int, w http.ResponseWriter) { begin(w, "data: 1\n\ndata: 2\n\n") },
			args:   []string{"-d", "{}"}, wrong: wrongEvents,
		},
		"asked again and again": {
			handle: func(n int, w http.ResponseWriter) {
				begin(w, "retry: 1\ndata: 1\n\n")
				if n > 0 {
					begin(w, "data: 2\n\ndata: 3\n\ndata: 4\n\ndata: 5\n\n")
				}
			},
			args: []string{"-d", "{}", "-repeat", "-duration", "1s"}, wrong: wrongEvents,
		},
		"asked, and cut": {
			handle: func(_ int, w http.ResponseWriter) { cut(w) },
			args:   []string{"-d", "{}"}, wrong: wrongCut,
		},
		"cut, and not opened again": {
			handle: func(_ int, w http.ResponseWriter) { cut(w) },
			args:   []string{"-once"}, wrong: wrongEvents,
		},
		"waiting to come back": {
			handle: func(_ int, w http.ResponseWriter) { begin(w, "retry: 60000\ndata: 1\n\n") },
			args:   []string{"-duration", "1s"}, wrong: wrongEvents,
		},
		"ended by 204": {
			handle: func(n int, w http.ResponseWriter) {
				if n > 0 {
					w.WriteHeader(http.StatusNoContent)
					return
				}
				begin(w, "retry: 1\ndata: 1\n\n")
			},
			wrong: wrongEvents,
		},
		"repeated, and never enough": {
			handle: func(_ int, w http.ResponseWriter) { begin(w, "retry: 60000\ndata: 1\n\n") },
			args:   []string{"-repeat", "-duration", "1s"}, wrong: wrongEvents,
		},
	} {
		tt := tt
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := serve(t, func(n int, w http.ResponseWriter, r *http.Request) { tt.handle(n, w) })
			s := clientJSON(t, 1, append(tt.args, "-events", "5", url)...)
			if got, want := problems(s), "1 "+tt.wrong; got != want {
				t.Errorf("wrong is %q, want %q", got, want)
			}
		})
	}
}

// The summary has one line for each failure.
func TestWrongNamesEachFailureOnce(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		answers []int // after these, the last one again and again
		want    string
	}{
		{[]int{404}, wrongAnswer},
		{[]int{200, 404}, wrongAnswer},
	} {
		tt := tt
		url := serve(t, func(n int, w http.ResponseWriter, r *http.Request) {
			answer := tt.answers[min(n, len(tt.answers)-1)]
			if answer != http.StatusOK {
				w.WriteHeader(answer)
				return
			}
			begin(w, "retry: 1\ndata: a\n\n")
		})
		s := clientJSON(t, 1, "-duration", "2s", url)
		if len(s.Wrong) != 1 || s.Wrong[0].Problem != tt.want {
			t.Errorf("%v: wrong is %q, want %s", tt.answers, problems(s), tt.want)
		}
	}
}
