package main

import (
	"bufio"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"sse-server/e2e/tools"
)

const none = "" // no finding that is wrong

// The doctor names what holds a stream back or cuts it, which hop does it, and what to change.
func TestDoctorNamesCause(t *testing.T) {
	t.Parallel()
	held := "came late, .. later than on the direct stream .. the proxy does it"
	for _, tt := range []struct {
		name   string
		source source
		proxy  func(upstream string) http.HandlerFunc // nil for none
		direct bool
		args   []string
		want   []string // each wrong finding, with .. for anything, and what to change
	}{
		{name: "healthy", direct: true, proxy: pass},
		{name: "healthy, alone"},
		{name: "healthy, ids are no times", source: source{plainIDs: true}},
		{name: "healthy, own events", source: source{ownEvents: true}, direct: true, proxy: pass},
		{name: "healthy, own counts", source: source{ownEvents: true, plainIDs: true}, direct: true,
			proxy: pass},
		{name: "healthy, own counts and gzip", direct: true, proxy: pass,
			source: source{ownEvents: true, plainIDs: true, gzip: "flushed"}},
		{name: "buffering of own events", source: source{ownEvents: true, plainIDs: true},
			proxy: storing, direct: true, want: []string{"each connection has its own events, .. bundles; " +
				"the proxy does it => nginx: proxy_buffering off"}},
		{name: "own events, and gzip holds", source: source{ownEvents: true, plainIDs: true, gzip: "held"},
			direct: true, proxy: pass, want: []string{
				"asks for gzip .. events came, without it .. the server does it => flush the compressor"}},
		{name: "healthy gzip", source: source{gzip: "flushed"}, direct: true, proxy: pass},
		{name: "buffering", proxy: storing, direct: true,
			want: []string{held + " => nginx: proxy_buffering off"}},
		{name: "buffering, direct stream not known", proxy: storing, want: []string{
			"came late, .. by the times in their ids, .. bundles; run again with -direct => proxy_buffering"}},
		{name: "buffering, no ids", source: source{noIDs: true}, proxy: storing, direct: true,
			want: []string{held + " => proxy_buffering off"}},
		{name: "healthy, bundles of unknown ids", source: source{plainIDs: true}, proxy: storing},
		{name: "nothing passes", proxy: swallow, direct: true,
			want: []string{held + " => proxy_buffering off"}},
		{name: "no headers pass", proxy: mute, direct: true,
			want: []string{"no headers came in .. the proxy does it => proxy_buffering off"}},
		{name: "the server bundles", source: source{bundle: 8}, direct: true, proxy: pass,
			want: []string{"came late .. the server does it => flush after the headers"}},
		{name: "gzip holds", source: source{gzip: "held"}, want: []string{
			"asks for gzip .. came late .. run again with -direct => gzip off"}},
		{name: "the proxy's gzip holds", proxy: squeezing, direct: true,
			want: []string{"asks for gzip .. came late .. the proxy does it => gzip off"}},
		{name: "the server's gzip holds", source: source{gzip: "held"}, direct: true, proxy: pass,
			want: []string{"asks for gzip .. came late .. the server does it => flush the compressor"}},
		{name: "cut when silent", source: source{every: time.Hour}, proxy: cutting, direct: true,
			want: []string{"closed .. of silence: a limit on silence; the proxy does it => proxy_read_timeout"}},
		{name: "cut by age", source: source{lives: 600 * time.Millisecond, cuts: true}, direct: true,
			want: []string{"closed uncleanly .. a limit on the whole response; the server does it => no write timeout"}},
		{name: "healthy, ends after its events", source: source{lives: 600 * time.Millisecond},
			direct: true, proxy: pass},
		{name: "healthy, ends at once, alone", source: source{lives: time.Nanosecond}},
		{name: "full", source: source{full: true},
			want: []string{"says: full, 9 streams are open => what the server says"}},
		{name: "heartbeats get lost", source: source{beat: 100 * time.Millisecond},
			proxy:  noComments,
			direct: true, want: []string{"0 heartbeats came, on the direct stream => proxy_buffering"}},
		{name: "no direct stream", args: []string{"-direct", "http://127.0.0.2:1/", "-duration", "1h"},
			want: []string{"the direct stream does not open: nothing listens at 127.0.0.2:1: connection refused => -direct"}},
		{name: "no stream", source: source{status: 404},
			want: []string{"does not open: the answer is 404 => the path of the URL"}},
	} {
		tt := tt
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			direct := tt.source.serve(t)
			url := direct
			if tt.proxy != nil {
				handle := tt.proxy(direct)
				url = serve(t, func(_ int, w http.ResponseWriter, r *http.Request) { handle(w, r) })
			}
			if tt.direct {
				tt.args = append(tt.args, "-direct", direct)
			}
			expectFindings(t, tt.want, append(tt.args, "-url", url)...)
		})
	}
}

