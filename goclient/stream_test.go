package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestStreamReconnectsWithIDUntil204(t *testing.T) {
	var mu sync.Mutex
	var ids []string
	url := serve(t, func(n int, w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		ids = append(ids, r.Header.Get("Last-Event-ID"))
		mu.Unlock()
		switch n {
		case 0:
			begin(w, "retry: 20\nid: 7\ndata: a\n\n")
		case 1:
			begin(w, "data: b\n\nid: 9\ndata: unfinished")
		case 2:
			begin(w, "id: 8\ndata: c\n\n")
		default:
			w.WriteHeader(http.StatusNoContent)
		}
	})
	start := time.Now()
	s := clientJSON(t, 0, "-url", url)
	if want := []string{"", "7", "7", "8"}; !reflect.DeepEqual(ids, want) {
		t.Errorf("got Last-Event-ID %q, want %q", ids, want)
	}
	if s.Reconnects != 2 || s.EndedBy204 != 1 || s.Events != 3 || s.Closes != 3 || s.Open != 0 {
		t.Errorf("got %+v", s.totals)
	}
	if d := time.Since(start); d > defaultRetry {
		t.Errorf("took %v: retry was not honoured", d)
	}
}

func TestStreamWaitsAsLongAsRetrySays(t *testing.T) {
	t.Parallel()
	var last atomic.Int64
	url := serve(t, func(n int, w http.ResponseWriter, r *http.Request) {
		if n == 1 {
			last.Store(time.Now().UnixNano() - last.Load())
			w.WriteHeader(http.StatusNoContent)
			return
		}
		last.Store(time.Now().UnixNano())
		begin(w, "retry: 400\n\n")
	})
	client(t, "-url", url)
	if got := time.Duration(last.Load()); got < 400*time.Millisecond {
		t.Errorf("came back after %v, before the 400 ms", got)
	}
}

func TestStreamOnceEndsAtFirstClose(t *testing.T) {
	var calls atomic.Int32
	url := serve(t, func(n int, w http.ResponseWriter, r *http.Request) {
		calls.Add(1)
		begin(w, "data: a\n\n")
	})
	s := clientJSON(t, 0, "-url", url, "-once", "-clients", "3")
	if calls.Load() != 3 || s.Events != 3 || s.Reconnects != 0 {
		t.Errorf("%d requests, %+v", calls.Load(), s.totals)
	}
}

// Whatever the body's framing, and wherever it is cut, the same events come out.
func TestStreamReadsEachFraming(t *testing.T) {
	const body = "id: 1\ndata: first\r\n\r\nid: 2\rdata: second\r\r: heartbeat\n\nid: 3\ndata: third\n\n"
	const head = "HTTP/1.1 200 OK\r\nContent-Type: Text/Event-Stream; charset=utf-8\r\n"
	chunked := func(size int) (pieces []string) {
		pieces = append(pieces, head+"Transfer-Encoding: chunked\r\n\r\n")
		for rest := body; rest != ""; {
			n := min(size, len(rest))
			pieces = append(pieces, fmt.Sprintf("%x;ext=1\r\n", n), rest[:n], "\r\n")
			rest = rest[n:]
		}
		return append(pieces, "0\r\n", "Trailer: x\r\n\r\n")
	}
	for name, pieces := range map[string][]string{
		"chunks of 1": chunked(1),
		"chunks of 3": chunked(3),
		"one chunk":   chunked(1000),
		"content length": {head, fmt.Sprintf("Content-Length: %d\r\n\r\n", len(body)), body,
			"junk"},
		"until close": {head, "\r\n", body[:13], body[13:15], body[15:]},
		"after early hints": {"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n", head, "\r\n",
			body},
		"HTTP/1.0":           {strings.Replace(head, "1.1", "1.0", 1), "\r\n", body},
		"head in two pieces": {head[:20], head[20:], "\r\n" + body},
	} {
		pieces := pieces
		url := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
			c, _, err := w.(http.Hijacker).Hijack()
			if err != nil {
				return
			}
			defer c.Close()
			for _, p := range pieces {
				io.WriteString(c, p)
				time.Sleep(100 * time.Microsecond) // likely another segment
			}
		})
		got, err := watchOnce(&target{url: mustURL(t, url)})
		want := `event("","1","first")! event("","2","second")! comment("heartbeat") ` +
			`event("","3","third")!`
		if got != want || err != io.EOF {
			t.Errorf("%s: got %s, %v", name, got, err)
		}
	}
}

