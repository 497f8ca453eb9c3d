package page

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
)

// A site is the real server, which has no history there, with streams of something else beside it, under /sub/.
type site struct {
	*httptest.Server
	broken    atomic.Bool  // the streams answer 502
	histories atomic.Int32 // requests for the history

	mu      sync.Mutex // guards following
	streams map[string][]chan string
	first   string // what each stream begins with
}

func startSite(t *testing.T) *site {
	t.Helper()
	s := &site{streams: map[string][]chan string{}}
	s.Server = startServer(t).inFront(t, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		switch {
		case r.URL.Path == "/dashboard/history":
			s.histories.Add(1)
			http.NotFound(w, r)
		case !strings.HasPrefix(r.URL.Path, "/sub/"):
			next.ServeHTTP(w, r)
		case s.broken.Load():
			w.WriteHeader(http.StatusBadGateway)
		default:
			s.serveStream(w, r)
		}
	})
	return s
}

func (s *site) serveStream(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	events := make(chan string, 100) // more than a test sends at once
	s.mu.Lock()
	fmt.Fprintf(w, "retry: 500\n\n%s", s.first)
	s.streams[r.URL.Path] = append(s.streams[r.URL.Path], events)
	s.mu.Unlock()
	for open := true; open; {
		w.(http.Flusher).Flush()
		select {
		case e := <-events:
			fmt.Fprint(w, e)
		case <-r.Context().Done():
			open = false
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.streams[r.URL.Path] = slices.DeleteFunc(s.streams[r.URL.Path], func(c chan string) bool { return c == events })
}

func (s *site) send(path, event string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.streams[path] {
		c <- event
	}
}

// event is one with that id, if it is not "".
func event(id string, s snapshot) string {
	if id != "" {
		id = "id: " + id + "\n"
	}
	return id + "data: " + s.json() + "\n\n"
}

func (s *site) waitForStreams(t *testing.T, path string, want int) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d streams of %s", want, path), func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.streams[path]) == want
	})
}

// keepSending sends a new snapshot every so often, until the function it gives is called.
func (s *site) keepSending(t *testing.T, path string, every time.Duration) (stop func()) {
	done, ended := make(chan bool), make(chan bool)
	go func() {
		defer close(ended)
		for n := 0; ; n++ {
			s.send(path, event(fmt.Sprintf("%d:0", time.Now().Unix()), madeUp(fmt.Sprintf("%d%%", n%100))))
			select {
			case <-time.After(every):
			case <-done:
				return
			}
		}
	}()
	stop = sync.OnceFunc(func() { close(done); <-ended })
	t.Cleanup(stop)
	return stop
}

const ofStream = "/?stream=/sub/dashboard"

func (p *tab) waitForCPU(want string) {
	p.Helper()
	p.waitForText("#cpu .value", want)
}

func TestOtherStreamShowsEventsInOrderOfArrival(t *testing.T) {
	t.Parallel()
	s := startSite(t)
	p := open(t, s.URL+ofStream)
	s.waitForStreams(t, "/sub/dashboard", 1)
	for i, id := range []string{"1700000009:0", "1700000001:5", "zebra", "", "9999999999999", "3", "3", ""} {
		cpu := fmt.Sprintf("%d%%", 20+i)
		s.send("/sub/dashboard", event(id, madeUp(cpu, activity{"15:04:05", "With id " + id, "info", "activity-info"})))
		p.waitForCPU(cpu)
		p.waitForState("live")
		time.Sleep(500 * time.Millisecond)
	}
	slots := p.slots()
	drawn := 0
	for _, slot := range slots {
		drawn += slot.CPU.Count
	}
	if age := time.Now().UnixMilli() - slots[len(slots)-1].Time; drawn != 8 || age > 5000 {
		t.Errorf("%d snapshots are drawn, the last %d ms ago, want 8: %+v", drawn, age, slots)
	}
	place := strings.TrimPrefix(s.URL, "http://") + "/sub/dashboard"
	if got := p.text("#host"); got != place {
		t.Errorf("the page is of %q, want %q", got, place)
	}
	if got := eval[string](p, "document.title"); got != "Online · CPU 27% · "+place {
		t.Errorf("the title is %q", got)
	}
	if n := s.histories.Load(); n > 0 {
		t.Errorf("%d requests for the history of another server", n)
	}
	for _, selector := range []string{"#test", "#viewers", "#counted"} {
		if eval[bool](p, fmt.Sprintf("document.querySelector(%q).checkVisibility()", selector)) {
			t.Errorf("%s is of another server, and shown", selector)
		}
	}
}

