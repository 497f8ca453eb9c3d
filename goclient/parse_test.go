package main

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"
)

// The cases of https://html.spec.whatwg.org/multipage/server-sent-events.html, and what it implies.
func TestParserFollowsStandard(t *testing.T) {
	for _, tt := range []struct{ name, in, want, lastID string }{
		{"the standard's first example",
			"data: This is the first message.\n\ndata: This is the second message, it\n" +
				"data: has two lines.\n\ndata: This is the third message.\n\n",
			`event("","","This is the first message.") ` +
				`event("","","This is the second message, it\nhas two lines.") ` +
				`event("","","This is the third message.")`, ""},
		{"named events", "event: add\ndata: 73857293\n\nevent: remove\ndata: 2153\n\n",
			`event("add","","73857293") event("remove","","2153")`, ""},
		{"a name is for one event", "event: add\ndata: 1\n\ndata: 2\n\n",
			`event("add","","1") event("","","2")`, ""},
		{"a name without data is forgotten", "event: add\n\ndata: 2\n\n", `event("","","2")`, ""},
		{"stock prices", "data: YHOO\ndata: +2\ndata: 10\n\n", `event("","","YHOO\n+2\n10")`, ""},
		{"four blocks", ": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\n" +
			"data:  third event", `comment("test stream") event("","1","first event")! ` +
			`event("","","second event")!`, ""},
		{"third block finished", "data:  third event\n\n", `event("",""," third event")`, ""},
		{"empty data", "data\n\ndata\ndata\n\ndata:", `event("","","") event("","","\n")`, ""},
		{"the space after the colon", "data:test\n\ndata: test\n\n",
			`event("","","test") event("","","test")`, ""},
		{"only one space goes", "data:   x\n\n", `event("","","  x")`, ""},
		{"a tab stays", "data:\tx\n\n", `event("","","\tx")`, ""},
		{"an unfinished event is dropped", "id: 1\ndata: a\n\nid: 2\ndata: b\n",
			`event("","1","a")!`, "1"},
		{"an unfinished line is dropped", "data: a\n\ndata: b", `event("","","a")`, ""},
		{"CR", "data: a\rdata: b\r\rdata: c\r\r", `event("","","a\nb") event("","","c")`, ""},
		{"CRLF", "data: a\r\ndata: b\r\n\r\n", `event("","","a\nb")`, ""},
		{"mixed line ends", "data: a\r\n\rdata: b\n\r\ndata: c\r\n\n",
			`event("","","a") event("","","b") event("","","c")`, ""},
		{"LF CR is two line ends", "data: a\n\rdata: b\n\n", `event("","","a") event("","","b")`,
			""},
		{"a BOM at the start", "\xef\xbb\xbfdata: a\n\n", `event("","","a")`, ""},
		{"a BOM elsewhere", "\n\xef\xbb\xbfdata: a\n\ndata: \xef\xbb\xbfb\n\n",
			`event("","","` + "\ufeff" + `b")`, ""},
		{"one BOM only", "\xef\xbb\xbf\xef\xbb\xbfdata: a\n\n", ``, ""},
		{"the id stays", "id: 1\ndata: a\n\ndata: b\n\n", `event("","1","a")! event("","1","b")`,
			"1"},
		{"an id without data counts", "id: 7\n\ndata: b\n\n", `event("","7","b")`, "7"},
		{"an empty id resets", "id: 7\ndata: a\n\nid:\ndata: b\n\n",
			`event("","7","a")! event("","","b")!`, ""},
		{"an id with NUL is ignored", "id: 7\n\nid: 8\x00\ndata: a\n\n", `event("","7","a")`, "7"},
		{"retry", "retry: 1500\n", `retry(1.5s)`, ""},
		{"retry with leading zeros", "retry:0020\n", `retry(20ms)`, ""},
		{"retry needs digits only", "retry: 1s\nretry: -1\nretry: +1\nretry: 1.5\nretry:\nretry\n" +
			"retry:  3\nretry: 4 \n", ``, ""},
		{"retry beyond reason", "retry: 99999999999999999999999\n", ``, ""},
		{"comments", ":\n: heartbeat\n\n:x:y\ndata: a\n:\n\n",
			`comment("") comment("heartbeat") comment("x:y") comment("") event("","","a")`, ""},
		{"unknown fields", "foo: bar\nDATA: a\ndata : b\n data: c\ndata: d\n\n",
			`event("","","d")`, ""},
		{"colons in data", "data: a:b: c\n\n", `event("","","a:b: c")`, ""},
		{"empty lines", "\n\n\r\r\n\n", ``, ""},
		{"data of exactly the limit", "data: " + strings.Repeat("x", 64) + "\n\n",
			`event("","","` + strings.Repeat("x", 64) + `")`, ""},
		{"data of a byte more", "data: " + strings.Repeat("x", 65) + "\n\ndata: b\n\n",
			`dropped event("","","b")`, ""},
		{"lines of exactly the limit", "data: " + strings.Repeat("x", 31) + "\ndata: " +
			strings.Repeat("y", 32) + "\n\n", `event("","","` + strings.Repeat("x", 31) + `\n` +
			strings.Repeat("y", 32) + `")`, ""},
		{"a line over the limit", "id: 3\ndata: " + strings.Repeat("x", 80) + "\n\ndata: b\n\n",
			`dropped event("","3","b")`, "3"},
		{"an event over the limit", "data: " + strings.Repeat("x", 40) + "\ndata: " +
			strings.Repeat("y", 40) + "\ndata: z\n\ndata: b\n\n", `dropped event("","","b")`, ""},
		{"a comment over the limit", ":" + strings.Repeat("x", 80) + "\ndata: b\n\n",
			`event("","","b")`, ""},
	} {
		for _, cut := range []int{len(tt.in), 1, 2, 3} {
			got, lastID := parse(tt.in, cut)
			if got != tt.want || lastID != tt.lastID {
				t.Errorf("%s, in pieces of %d:\ngot  %s, last id %q\nwant %s, last id %q",
					tt.name, cut, got, lastID, tt.want, tt.lastID)
			}
		}
	}
}