func TestDoctorNamesMissingHeaders(t *testing.T) {
	t.Parallel()
	url := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		w.Header().Set("Content-Length", "1000")
		io.WriteString(w, "data: a\n\n")
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	})
	expectOnQuietMachine(t, func() (out, problem string) {
		_, out, _ = client(t, "-doctor", "-duration", "1s", "-heartbeat", "100ms", "-url", url)
		for _, want := range []string{"Cache-Control: no-cache", "no Content-Length",
			"X-Accel-Buffering: no", "no heartbeat in", "headers ", "events 1,"} {
			if !strings.Contains(out, want) {
				return out, fmt.Sprintf("nothing about %q in\n%s", want, out)
			}
		}
		return out, ""
	})
}

// A comment may be as long as the largest event.
func TestDoctorCutsLongComment(t *testing.T) {
	t.Parallel()
	url := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		begin(w, "retry: 50\n: "+strings.Repeat("ä", 5000)+"\n\n")
	})
	expectOnQuietMachine(t, func() (out, problem string) {
		code, out, _ := client(t, "-doctor", "-duration", "1500ms", "-url", url)
		isCut := strings.Contains(out, "and says: ää") && strings.Contains(out, "ää …\n")
		if code != 1 || !isCut || len(out) > 4000 {
			return out, fmt.Sprintf("exit status %d\n%s", code, out)
		}
		if strings.Contains(out, "heartbeats come") {
			return out, "takes the comment of a rejected stream for a heartbeat\n" + out
		}
		return out, ""
	})
}

func TestDoctorCountsDroppedEvents(t *testing.T) {
	t.Parallel()
	url := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		begin(w, "data: 0123456789\n\ndata: 0123456789a\n\n")
		<-r.Context().Done()
	})
	expectOnQuietMachine(t, func() (out, problem string) {
		code, out, _ := client(t, "-doctor", "-duration", "1500ms", "-max-event-bytes", "10", "-url", url)
		for _, want := range []string{"plain: .. events 1, dropped 1, heartbeats",
			"WRONG  events of over 10 bytes (-max-event-bytes) were not read: 1 .. change -max-event-bytes"} {
			if code != 1 || !matches(out, want) {
				return out, fmt.Sprintf("exit status %d, nothing about %q in\n%s", code, want, out)
			}
		}
		return out, ""
	})
}

