package e2e

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// watching is what a page, or a program for Node, does: it tells the test what comes.
const watching = `const tell = (what) => fetch("TEST/?" + what, {method: "POST"});
const source = new EventSource("SERVER/dashboard/stream");
source.onmessage = (event) => tell("id=" + event.lastEventId + "&length=" + event.data.length);
source.onerror = () => tell("error=" + source.readyState);
`

// reading does that with Node's fetch, and tells of heartbeats too.
const reading = `const tell = (what) => fetch("TEST/?" + what, {method: "POST"});
const answer = await fetch("SERVER/dashboard/stream");
let rest = "", id;
for await (const part of answer.body.pipeThrough(new TextDecoderStream())) {
	const lines = (rest + part).split("\n");
	rest = lines.pop();
	for (const line of lines) {
		if (line.startsWith("id: ")) id = line.slice(4);
		if (line.startsWith("data: ")) tell("id=" + id + "&length=" + (line.length - 6));
		if (line === ": heartbeat") tell("heartbeat");
	}
}
tell("error=ended");
`

// gzipClients are browsers and programs that ask for gzip.
var gzipClients = []struct {
	name, userAgent string
	program         string
	args            []string // DIR is a directory of its own, URL a page that watches
	script          string   // for Node
	npm             string   // a package that it needs
	beats           int      // that it shows at least
}{
	{name: "Firefox", userAgent: "Firefox/", program: "firefox-esr",
		args: []string{"--headless", "--no-remote", "--profile", "DIR", "URL"}},
	{name: "Chromium", userAgent: "Chrome/", program: "chromium",
		args: []string{"--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
			"--user-data-dir=DIR", "URL"}},
	{name: "fetch of Node", userAgent: "node", program: "node", script: reading, beats: 4},
	{name: "EventSource of Node", userAgent: "node", program: "node", script: watching,
		args: []string{"--experimental-eventsource"}},
	{name: "eventsource of npm", userAgent: "node", program: "node", npm: "eventsource@3",
		script: "import {EventSource} from 'eventsource';\n" + watching},
	{name: "undici of npm", userAgent: "undici", program: "node", npm: "undici@6",
		script: "import {EventSource, fetch} from 'undici';\n" + watching},
}

// Each asks for gzip, gets each snapshot as soon as a plain stream does, and stays connected.
func TestClientsReadTheCompressedStream(t *testing.T) {
	t.Parallel()
	for _, c := range gzipClients {
		c := c
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			need(t, c.program)
			told := make(chan *http.Request, 1000)
			var page []byte
			listen := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Method == "POST" {
					told <- r
					return
				}
				w.Header().Set("Content-Type", "text/html")
				w.Write(page)
			})
			test := httptest.NewUnstartedServer(listen)
			defer test.Close()
			origin := "http://" + test.Listener.Addr().String()
			p := startServer(t, "-interval", "200ms", "-heartbeat", "700ms", "-origins", origin)
			dir := t.TempDir()
			fill := strings.NewReplacer("TEST", origin, "SERVER", "http://"+p.addr,
				"DIR", dir, "URL", origin+"/")
			page = []byte("<!doctype html><title>x</title><script>" + fill.Replace(watching) + "</script>")
			test.Start()
			args := strings.Split(fill.Replace(strings.Join(c.args, "\n")), "\n")
			if c.script != "" {
				write(t, dir+"/client.mjs", fill.Replace(c.script))
				args = append(c.args, dir+"/client.mjs")
				if err := exec.Command(c.program, append(c.args, "-e", "0")...).Run(); err != nil {
					t.Skipf("the %s here has no %v", c.program, c.args)
				}
			}
			if c.npm != "" {
				install(t, dir, c.npm)
			}
			launch(t, dir, c.program, args)
			p.mustShowAll(t, told, c.userAgent, c.beats)
		})
	}
}

// install puts a package of npm into dir.
func install(t testing.TB, dir, name string) {
	t.Helper()
	need(t, "npm")
	cmd := exec.Command("npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", name)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Skipf("npm cannot install %s: %v: %.200q", name, err, out)
	}
}

// launch runs a program, and all that it starts, until the test ends.
func launch(t testing.TB, dir, program string, args []string) {
	t.Helper()
	var out bytes.Buffer
	cmd := exec.Command(program, args...)
	cmd.Env, cmd.Dir = append(os.Environ(), "HOME="+dir), dir
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		cmd.Wait()
		if t.Failed() {
			t.Logf("%s said\n%s", program, out.Bytes())
		}
	})
}

// mustShowAll checks for some seconds what a client shows against a plain stream.
func (s *server) mustShowAll(t testing.TB, told <-chan *http.Request, userAgent string, beats int) {
	t.Helper()
	next := func(d time.Duration) (id int64, length int) {
		t.Helper()
		for {
			select {
			case r := <-told:
				q := r.URL.Query()
				if q.Has("heartbeat") {
					beats--
					continue
				}
				id, err := strconv.ParseInt(q.Get("id"), 10, 64)
				if err != nil {
					t.Fatalf("the client shows %v", q)
				}
				length, _ = strconv.Atoi(q.Get("length"))
				return id, length
			case <-time.After(d):
				t.Fatalf("the client shows nothing for %v", d)
			}
		}
	}
	next(30 * time.Second) // it has started
	plain := s.stream(t)
	lengths, last, late := map[int64]int{}, int64(0), time.Duration(0)
	for start := time.Now(); time.Since(start) < 5*time.Second; {
		id, length := next(2 * time.Second)
		lengths[id], last, late = length, max(id, last), max(late, time.Since(time.UnixMilli(id)))
	}
	count := 0
	for e := plain.event(t); e.id < last; e = plain.event(t) {
		count++
		// The first may have come before.
		if n, ok := lengths[e.id]; count > 1 && (!ok || n != len(e.data)) {
			t.Errorf("snapshot %d has %d characters, want %d", e.id, n, len(e.data))
		}
	}
	t.Logf("%d snapshots, the latest after %v", count, late)
	if count < 20 || beats > 0 || late > 2*time.Second {
		t.Errorf("%d snapshots came, the latest after %v; %d heartbeats lack", count, late, beats)
	}
	d := s.debug(t)
	for _, c := range d.Streams {
		isClient := c.Encoding == "gzip" && strings.Contains(c.UserAgent, userAgent)
		if isClient && d.Opened == 2 && d.Open == 2 {
			return // it asked for gzip, or it would not have got that
		}
	}
	t.Errorf("%d streams were opened, open are %+v: none is compressed and %s's",
		d.Opened, d.Streams, userAgent)
}
