package e2e

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"sse-server/e2e/proxies"
)

// httpClients read the stream with the settings that they come with.
var httpClients = []struct {
	name, userAgent string
	encoding        string   // that it gets from the server directly
	program         string   // "": Go's client, in the test itself
	args            []string // before the URL
	last            []string // after the URL
}{
	{name: "requests of Python", userAgent: "python-requests/", encoding: "identity",
		program: "python3", args: []string{"e2e/testdata/readers/reader.py"}},
	{name: "Net::HTTP of Ruby", userAgent: "Ruby", encoding: "identity",
		program: "ruby", args: []string{"e2e/testdata/readers/reader.rb"}},
	{name: "curl", userAgent: "curl/", encoding: "identity",
		program: "curl", args: []string{"-sSN"}},
	{name: "http of Node", userAgent: "", encoding: "identity",
		program: "node", args: []string{"e2e/testdata/readers/reader.js"}},
	{name: "http of Node as a browser", userAgent: "Mozilla/5.0", encoding: "gzip",
		program: "node", args: []string{"e2e/testdata/readers/reader.js"}, last: []string{"Mozilla/5.0"}},
	{name: "net/http of Go", userAgent: "Go-http-client/", encoding: "identity"},
}

// ways lead to a server: each returns the address at which clients reach it.
var ways = []struct {
	name  string
	start func(t *testing.T, s *server) (addr string)
}{
	{"direct", func(_ *testing.T, s *server) string { return s.addr }},
	{"varnish", startVarnish},
}

// startVarnish runs Varnish as it is without any setting.
func startVarnish(t *testing.T, s *server) (addr string) {
	t.Helper()
	place := proxyPlace(t, s.addr)
	for _, x := range proxies.Bare {
		if x.Name == "Varnish" {
			needProxy(t, x)
			startProxy(t, x, place)
		}
	}
	return place.Addr
}

// A clientRun is what a client has shown of its stream.
type clientRun struct {
	name  string
	ended chan error // has room for the one error, or nil, with which the client ended
	mu    sync.Mutex // guards following
	came  map[int64]time.Time
	beats int
}

// shownLine is what a client prints, or a line of the stream itself.
var shownLine = regexp.MustCompile(`^(?:(\d+) )?(?:id: (\d+)|: heartbeat)$`)

// note notes what a client shows, up to the end.
func (r *clientRun) note(shown io.Reader) error {
	lines := bufio.NewScanner(shown)
	for lines.Scan() {
		now := time.Now()
		m := shownLine.FindStringSubmatch(lines.Text())
		if m == nil {
			continue
		}
		if m[1] != "" {
			printed, _ := strconv.ParseInt(m[1], 10, 64)
			now = time.UnixMilli(printed)
		}

		r.mu.Lock()
		if m[2] == "" {
			r.beats++
		} else {
			id, _ := strconv.ParseInt(m[2], 10, 64)
			r.came[id] = now
		}
		r.mu.Unlock()
	}
	return lines.Err()
}

func (r *clientRun) has(id int64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return !r.came[id].IsZero()
}

func (r *clientRun) heartbeats() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.beats
}

// delays returns how long after they were made these events came, in order.
func (r *clientRun) delays(ids []int64) (all spread) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, id := range ids {
		all = append(all, r.came[id].Sub(time.UnixMilli(id)))
	}
	slices.Sort(all)
	return all
}

// runGo reads with Go's client.
func (r *clientRun) runGo(url string) error {
	resp, err := http.Get(url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return r.note(resp.Body)
}

// runProgram reads with a program.
func (r *clientRun) runProgram(cmd *exec.Cmd) error {
	var said bytes.Buffer
	cmd.Stderr = &said
	shown, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	err = cmd.Start()
	if err != nil {
		return err
	}

	r.note(shown)
	err = cmd.Wait()
	if err != nil || said.Len() > 0 {
		return fmt.Errorf("%v: %s", err, said.Bytes())
	}
	return nil
}

// pythonWithRequests is a Python that has the module requests; "" if there is none.
func pythonWithRequests() string {
	for _, python := range []string{"/usr/bin/python3", "python3"} {
		if exec.Command(python, "-c", "import requests").Run() == nil {
			return python
		}
	}
	return ""
}

// startReading starts the clients that are installed. They end with the test.
func startReading(t *testing.T, url string) (all []*clientRun) {
	t.Helper()
	for _, c := range httpClients {
		c := c
		t.Run(c.name, func(sub *testing.T) { // so that it can be skipped
			r := &clientRun{name: c.name, ended: make(chan error, 1), came: map[int64]time.Time{}}
			if c.program == "" {
				all = append(all, r)
				go func() { r.ended <- r.runGo(url) }()
				return
			}

			need(sub, c.program)
			program := c.program
			if program == "python3" {
				program = pythonWithRequests()
			}
			if program == "" {
				sub.Skip("python3 has no module requests")
			}
			all = append(all, r)
			cmd := exec.Command(program, append(append(c.args, url), c.last...)...)
			go func() { r.ended <- r.runProgram(cmd) }()
			t.Cleanup(func() {
				if cmd.Process != nil {
					cmd.Process.Kill()
				}
			})
		})
	}
	return all
}

// mustAll waits until something is true of each client.
func mustAll(t *testing.T, all []*clientRun, what string, ok func(r *clientRun) bool) {
	t.Helper()
	var lack []string
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		lack = nil
		for _, r := range all {
			if !ok(r) {
				lack = append(lack, r.name)
			}
		}
		if lack == nil {
			return
		}
	}
	t.Fatalf("after 20 s these have not got %s: %s", what, strings.Join(lack, ", "))
}