func TestStreamReportsCut(t *testing.T) {
	for _, head := range []string{"Transfer-Encoding: chunked\r\n\r\n9\r\ndata: a\n\n\r\n",
		"Content-Length: 100\r\n\r\ndata: a\n\n"} {
		head := head
		url := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
			c, _, _ := w.(http.Hijacker).Hijack()
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"+head)
			c.Close()
		})
		if s := clientJSON(t, 0, "-url", url, "-once"); s.Cut != 1 || s.Closes != 1 ||
			s.Events != 1 {
			t.Errorf("%q: got %+v", head, s.totals)
		}
	}
}

// Each event must arrive before the server sends the next one.
func TestStreamDeliversEachGzipFlush(t *testing.T) {
	got := make(chan string)
	url := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Accept-Encoding") != "gzip" {
			t.Errorf("Accept-Encoding is %q", r.Header.Get("Accept-Encoding"))
		}
		w.Header().Set("Content-Encoding", "gzip")
		begin(w, "")
		z := gzip.NewWriter(w)
		for i := 0; i < 5; i++ {
			fmt.Fprintf(z, "id: %d\ndata: x\n\n", i)
			z.Flush()
			w.(http.Flusher).Flush()
			select {
			case id := <-got:
				if want := fmt.Sprint(i); id != want {
					t.Errorf("got %s, want %s", id, want)
				}
			case <-time.After(5 * time.Second):
				t.Errorf("event %d did not arrive", i)
			}
		}
	})
	r := &watcher{each: func(id string) { got <- id }}
	s := newStream(&target{url: mustURL(t, url), gzip: true}, r)
	s.ending.once = true
	s.keepOpen(context.Background())
}

func TestStreamRetriesWhereBrowserGivesUp(t *testing.T) {
	t.Parallel()
	answer := func(status int, header, value string) func(w http.ResponseWriter) {
		return func(w http.ResponseWriter) {
			if header != "" {
				w.Header().Set(header, value)
			}
			w.WriteHeader(status)
		}
	}
	for want, f := range map[string]func(http.ResponseWriter){
		"answered 503 Service Unavailable": answer(503, "", ""),
		"answered 404 Not Found":           answer(404, "", ""),
		"answered 302 Found":               answer(302, "", ""),
		`answered with Content-Type "text/html", not text`: answer(200, "Content-Type",
			"text/html"),
		`answered with Content-Type "text/event-streams", `: answer(200, "Content-Type",
			"text/event-streams"),
		"following redirects: more than 20": answer(307, "Location", "/again"),
	} {
		want, f := want, f
		t.Run(want, func(t *testing.T) {
			t.Parallel()
			var first atomic.Bool
			url := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/stream" && r.Header.Get("Last-Event-ID") == "" &&
					first.CompareAndSwap(false, true) {
					begin(w, "retry: 10\nid: 1\ndata: a\n\n")
					return
				}
				f(w)
			})
			s := clientJSON(t, 1, "-url", url, "-duration", "2s")
			if s.Errors < 2 || len(s.ErrorKinds) != 1 ||
				!strings.HasPrefix(sortedKeys(s.ErrorKinds)[0], want) {
				t.Errorf("got %v", s.ErrorKinds)
			}
			problem := wrongAnswer
			if strings.HasPrefix(want, "following redirects") {
				problem = wrongFailed
			}
			if len(s.Wrong) != 1 || s.Wrong[0].Problem != problem {
				t.Errorf("wrong is %s, want %s", problems(s), problem)
			}
		})
	}
}