func TestOtherStreamOfAnotherOriginIsRejected(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	var asked atomic.Int32
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		w.Header().Set("Access-Control-Allow-Origin", "*")
		w.Header().Set("Content-Type", "text/event-stream")
		fmt.Fprint(w, event("", madeUp("66%")))
	}))
	t.Cleanup(other.Close)
	host, otherHost := strings.TrimPrefix(s.url, "http://"), strings.TrimPrefix(other.URL, "http://")
	p := open(t, "about:blank")
	for _, stream := range []string{
		other.URL + "/dashboard/stream", "//" + otherHost + "/x", `/\` + otherHost + "/x", `\\` + otherHost, "/\t/" + otherHost + "/x",
		"https://" + host + "/dashboard/stream", "http://" + host + "@" + otherHost, "http://" + host + ".example/",
		"http://user:password@" + host + "/dashboard/stream", "blob:" + s.url + "/dashboard/stream",
		"javascript:globalThis.hacked=1", "data:text/event-stream,data:{}\n\n", "file:///etc/passwd", "http://[", "http://",
		"", "//<img src=x onerror=globalThis.hacked=1>",
	} {
		p.do(chromedp.Navigate(s.url + "/?stream=" + url.QueryEscape(stream)))
		want := "Only streams of " + s.url + " are shown: change stream= in this page's address."
		if got := eval[string](p, `document.body.innerText.split(/\s*\n\s*/).join("|")`); got != "Dashboard "+host+"|Rejected|"+want {
			t.Errorf("%q: the page says %q", stream, got)
		}
		if got := eval[string](p, "document.title"); got != "Rejected · "+host {
			t.Errorf("%q: the title is %q", stream, got)
		}
		eval[bool](p, `dispatchEvent(new Event("online")), dispatchEvent(new PageTransitionEvent("pageshow", {persisted: true})),
			document.dispatchEvent(new Event("visibilitychange"))`)
		time.Sleep(100 * time.Millisecond)
		if !eval[bool](p, `watched.streams === 0 && !globalThis.hacked && !document.querySelector("img")`) {
			t.Errorf("%q: there are %d streams, or text became HTML", stream, eval[int](p, "watched.streams"))
		}
	}
	if got := s.debug(t); got.Opened > 0 || asked.Load() > 0 {
		t.Errorf("%d streams of the server were opened, and another was asked %d times", got.Opened, asked.Load())
	}
}

func TestOtherStreamAddressStaysText(t *testing.T) {
	t.Parallel()
	s := startSite(t)
	p := open(t, "about:blank")
	for path, shown := range map[string]string{
		`/sub/"><img src=x onerror="globalThis.hacked=1">`:  `/sub/%22%3E%3Cimg%20src=x%20onerror=%22globalThis.hacked=1%22%3E`,
		`/sub/</title><script>globalThis.hacked=1</script>`: `/sub/%3C/title%3E%3Cscript%3EglobalThis.hacked=1%3C/script%3E`,
		`/sub/?<b>#<b>`: `/sub/?%3Cb%3E`,
	} {
		p.do(chromedp.Navigate(s.URL + "/?stream=" + url.QueryEscape(path)))
		p.waitFor("connection.source?.readyState === EventSource.OPEN")
		if got := p.text("#host"); got != strings.TrimPrefix(s.URL, "http://")+shown {
			t.Errorf("%q is shown as %q", path, got)
		}
		if eval[bool](p, `!!globalThis.hacked || document.querySelectorAll("img, script, title, b").length !== 2`) {
			t.Errorf("%q became HTML", path)
		}
	}
}

func TestOtherStreamStaysAtItsOrigin(t *testing.T) {
	t.Parallel()
	var asked atomic.Int32
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		w.Header().Set("Access-Control-Allow-Origin", "*")
	}))
	t.Cleanup(other.Close)
	proxy := startServer(t).inFront(t, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.URL.Path == "/away" {
			http.Redirect(w, r, other.URL, http.StatusFound)
			return
		}
		next.ServeHTTP(w, r)
	})
	p := open(t, proxy.URL+"/?stream=/away")
	p.waitForState("disconnected")
	if n := asked.Load(); n > 0 {
		t.Errorf("the other origin was asked %d times", n)
	}
	p.waitFor(`watched.streams >= 2`)
	p.do(chromedp.Navigate("about:blank"))
	eval[bool](p, "true") // what it reported before is here then
	if got := strings.Join(p.takeProblems(), "\n"); !strings.Contains(got, "violates the following Content Security Policy directive") {
		t.Errorf("the console has %q", got)
	}
}