// Each HTTP client gets each event before the next one is sent, and sees an orderly end.
func TestReadersGetEachEventWhenItIsSent(t *testing.T) {
	t.Parallel()
	for _, w := range ways {
		w := w
		t.Run(w.name, func(t *testing.T) {
			t.Parallel()
			p := startServer(t, "-interval", "0", "-heartbeat", "400ms")
			p.waitForSnapshot(t)
			addr := w.start(t, &p.server)
			first := p.debug(t).LastID
			all := startReading(t, "http://"+addr+"/dashboard/stream")
			mustAll(t, all, "the first event", func(r *clientRun) bool { return r.has(first) })
			mustBeEncoded(t, &p.server, len(all), w.name == "direct")

			// A client that holds an event back gets no more that could push it out, only heartbeats.
			var ids []int64
			for len(ids) < 10 {
				id := p.trigger(t).ID
				ids = append(ids, id)
				mustAll(t, all, fmt.Sprint("event ", len(ids)), func(r *clientRun) bool {
					return r.has(id)
				})
			}
			mustAll(t, all, "two heartbeats", func(r *clientRun) bool { return r.heartbeats() >= 2 })
			for _, r := range all {
				delays := r.delays(ids)
				t.Logf("%s, %s: events came after %v", r.name, w.name, delays)
				if delays[len(delays)/2] > time.Second {
					t.Errorf("%s gets events after %v", r.name, delays)
				}
			}

			p.stop(t)
			mustEndInOrder(t, all)
		})
	}
}

// mustBeEncoded checks which streams are compressed: a browser's that comes directly, and no other.
func mustBeEncoded(t *testing.T, s *server, clients int, direct bool) {
	t.Helper()
	found := 0
	for _, stream := range s.debug(t).Streams {
		for _, c := range httpClients {
			isClient := strings.HasPrefix(stream.UserAgent, c.userAgent)
			if c.userAgent == "" {
				isClient = stream.UserAgent == ""
			}
			want := "identity"
			if direct {
				want = c.encoding
			}
			if !isClient {
				continue
			}
			found++
			if stream.Encoding != want {
				t.Errorf("the stream of %s has the encoding %q, want %q", c.name, stream.Encoding, want)
			}
		}
	}
	if found != clients {
		t.Errorf("/dashboard/debug shows %d of %d clients", found, clients)
	}
}

func mustEndInOrder(t *testing.T, all []*clientRun) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for _, r := range all {
		select {
		case err := <-r.ended:
			if err != nil {
				t.Errorf("%s ended with %v", r.name, err)
			}
		case <-deadline:
			t.Fatalf("20 s after the server's end %s still reads", r.name)
		}
	}
}

// HEAD gets the stream's head and its end at once.
func TestReadersHeadGetsNoStream(t *testing.T) {
	t.Parallel()
	for _, w := range ways {
		w := w
		t.Run(w.name, func(t *testing.T) {
			t.Parallel()
			p := startServer(t)
			p.waitForSnapshot(t)
			url := "http://" + w.start(t, &p.server) + "/dashboard/stream"
			mustHead(t, url)
			if opened := p.debug(t).Opened; w.name == "direct" && opened > 0 {
				t.Errorf("HEAD opened %d streams", opened)
			}
			eventually(t, "no stream is open", func() bool { return p.debug(t).Open == 0 })
		})
	}
}

// mustHead asks for a head with Go's client and, where it is installed, with curl.
func mustHead(t *testing.T, url string) {
	t.Helper()
	client := http.Client{Timeout: 20 * time.Second}
	resp, err := client.Head(url)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	const eventStream = "text/event-stream"
	if kind := resp.Header.Get("Content-Type"); resp.StatusCode != 200 || kind != eventStream {
		t.Errorf("HEAD returns %s, %s", resp.Status, kind)
	}

	need(t, "curl")
	out, err := exec.Command("curl", "-sSI", "-m", "20", url).CombinedOutput()
	isHead := strings.HasPrefix(string(out), "HTTP/1.1 200 OK\r\n") &&
		strings.Contains(string(out), "\r\nContent-Type: "+eventStream+"\r\n") &&
		strings.HasSuffix(string(out), "\r\n\r\n")
	if err != nil || !isHead {
		t.Errorf("curl -I prints %q, %v", out, err)
	}
}

// gzip(1) accepts the whole body of a stream that the server ended.
func TestReadersGzipAcceptsAnEndedStream(t *testing.T) {
	t.Parallel()
	need(t, "curl", "gzip")
	p := startServer(t, "-interval", "0", "-heartbeat", "400ms")
	p.waitForSnapshot(t)
	file := t.TempDir() + "/body.gz"
	curl := exec.Command("curl", "-sSN", "-A", "Mozilla/5.0", "-H", "Accept-Encoding: gzip",
		"-o", file, "http://"+p.addr+"/dashboard/stream")
	startLogged(t, curl, "curl")
	eventually(t, "the stream is open", func() bool { return p.debug(t).Open == 1 })
	var last int64
	for i := 0; i < 10; i++ {
		last = p.trigger(t).ID
	}
	eventually(t, "all events are sent", func() bool {
		d := p.debug(t)
		return len(d.Streams) == 1 && d.Streams[0].Events+d.Skipped == 11
	})

	p.stop(t)
	if err := curl.Wait(); err != nil {
		t.Errorf("curl ended with %v", err)
	}
	if out, err := exec.Command("gzip", "-t", file).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("gzip -t says %q, %v", out, err)
	}
	text, err := exec.Command("gzip", "-dc", file).Output()
	if err != nil || !bytes.Contains(text, []byte(fmt.Sprintf("id: %d\n", last))) {
		info, _ := os.Stat(file)
		t.Errorf("event %d is not in the %d bytes, %v", last, info.Size(), err)
	}
}