// The same with a real nginx, one server block for each case.
func TestDoctorNamesCauseInNginx(t *testing.T) {
	nginx, err := exec.LookPath("nginx")
	if err != nil {
		t.Skip("nginx is not installed")
	}
	t.Parallel()
	events := source{pad: 400}.serve(t)
	silent := source{every: time.Hour}.serve(t)
	cases := []struct{ direct, config, want string }{
		{events, "proxy_buffering on; proxy_ignore_headers X-Accel-Buffering;",
			"came late, .. the proxy does it (nginx) .. => nginx: proxy_buffering off"},
		{events, "proxy_http_version 1.1; proxy_ignore_headers X-Accel-Buffering; gzip on; " +
			"gzip_types text/event-stream; gzip_proxied any;", "asks for gzip => gzip off"},
		{silent, "proxy_http_version 1.1; proxy_read_timeout 1s;",
			"a limit on silence; the proxy does it (nginx) .. => nginx: proxy_read_timeout"},
		{events, "proxy_http_version 1.1;", none},
	}
	dir, config := t.TempDir(), ""
	var urls []string
	for _, c := range cases {
		addr := tools.FreeAddr(t)
		urls = append(urls, "http://"+addr+"/stream")
		config += fmt.Sprintf("server { listen %s; location / { proxy_pass %s; %s } }\n", addr,
			strings.TrimSuffix(c.direct, "/stream"), c.config)
	}
	startNginx(t, nginx, dir, "", config, urls)
	for i, c := range cases {
		i, c := i, c
		t.Run(c.config, func(t *testing.T) {
			t.Parallel()
			var want []string
			if c.want != none {
				want = []string{c.want}
			}
			expectFindings(t, want, "-url", urls[i], "-direct", c.direct, "-duration", "4s")
		})
	}
}

// expectFindings runs the doctor for 4 s and compares what it found wrong.
func expectFindings(t *testing.T, want []string, args ...string) {
	t.Helper()
	expectOnQuietMachine(t, func() (out, problem string) {
		all := append([]string{"-doctor", "-json", "-duration", "4s"}, args...)
		code, out, _ := client(t, all...)
		return out, findingsProblem(want, code, out)
	})
}

// expectOnQuietMachine runs the doctor until there is no problem. It repeats only what went wrong
// while the doctor itself said that this machine was busy.
func expectOnQuietMachine(t *testing.T, run func() (out, problem string)) {
	t.Helper()
	for n := 0; n < 6; n++ {
		out, problem := run()
		if problem == "" {
			return
		}
		if !strings.Contains(out, "this machine was busy") {
			t.Error(problem)
			return
		}
	}
	t.Skip("this machine is busy")
}

// findingsProblem tells what the doctor should not have found, or have found.
func findingsProblem(want []string, code int, out string) string {
	wantCode := 0
	if len(want) > 0 {
		wantCode = 1
	}
	if code != wantCode {
		return fmt.Sprintf("exit status %d, want %d\n%s", code, wantCode, out)
	}
	var report struct{ Findings []note }
	err := json.Unmarshal([]byte(out), &report)
	if err != nil {
		return fmt.Sprintf("%v in %s", err, out)
	}

	var wrong []string
	for _, n := range report.Findings {
		if strings.Contains(n.Text, "the proxy does it") && strings.Contains(n.Change, "the server:") {
			return fmt.Sprintf("blames the proxy and changes the server: %+v", n)
		}
		if strings.Contains(n.Text, "<nil>") {
			return fmt.Sprintf("shows Go's nil: %+v", n)
		}
		if n.Wrong {
			wrong = append(wrong, n.Text+" => "+n.Change)
		}
	}
	for _, w := range want {
		isIt := func(text string) bool { return matches(text, w) }
		if !slices.ContainsFunc(wrong, isIt) {
			return fmt.Sprintf("no finding %q in\n%s", w, out)
		}
	}
	if len(want) == 0 && len(wrong) > 0 {
		return fmt.Sprintf("found wrong: %q", wrong)
	}
	return ""
}

// matches says whether the parts of want, between which .. or => stand, come in text in this order.
func matches(text, want string) bool {
	for _, part := range strings.Split(strings.ReplaceAll(want, "=>", ".."), "..") {
		_, rest, ok := strings.Cut(text, strings.TrimSpace(part))
		if !ok {
			return false
		}
		text = rest
	}
	return true
}

// A source says how a server sends events: by default every 100 ms, with times as ids.
type source struct {
	every           time.Duration
	beat, lives     time.Duration
	cuts            bool // ends without the last chunk
	noIDs, plainIDs bool
	ownEvents       bool // each connection has its own
	bundle, pad     int
	gzip            string // flushed or held
	full            bool
	status          int
}