func TestParserKeepsIDOverReconnect(t *testing.T) {
	r := new(recorder)
	p := &parser{h: r, limit: 64}
	p.start()
	p.feed([]byte("id: 5\ndata: a\n\nid: 6\nevent: half\ndata: lost"))
	p.start()
	p.feed([]byte("\xef\xbb\xbfdata: b\n\n"))
	if got, want := r.String(), `event("","5","a")! event("","5","b")`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestParserAllocatesNothingPerEvent(t *testing.T) {
	p := &parser{h: discard{}, limit: defaultMaxEvent}
	p.start()
	in := []byte("id: 1795464000123\ndata: " + strings.Repeat("x", 600) + "\n\n: heartbeat\n\n")
	if n := testing.AllocsPerRun(100, func() { p.feed(in[:100]); p.feed(in[100:]) }); n > 0 {
		t.Errorf("%v allocations an event", n)
	}
}

func FuzzParser(f *testing.F) {
	f.Add([]byte("\xef\xbb\xbfid: 1\r\ndata: a\r\rdata\n:c\nretry: 5\n\n"), []byte{1, 2})
	f.Add([]byte("data: "+strings.Repeat("x", 100)+"\n\nid\n\n"), []byte{60, 3})
	f.Fuzz(func(t *testing.T, in, cuts []byte) {
		whole, id := parse(string(in), len(in))
		r := new(recorder)
		p := &parser{h: r, limit: 64}
		p.start()
		for rest, i := in, 0; len(rest) > 0; i++ {
			n := 1
			if len(cuts) > 0 {
				n = min(int(cuts[i%len(cuts)])+1, len(rest))
			}
			piece := bytes.Clone(rest[:n])
			p.feed(piece)
			for j := range piece {
				piece[j] = '!' // the parser must not have kept it
			}
			rest = rest[n:]
		}
		if got := r.String(); got != whole || string(p.lastID) != id {
			t.Errorf("%q cut by %v:\ngot  %s\nwant %s", in, cuts, got, whole)
		}
	})
}

// parse feeds in to a parser with a limit of 64 bytes, n bytes at a time.
func parse(in string, n int) (calls, lastID string) {
	r := new(recorder)
	p := &parser{h: r, limit: 64}
	p.start()
	for len(in) > 0 {
		n = min(n, len(in))
		p.feed([]byte(in[:n]))
		in = in[n:]
	}
	return r.String(), string(p.lastID)
}

// A recorder writes down what a parser says.
type recorder struct{ calls []string }

func (r *recorder) add(format string, args ...any) {
	r.calls = append(r.calls, fmt.Sprintf(format, args...))
}
func (r *recorder) String() string { return strings.Join(r.calls, " ") }
func (r *recorder) event(ev *event) {
	mark := ""
	if ev.hasID {
		mark = "!"
	}
	r.add(`event("%s","%s",%s)%s`, ev.name, ev.id, quote(ev.data), mark)
}
func (r *recorder) comment(text []byte)   { r.add("comment(%q)", text) }
func (r *recorder) retry(d time.Duration) { r.add("retry(%v)", d) }
func (r *recorder) dropped()              { r.add("dropped") }

func quote(b []byte) string {
	return `"` + strings.NewReplacer("\n", `\n`, "\t", `\t`).Replace(string(b)) + `"`
}

type discard struct{}

func (discard) event(*event)        {}
func (discard) comment([]byte)      {}
func (discard) retry(time.Duration) {}
func (discard) dropped()            {}