func TestOtherStreamsAreSharedByURLAndDoNotMix(t *testing.T) {
	t.Parallel()
	s := startSite(t)
	a := open(t, s.URL+"/?stream=/sub/a")
	tabs := map[*tab]string{a: "11%", a.another(s.URL + "/?stream=/sub/../sub/a%23x"): "11%", a.another(s.URL + "/?stream=sub/b"): "22%"}
	own := a.another(s.URL + "/")
	sendAll := func() {
		s.send("/sub/a", event("", madeUp("11%")))
		s.send("/sub/b", event("", madeUp("22%")))
	}
	own.waitForState("live")
	for range 3 {
		s.waitForStreams(t, "/sub/a", 1)
		s.waitForStreams(t, "/sub/b", 1)
		sendAll()
		for p, want := range tabs {
			p.waitForCPU(want)
			p.waitForState("live")
		}
		time.Sleep(time.Second)
	}
	if got := eval[string](own, "JSON.stringify(dashboard.snapshot)"); strings.Contains(got, `"125 Mbps"`) { // made up
		t.Errorf("the page of the server's own stream shows %s", got)
	}
	if !eval[bool](own, "dashboard.id > 1e12 && dashboard.counted === 0 && lines.slots.length >= 1") {
		t.Error("the page of the server's own stream is confused")
	}
	a.do(chromedp.Navigate("about:blank")) // another takes over
	delete(tabs, a)
	eventually(t, "another tab reads the stream", func() bool {
		s.send("/sub/a", event("", madeUp("33%")))
		for p, want := range tabs {
			if p.text("#cpu .value") != strings.ReplaceAll(want, "11", "33") {
				return false
			}
		}
		return true
	})
	s.waitForStreams(t, "/sub/a", 1)
	own.takeProblems() // its history is missing here
}

// What it read while it hung comes when another holds the stream, and has no id that tells it is old.
func TestOtherStreamLostByATabIsNotTouchedByIt(t *testing.T) {
	t.Parallel()
	s := startSite(t)
	first := open(t, s.URL+ofStream)
	s.waitForStreams(t, "/sub/dashboard", 1)
	s.send("/sub/dashboard", event("", madeUp("11%")))
	first.waitForCPU("11%")
	second := first.another(s.URL + ofStream)
	second.waitForCPU("11%")
	eval[bool](second, "tabs.waitForLock({steal: true}), true")
	first.waitFor("!tabs.isHolder")
	s.waitForStreams(t, "/sub/dashboard", 1)
	time.Sleep(time.Second) // what comes in the first second may be known
	s.send("/sub/dashboard", event("", madeUp("22%")))
	first.waitForCPU("22%")
	second.waitForCPU("22%")
	eval[bool](first, fmt.Sprintf("connection.receive({data: %q}), tabs.channel.postMessage({down: Date.now()}), true", madeUp("33%").json()))
	second.waitForState("disconnected") // that came after what it read
	for _, p := range []*tab{first, second} {
		if got := p.text("#cpu .value"); got != "22%" {
			t.Errorf("an old snapshot is shown: %s", got)
		}
	}
}

func TestOtherStreamIsStaleDisconnectedAndBack(t *testing.T) {
	t.Parallel()
	s := startSite(t)
	p := open(t, s.URL+ofStream)
	s.waitForStreams(t, "/sub/dashboard", 1)
	if got := eval[string](p, "view.state()"); got != "waiting" {
		t.Errorf("before the first snapshot the page is %s", got)
	}
	stop := s.keepSending(t, "/sub/dashboard", 500*time.Millisecond)
	p.waitForState("live")
	p.waitFor("dashboard.interval < 1") // learnt
	stop()
	stale := p.waitForState("stale")
	reopened := p.waitFor("watched.streams === 2")
	t.Logf("stale %v after the last snapshot, a new stream %v later", stale.Round(time.Millisecond), reopened.Round(time.Millisecond))
	if stale+reopened > 12*time.Second {
		t.Errorf("the interval was 500 ms, and it took %v to be stale and %v more to open another stream", stale, reopened)
	}
	time.Sleep(6500 * time.Millisecond) // eight intervals of half a second, and another two and a half
	if n := eval[int](p, "watched.streams"); n > 2 {
		t.Errorf("a silent stream was opened %d times more without a longer pause", n-2)
	}
	s.keepSending(t, "/sub/dashboard", 500*time.Millisecond)
	p.waitForState("live")

	p.mayFail()
	s.broken.Store(true)
	s.CloseClientConnections()
	p.waitForState("disconnected")
	if got := p.text("#live"); !regexp.MustCompile(`^disconnected since \d\d:\d\d:\d\d, trying again$`).MatchString(got) {
		t.Errorf("beside the dot stands %q", got)
	}
	streams := eval[int](p, "watched.streams")
	p.waitFor(fmt.Sprintf("watched.streams >= %d", streams+2))
	s.broken.Store(false)
	p.waitForState("live")
	s.waitForStreams(t, "/sub/dashboard", 1)
	if n := s.histories.Load(); n > 0 {
		t.Errorf("%d requests for the history of another server", n)
	}
}