func (s source) serve(t *testing.T) string {
	if s.every == 0 {
		s.every = 100 * time.Millisecond
	}
	events := newEventLog()
	stop := make(chan struct{})
	t.Cleanup(func() { close(stop) })
	go s.fill(events, stop)

	return serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Accel-Buffering", "no")
		switch {
		case s.status != 0:
			w.WriteHeader(s.status)
		case s.full:
			begin(w, "retry: 50\n: full, 9 streams are open\n\n")
		case s.ownEvents:
			mine := newEventLog()
			go s.fill(mine, r.Context().Done())
			s.stream(w, r, mine, 0)
		default:
			s.stream(w, r, events, events.len()-1)
		}
	})
}

// An eventLog keeps the events of a server, for all its streams.
type eventLog struct {
	mu    sync.Mutex
	texts []string
	more  chan struct{} // closed when there is another event
}

func newEventLog() *eventLog { return &eventLog{more: make(chan struct{})} }

func (l *eventLog) len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.texts)
}

func (l *eventLog) add(text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.texts = append(l.texts, text)
	close(l.more)
	l.more = make(chan struct{})
}

// get gives event n, or a channel that is closed when there are more.
func (l *eventLog) get(n int) (text string, more chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if n < len(l.texts) {
		return l.texts[n], nil
	}
	return "", l.more
}

// fill adds an event at once and then one each s.every.
func (s source) fill(events *eventLog, stop <-chan struct{}) {
	tick := time.NewTicker(s.every)
	defer tick.Stop()
	for n := 0; ; n++ {
		events.add(s.event(n))
		select {
		case <-stop:
			return
		case <-tick.C:
		}
	}
}

func (s source) event(n int) string {
	id := fmt.Sprintf("id: %d\n", time.Now().UnixMilli())
	if s.plainIDs {
		id = fmt.Sprintf("id: %d\n", n)
	} else if s.noIDs {
		id = ""
	}
	return fmt.Sprintf("%sdata: event %d %s\n\n", id, n, strings.Repeat("x", s.pad))
}

// stream sends the events from number n on.
func (s source) stream(w http.ResponseWriter, r *http.Request, events *eventLog, n int) {
	out, flush := io.Writer(w), func() {}
	if s.gzip != "" && r.Header.Get("Accept-Encoding") == "gzip" {
		w.Header().Set("Content-Encoding", "gzip")
		z := gzip.NewWriter(w)
		out = z
		if s.gzip == "flushed" {
			flush = func() { z.Flush() }
		}
	}
	begin(w, "")
	io.WriteString(out, "retry: 50\n\n")

	var beats, over <-chan time.Time
	if s.beat > 0 {
		tick := time.NewTicker(s.beat)
		defer tick.Stop()
		beats = tick.C
	}
	if s.lives > 0 {
		over = time.After(s.lives)
	}
	first, held := max(n, 0), ""
	for n = first; ; {
		text, more := events.get(n)
		if text != "" {
			n++
		} else {
			select {
			case <-r.Context().Done():
				return
			case <-over:
				if s.cuts {
					panic(http.ErrAbortHandler)
				}
				return
			case <-beats:
				text = ": heartbeat\n\n"
			case <-more:
				continue
			}
		}
		held += text
		if n <= first+1 || s.bundle == 0 || n%s.bundle == 0 {
			io.WriteString(out, held)
			flush()
			w.(http.Flusher).Flush()
			held = ""
		}
	}
}

// pass is a proxy that does all right; the others are it with one fault.
func pass(upstream string) http.HandlerFunc {
	return proxy(upstream, func(w http.ResponseWriter, lines <-chan string, _ *http.Request) {
		for l := range lines {
			io.WriteString(w, l)
			w.(http.Flusher).Flush()
		}
	})
}

func storing(upstream string) http.HandlerFunc {
	return proxy(upstream, func(w http.ResponseWriter, lines <-chan string, _ *http.Request) {
		held, n := "", 0
		for l := range lines {
			if held += l; l == "\n" {
				n++
			}
			if n > 1 && n%8 == 0 {
				io.WriteString(w, held)
				w.(http.Flusher).Flush()
				held = ""
			}
		}
	})
}