// A server that ends a compressed stream completes it with a trailer.
func TestStreamReadsGzipMemberToItsEnd(t *testing.T) {
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	io.WriteString(z, "id: 1\ndata: a\n\n")
	z.Flush()
	io.WriteString(z, ": heartbeat\n\n")
	z.Flush()
	withoutEnd := zipped.Len()
	z.Close()

	whole := zipped.Bytes()
	for name, c := range map[string]struct {
		body    []byte
		chunked bool
		want    error
	}{
		"chunked":               {whole, true, io.EOF},
		"until close":           {whole, false, io.EOF},
		"no trailer":            {whole[:withoutEnd], true, io.ErrUnexpectedEOF},
		"part of the trailer":   {whole[:len(whole)-3], true, io.ErrUnexpectedEOF},
		"no trailer till close": {whole[:withoutEnd], false, io.ErrUnexpectedEOF},
	} {
		c := c
		url := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			if !c.chunked {
				w.Header().Set("Transfer-Encoding", "identity")
			}
			begin(w, "")
			for _, b := range c.body { // each in a chunk of its own
				w.Write([]byte{b})
				w.(http.Flusher).Flush()
			}
		})
		got, err := watchOnce(&target{url: mustURL(t, url), gzip: true})
		if got != `event("","1","a")! comment("heartbeat")` || err != c.want {
			t.Errorf("%s: got %s, %v, want %v", name, got, err, c.want)
		}
	}
}

func TestStreamKeepsTokenFromOtherHosts(t *testing.T) {
	final := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" || r.Header.Get("X-Key") != "" {
			t.Errorf("another host got %v", r.Header)
		}
		if r.RequestURI != "/stream?a=b&c=%20d" {
			t.Errorf("got %s", r.RequestURI)
		}
		begin(w, "data: a\n\n")
	})
	url := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		if user, pass, _ := r.BasicAuth(); user != "u" || pass != "p:w" ||
			r.Header.Get("X-Key") != "1" {
			t.Errorf("got %v", r.Header)
		}
		if r.URL.Path == "/stream" {
			http.Redirect(w, r, "/here", http.StatusTemporaryRedirect)
			return
		}
		http.Redirect(w, r, final+"?a=b&c=%20d", http.StatusFound)
	})
	url = strings.Replace(url, "http://", "http://u:p%3Aw@", 1)
	if s := clientJSON(t, 0, "-url", url, "-once", "-header", "X-Key: 1"); s.Events != 1 {
		t.Errorf("got %+v", s.totals)
	}
}

func TestStreamReadsHTTPS(t *testing.T) {
	ts := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		begin(w, "data: a\n\n")
	}))
	defer ts.Close()
	pool := x509.NewCertPool()
	pool.AddCert(ts.Certificate())
	tg := &target{url: mustURL(t, ts.URL+"/x"), tls: &tls.Config{RootCAs: pool}}
	if got, err := watchOnce(tg); got != `event("","","a")` || err != io.EOF {
		t.Errorf("got %s, %v", got, err)
	}
	tg.tls = nil
	ts.Config.ErrorLog = discardLog
	if _, err := watchOnce(tg); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("with an unknown certificate: got %v", err)
	}
}

func TestStreamSendsTokenAndHeaders(t *testing.T) {
	file := writeFile(t, "s3cret\n")
	url := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer s3cret" || r.Header.Get("X-A") != "b: c" {
			t.Errorf("got %v", r.Header)
		}
		begin(w, "")
	})
	client(t, "-url", url, "-once", "-token-file", file, "-header", "X-A: b: c")
}

const streamHead = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"

// A stalled stream is opened and never read, so a server can fill it; a slow one is read a little.
func TestStalledStreamIsNotRead(t *testing.T) {
	t.Parallel()
	blocked := make(chan bool, 1)
	url := rawServe(t, func(c *net.TCPConn) {
		c.SetWriteBuffer(4096)
		io.WriteString(c, streamHead)
		c.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
		_, err := c.Write(make([]byte, 16<<20))
		blocked <- err != nil
		c.SetLinger(0)
		c.Close()
	})
	s := clientJSON(t, 0, "-url", url, "-stalled", "1", "-duration", "1s")
	if !<-blocked {
		t.Error("the server could write 16 MiB to a stalled stream")
	}
	if s.OpenedOnce != 1 || s.UnreadEnded != 1 || s.Bytes != 0 {
		t.Errorf("got %+v", s.totals)
	}
}