func TestOtherStreamReopenedIsNotDisconnected(t *testing.T) {
	t.Parallel()
	s := startSite(t)
	p := open(t, s.URL+ofStream)
	s.waitForStreams(t, "/sub/dashboard", 1)
	s.send("/sub/dashboard", event("", madeUp("45%")))
	p.waitForState("live")
	p.mayFail()
	s.CloseClientConnections()
	p.waitForState("disconnected")
	p.waitForState("stale")
	s.waitForStreams(t, "/sub/dashboard", 1)
}

// Triggers and pauses come between what comes at an interval.
func TestOtherStreamIntervalIsLearnt(t *testing.T) {
	t.Parallel()
	p := open(t, startSite(t).URL+ofStream)
	p.waitFor("tabs.isHolder")
	for _, c := range []struct {
		gaps        string // in s
		least, most float64
	}{
		{"[]", 2, 2},
		{"[1.3]", 2, 2}, // from the opening on it may be any
		{"[1.3, 10, 10]", 10, 10},
		{"[0.4, 2, 2, 2, 2, 2, 2]", 2, 2},
		{"[3, ...Array(20).fill(10)]", 10, 10},
		{"[10, 10, 10, 4, 6, 10, 3, 3, 4, 10, 10, 10]", 10, 10}, // triggers
		{"[...Array(10).fill(2), ...Array(300).fill(.05), 1, 2, 2]", 2, 2},                // a flood
		{"[...Array(10).fill(10), ...Array(30).fill(.5), 3, 10]", 10, 10},                 // a slow one
		{"[...Array(10).fill(2), 300, 2, 2, 2, 300, 2, 2, 2, 2, 2, 2, 2, 2, 2]", 2, 2},    // pauses
		{"[...Array(10).fill(2), 30000, 30000, 30000]", 2, 2},                             // nights
		{"[...Array(60).fill(10), ...Array(50).fill(.5)]", .5, .5},                        // another interval
		{"Array.from({length: 40}, (_, i) => i % 10 === 9 ? 2 : 2 + (i % 3) / 10)", 2, 3}, // none is exact
	} {
		got := eval[float64](p, fmt.Sprintf("connection.gaps = [2e3, 2e3], %s.map((gap) => connection.learnInterval(gap * 1e3)).at(-1) ?? connection.learnInterval(Infinity)", c.gaps))
		if got < c.least || got > c.most {
			t.Errorf("after gaps of %s s the interval is %v s, want %v to %v", c.gaps, got, c.least, c.most)
		}
	}
}

// The clock of what sends them may be in another zone and go wrong, and nobody tells what it is.
func TestOtherStreamTimesAreItsOwn(t *testing.T) {
	t.Parallel()
	s := startSite(t)
	p := open(t, "about:blank")
	call(p, emulation.SetTimezoneOverride, emulation.SetTimezoneOverrideParams{TimezoneID: "America/St_Johns"})
	p.do(chromedp.Navigate(s.URL + ofStream))
	s.waitForStreams(t, "/sub/dashboard", 1)
	at := func() time.Time { return time.Now().UTC().Add(5*time.Hour + 45*time.Minute - 3*time.Minute) }
	made := madeUp("45%")
	made.Timestamp = at().Format(time.TimeOnly)
	s.send("/sub/dashboard", event("", made))
	p.waitForState("live")
	got := eval[string](p, "clock(lines.slots.at(-1).time + 2000)") // when that slot ended
	if got < made.Timestamp || got > at().Add(2*time.Second).Format(time.TimeOnly) {
		t.Errorf("a snapshot of %s is drawn in the slot until %s", made.Timestamp, got)
	}
	p.waitForState("stale")
	if got := p.text("#live"); got != "stale since "+made.Timestamp {
		t.Errorf("the last snapshot was at %s, and the page is %s", made.Timestamp, got)
	}
}