func swallow(upstream string) http.HandlerFunc {
	return proxy(upstream, func(w http.ResponseWriter, lines <-chan string, _ *http.Request) {
		for range lines {
		}
	})
}

func mute(upstream string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
}

func noComments(upstream string) http.HandlerFunc {
	return proxy(upstream, func(w http.ResponseWriter, lines <-chan string, _ *http.Request) {
		for l := range lines {
			if !strings.HasPrefix(l, ":") {
				io.WriteString(w, l)
				w.(http.Flusher).Flush()
			}
		}
	})
}

func squeezing(upstream string) http.HandlerFunc {
	plain := pass(upstream)
	zipped := proxy(upstream, func(w http.ResponseWriter, lines <-chan string, _ *http.Request) {
		z := gzip.NewWriter(w)
		for l := range lines {
			io.WriteString(z, l)
		}
	})
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Accept-Encoding") != "gzip" {
			plain(w, r)
			return
		}
		w.Header().Set("Content-Encoding", "gzip")
		zipped(w, r)
	}
}

func cutting(upstream string) http.HandlerFunc {
	return proxy(upstream, func(w http.ResponseWriter, lines <-chan string, _ *http.Request) {
		for {
			select {
			case l, ok := <-lines:
				if !ok {
					return
				}
				io.WriteString(w, l)
				w.(http.Flusher).Flush()
			case <-time.After(500 * time.Millisecond):
				panic(http.ErrAbortHandler)
			}
		}
	})
}

// proxy gives forward the lines that upstream sends.
func proxy(upstream string, forward func(http.ResponseWriter, <-chan string,
	*http.Request)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		req, _ := http.NewRequestWithContext(r.Context(), "GET", upstream, nil)
		for _, h := range []string{"Last-Event-ID", "Accept-Encoding"} {
			req.Header.Set(h, r.Header.Get(h))
		}
		resp, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			return
		}
		defer resp.Body.Close()
		if enc := resp.Header.Get("Content-Encoding"); enc != "" {
			w.Header().Set("Content-Encoding", enc)
			begin(w, "")
			copyFlushed(w, resp.Body)
			return
		}
		begin(w, "")
		lines := make(chan string, 1000) // more than any test sends
		go func() {
			defer close(lines)
			for b := bufio.NewReader(resp.Body); ; {
				l, err := b.ReadString('\n')
				if err != nil {
					return
				}
				lines <- l
			}
		}()
		forward(w, lines, r)
	}
}

func copyFlushed(w http.ResponseWriter, r io.Reader) {
	buf := make([]byte, 4096)
	for {
		n, err := r.Read(buf)
		w.Write(buf[:n])
		w.(http.Flusher).Flush()
		if err != nil {
			return
		}
	}
}

// startNginx waits until the last of the URLs answers.
func startNginx(t *testing.T, nginx, dir, modules, servers string, urls []string) {
	t.Helper()
	config := modules + "daemon off; master_process off; error_log stderr; pid " + dir + "/pid;\n" +
		"events { worker_connections 256; }\nhttp { access_log off;\n"
	for _, m := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		config += fmt.Sprintf("%s_temp_path %s/%s;\n", m, dir, m)
	}
	file := writeFile(t, config+servers+"}\n")
	startProcess(t, mustURL(t, urls[len(urls)-1]).Host,
		exec.Command(nginx, "-p", dir, "-c", file, "-e", filepath.Join(dir, "error.log")))
}

// startProcess waits until it listens at addr.
func startProcess(t *testing.T, addr string, cmd *exec.Cmd) {
	t.Helper()
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = log, log // a file: Wait would wait for all who hold a pipe
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // the workers too
		cmd.Wait()
		log.Close()
	})
	for i := 0; ; i++ {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
			return
		}
		if i > 1500 {
			text, _ := os.ReadFile(log.Name())
			t.Fatalf("%s did not start: %v\n%s", cmd.Args[0], err, text)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
