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
			wrong: "1 " + wrongAnswer + ", 1 " + wrongFailed,
		},
		"a page to a slow stream": {
			handle: func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "<p>") },
			args:   []string{"-slow", "1"}, code: 1,
			wrong: "1 " + wrongAnswer + ", 1 " + wrongFailed,
		},
		"closed at once each time": {
			handle: closing("retry: 1\n\n: hello\n\n"), args: []string{"-duration", "2s"}, code: 1,
			wrong: "1 " + wrongEmpty,
		},
		"closed at once, but once only": {
			handle: closing(": hello\n\n"), args: []string{"-once"},
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