// Nchan begins each stream with its last messages: a new stream must not show again what was shown.
func TestOtherStreamRepeatsNothingWhenReopened(t *testing.T) {
	t.Parallel()
	s := startSite(t)
	var feed []activity
	var all []string
	for i := range 4 {
		made := madeUp(fmt.Sprintf("%d%%", 10+i))
		made.Timestamp = time.Now().Add(time.Duration(i-10) * time.Second).Format(time.TimeOnly)
		feed = slices.Insert(feed, 0, activity{made.Timestamp, fmt.Sprintf("Activity %d", i), "info", "activity-info"})
		made.Activities = feed
		s.first += event(fmt.Sprintf("170000000%d:0", i), made)
		all = slices.Insert(all, 0, made.Timestamp+fmt.Sprintf(" Activity %d", i))
	}
	p := open(t, s.URL+ofStream)
	p.waitForCPU("13%")
	p.waitForState("live")
	p.waitForState("stale")
	eval[bool](p, `globalThis.wasLive = false, new MutationObserver(() => wasLive ||= view.state() === "live" || document.querySelector("#cpu .value").textContent !== "13%")
		.observe(document.body, {subtree: true, childList: true, attributes: true, characterData: true}), true`)
	eval[bool](p, "connection.open(), true")
	p.waitFor("connection.source.readyState === EventSource.OPEN")
	time.Sleep(2 * time.Second)
	if eval[bool](p, "wasLive") {
		t.Error("what was shown is shown again as if it were new")
	}
	if got := p.activities(); !slices.Equal(got, all) {
		t.Errorf("the activities are %q, want %q", got, all)
	}
	// What is new in the first second is shown, also with the same time.
	made := madeUp("14%")
	s.mu.Lock()
	s.first += event("x", made)
	s.mu.Unlock()
	eval[bool](p, "connection.open(), true")
	p.waitForCPU("14%")
	made.Metrics["cpu"] = "15%"
	s.send("/sub/dashboard", event("", made))
	p.waitForCPU("15%")
}

func TestOtherStreamStaleStatusIsGrey(t *testing.T) {
	t.Parallel()
	s := startSite(t)
	p := open(t, s.URL+ofStream)
	s.waitForStreams(t, "/sub/dashboard", 1)
	p.seesStaleStatus(func(data string) { s.send("/sub/dashboard", "data: "+data+"\n\n") })
}

func TestOtherStreamMayBeNchans(t *testing.T) {
	t.Parallel()
	nginx, err := exec.LookPath("nginx")
	const module = "/usr/lib/nginx/modules/ngx_nchan_module.so"
	if _, none := os.Stat(module); err != nil || none != nil {
		t.Skip("no nginx with libnginx-mod-nchan")
	}
	s := startServer(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr, dir := l.Addr().String(), t.TempDir()
	l.Close()
	os.Chmod(dir, 0o755)
	conf := fmt.Sprintf(`load_module %s; pid %[2]s/pid; error_log %[2]s/log; worker_processes 1; daemon off; user root;
events {} http { access_log off; client_body_temp_path %[2]s/b; proxy_temp_path %[2]s/p; fastcgi_temp_path %[2]s/f; uwsgi_temp_path %[2]s/u; scgi_temp_path %[2]s/s;
server { listen %s;
	location / { proxy_pass %s; proxy_set_header Host $http_host; }
	location = /pub { nchan_publisher; nchan_channel_id a; }
	location = /sub/dashboard { nchan_subscriber eventsource; nchan_channel_id a; } } }
`, module, dir, addr, s.url)
	if err := os.WriteFile(filepath.Join(dir, "conf"), []byte(conf), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(nginx, "-c", filepath.Join(dir, "conf"), "-e", filepath.Join(dir, "log"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL); cmd.Wait() }) // and its worker
	publish := func(cpu string) {
		t.Helper()
		resp, err := http.Post("http://"+addr+"/pub", "application/json", strings.NewReader(madeUp(cpu).json()))
		if err != nil || resp.StatusCode > 202 {
			log, _ := os.ReadFile(filepath.Join(dir, "log"))
			t.Fatalf("publishing: %v %v\n%s", err, resp, log)
		}
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
	}
	eventually(t, "nginx listens", func() bool {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	publish("1%")
	publish("2%")
	p := open(t, "http://"+addr+ofStream)
	p.waitForCPU("2%") // it begins with the oldest
	p.waitForState("live")
	for i := 3; i < 8; i++ {
		publish(fmt.Sprintf("%d%%", i))
		p.waitForCPU(fmt.Sprintf("%d%%", i))
	}
	second := p.another("http://" + addr + ofStream)
	second.waitForCPU("7%")
	if s.debug(t).Opened > 0 {
		t.Error("a stream of this server was opened")
	}
}