// What follows the response head stays in the kernel.
func TestUnreadStreamTakesHeadOnly(t *testing.T) {
	url := rawServe(t, func(c *net.TCPConn) {
		io.WriteString(c, streamHead+"data: a\n\n")
		c.Close()
	})
	c, err := mustTarget(t, url).open(context.Background(), attempt{unread: true})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if n := c.br.Buffered(); n != 0 {
		t.Errorf("%d bytes of the body were read", n)
	}
	body, _ := io.ReadAll(c.Conn)
	if string(body) != "data: a\n\n" {
		t.Errorf("the connection has %q", body)
	}
}

func TestSlowStreamIsReadALittle(t *testing.T) {
	t.Parallel()
	url := rawServe(t, func(c *net.TCPConn) {
		io.WriteString(c, streamHead+"1234") // a second's worth, so the end is seen after two
		c.Close()
	})
	if s := clientJSON(t, 0, "-url", url, "-slow", "1"); s.UnreadEnded != 1 || s.Events != 0 {
		t.Errorf("got %+v", s.totals)
	}
}

func TestStreamsLeaveNothingBehind(t *testing.T) {
	before := runtime.NumGoroutine()
	url := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		begin(w, "data: a\n\n")
		<-r.Context().Done()
	})
	s := clientJSON(t, 0, "-url", url, "-clients", "60", "-stalled", "5", "-slow", "5",
		"-duration", "1s")
	if s.OpenedOnce != 60 || s.Events != 50 || s.Open != 60 {
		t.Errorf("got %+v", s.totals)
	}
	for i := 0; runtime.NumGoroutine() > before+10; i++ { // the server's own go a little later
		if i > 500 {
			t.Fatalf("%d goroutines, before %d", runtime.NumGoroutine(), before)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// serve starts a server that is closed with the test and gives the URL of its stream. n counts
// the requests from 0.
func serve(t *testing.T, handle func(n int, w http.ResponseWriter, r *http.Request)) string {
	t.Helper()
	var n atomic.Int32
	ts := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter,
		r *http.Request) {
		handle(int(n.Add(1))-1, w, r)
	}))
	ts.Config.ErrorLog = discardLog
	ts.Start()
	t.Cleanup(func() {
		ts.CloseClientConnections()
		ts.Close()
	})
	return ts.URL + "/stream"
}

// rawServe gives each connection to handle once its request has begun.
func rawServe(t *testing.T, handle func(c *net.TCPConn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Read(make([]byte, 4096))
			go handle(c.(*net.TCPConn))
		}
	}()
	return "http://" + l.Addr().String() + "/stream"
}

// begin sends the head of a stream and then body.
func begin(w http.ResponseWriter, body string) {
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-cache")
	io.WriteString(w, body)
	w.(http.Flusher).Flush()
}

// client runs the program, for at most 20 seconds.
func client(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	var out, errs bytes.Buffer
	code = dispatch(ctx, args, &out, &errs)
	if ctx.Err() != nil {
		t.Errorf("%q did not end", args)
	}
	return code, out.String(), errs.String()
}

func clientJSON(t *testing.T, wantCode int, args ...string) *summary {
	t.Helper()
	code, out, errs := client(t, append(args, "-json")...)
	if code != wantCode {
		t.Errorf("%q: exit status %d, want %d\n%s%s", args, code, wantCode, out, errs)
	}
	s := new(summary)
	if err := json.Unmarshal([]byte(out), s); err != nil {
		t.Fatalf("%q: %v in %s%s", args, err, out, errs)
	}
	return s
}

func problems(s *summary) string {
	var all []string
	for _, f := range s.Wrong {
		all = append(all, fmt.Sprintf("%d %s", f.Count, f.Problem))
	}
	return strings.Join(all, ", ")
}

// A watcher is an observer that writes down what it sees.
type watcher struct {
	recorder
	each func(id string)
	err  error
}

func (w *watcher) opened(*conn)     {}
func (w *watcher) failed(err error) { w.err = err }
func (w *watcher) closed(err error) { w.err = err }
func (w *watcher) received(int)     {}
func (w *watcher) event(ev *event, at time.Time) {
	w.recorder.event(ev)
	if w.each != nil {
		w.each(string(ev.id))
	}
}
func (w *watcher) comment(text []byte, at time.Time) { w.recorder.comment(text) }

func watchOnce(tg *target) (string, error) {
	w := new(watcher)
	s := newStream(tg, w)
	s.ending.once = true
	s.keepOpen(context.Background())
	return w.String(), w.err
}
