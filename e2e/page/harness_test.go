// Package page looks at the server's page in a real Chromium, which it finds on the PATH.
//
//	SSE_PAGE_REQUIRED=1          fail, and do not skip, where there is no Chromium
//	SSE_PAGE_LONG=2m             send made-up snapshots for so long, not an hour's 1,800
//	SSE_PAGE_SCREENSHOTS=DIR     write pictures of the page into DIR
//	SSE_PAGE_SCREENSHOTS_AFTER=… let the server run for so long before (default 20s)
package page

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// patience is how long what must happen may take on a busy machine.
const patience = 20 * time.Second

var (
	binary   string          // the server under test
	chromium context.Context // of the one browser, which all tests share; nil without one
	missing  string          // why there is none
)

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	flag.Set("test.parallel", "4") // unless -parallel says otherwise: tests wait most of the time
	dir, err := os.MkdirTemp("", "page")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	binary = filepath.Join(dir, "sse-server")
	build := exec.Command("go", "build", "-o", binary, "main.go")
	build.Dir = "../.."
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "building the server: %v\n%s", err, out)
		return 1
	}
	opts := chromedp.DefaultExecAllocatorOptions[:]
	if os.Getuid() == 0 {
		opts = append(opts, chromedp.NoSandbox)
	}
	missing = "no Chromium or Chrome on the PATH"
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome", "chrome"} {
		path, err := exec.LookPath(name)
		if err != nil {
			continue
		}
		opts = append(opts, chromedp.ExecPath(path))
		alloc, cancel := chromedp.NewExecAllocator(context.Background(), opts...)
		defer cancel()
		ctx, cancel := chromedp.NewContext(alloc)
		defer cancel()
		if err := chromedp.Do(ctx); err == nil {
			chromium = ctx
		} else {
			missing = fmt.Sprintf("%s does not start: %v", path, err)
		}
		break
	}
	return m.Run()
}

// A server is one process of the binary.
type server struct {
	url  string // without a slash at the end
	path string // of the binary
	args []string
	cmd  *exec.Cmd
}

// startServer skips the test where there is no browser to look at the server.
func startServer(t *testing.T, args ...string) *server {
	t.Helper()
	return startServerOn(t, "127.0.0.1:0", args...)
}

func startServerOn(t *testing.T, addr string, args ...string) *server {
	t.Helper()
	if chromium == nil && os.Getenv("SSE_PAGE_REQUIRED") != "" {
		t.Fatal(missing)
	} else if chromium == nil {
		t.Skip(missing)
	}
	s := &server{path: binary, args: args}
	s.start(t, addr)
	t.Cleanup(func() { s.kill() })
	return s
}

func (s *server) start(t *testing.T, addr string) {
	t.Helper()
	s.cmd = exec.Command(s.path, append([]string{"-addr", addr}, s.args...)...)
	stderr, err := s.cmd.StderrPipe()
	if err == nil {
		err = s.cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	found := make(chan string, 1)
	go func() {
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			if m := regexp.MustCompile(`url=(http://[^/]*)/`).FindStringSubmatch(lines.Text()); m != nil {
				found <- m[1]
			}
		}
		close(found)
	}()
	if s.url = <-found; s.url == "" {
		t.Fatalf("the server on %s did not start", addr)
	}
}

// kill ends the server as a crash does; restart starts another one on its port.
func (s *server) kill() {
	s.cmd.Process.Kill()
	s.cmd.Wait()
}

// stop lets the server hang until proceed.
func (s *server) stop()    { s.cmd.Process.Signal(syscall.SIGSTOP) }
func (s *server) proceed() { s.cmd.Process.Signal(syscall.SIGCONT) }

func (s *server) restart(t *testing.T) {
	t.Helper()
	s.start(t, strings.TrimPrefix(s.url, "http://"))
}

type debug struct {
	Open   int `json:"streams_open"`
	Opened int `json:"streams_opened"`
}

func (s *server) debug(t *testing.T) (d debug) {
	t.Helper()
	get(t, s.url+"/dashboard/debug", &d)
	return d
}

func (s *server) waitForStreams(t *testing.T, want int) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d streams are open", want), func() bool {
		return s.debug(t).Open == want
	})
}

func get(t *testing.T, url string, v any) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(v); err != nil {
		t.Fatalf("%s: %v", url, err)
	}
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !is(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never came: %s", what)
		}
	}
}

type snapshot struct {
	Status struct {
		Status    string `json:"status"`
		Uptime    string `json:"uptime"`
		LastCheck string `json:"last_check"`
		Message   string `json:"message"`
	} `json:"system_status"`
	Metrics    map[string]string `json:"metrics"`
	Activities []activity        `json:"activities"`
	Timestamp  string            `json:"timestamp"`
}

type activity struct {
	Time    string `json:"time"`
	Message string `json:"message"`
	Level   string `json:"level"`
	Class   string `json:"css_class"`
}

// madeUp is a snapshot as the server sends it, with these activities after its own.
func madeUp(cpu string, list ...activity) (s snapshot) {
	s.Timestamp = time.Now().Format(time.TimeOnly)
	s.Status.Status, s.Status.Uptime = "online", "2 days, 14 hours"
	s.Status.LastCheck, s.Status.Message = s.Timestamp, "System running normally"
	s.Metrics = map[string]string{
		"cpu":           cpu,
		"memory":        "67%",
		"disk":          "23%",
		"network":       "125 Mbps",
		"response_time": "87ms",
	}
	own := activity{s.Timestamp, "Dashboard updated", "info", "activity-info"}
	s.Activities = append([]activity{own}, list...)
	return s
}

func (s snapshot) json() string {
	b, _ := json.Marshal(s) // strings cannot fail
	return string(b)
}

// follow reads the server's stream; the function that it gives tells the newest snapshot.
func (s *server) follow(t *testing.T) func() *snapshot {
	t.Helper()
	resp, err := http.Get(s.url + "/dashboard/stream")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	var newest atomic.Pointer[snapshot]
	go func() {
		for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
			if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
				var s snapshot
				json.Unmarshal([]byte(data), &s)
				newest.Store(&s)
			}
		}
	}()
	eventually(t, "a first snapshot", func() bool { return newest.Load() != nil })
	return newest.Load
}

// reverseProxy passes requests on to the server with that URL.
func reverseProxy(address string) http.Handler {
	target, _ := url.Parse(address)
	proxy := httputil.NewSingleHostReverseProxy(target)
	proxy.ErrorHandler = func(w http.ResponseWriter, _ *http.Request, _ error) {
		w.WriteHeader(http.StatusBadGateway)
	}
	return proxy
}

type proxyHandler = func(w http.ResponseWriter, r *http.Request, next http.Handler)

// inFront is a proxy before the server: handle may answer for it, or pass the request on to next.
func (s *server) inFront(t *testing.T, handle proxyHandler) *httptest.Server {
	t.Helper()
	next := reverseProxy(s.url)
	p := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		handle(w, r, next)
	}))
	t.Cleanup(func() { p.CloseClientConnections(); p.Close() })
	return p
}

// inFrontOfStream is a proxy that answers requests for the stream with 502 while it is broken.
func (s *server) inFrontOfStream(t *testing.T) (*httptest.Server, *atomic.Bool) {
	t.Helper()
	broken := &atomic.Bool{}
	return s.inFront(t, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if broken.Load() && r.URL.Path == "/dashboard/stream" {
			w.Header().Set("Access-Control-Allow-Origin", "*")
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		next.ServeHTTP(w, r)
	}), broken
}

// history is what /dashboard/history answers.
type history struct {
	Now      int64    `json:"now"`
	Zone     int      `json:"zone"`
	Interval float64  `json:"interval"`
	Streams  int      `json:"streams"`
	Page     string   `json:"page"`
	Source   source   `json:"source"`
	Alarms   []alarm  `json:"alarms"`
	Samples  []sample `json:"samples"`
}

type source struct {
	Kind  string `json:"kind"`
	Since int64  `json:"since"`
}

type alarm struct {
	Metric string `json:"metric"`
	Level  string `json:"level"`
	Since  int64  `json:"since"`
}

// A sample holds the means of a slot, null where nothing was measured.
type sample struct {
	Time         int64              `json:"time"`
	CPU          *float64           `json:"cpu"`
	Memory       *float64           `json:"memory"`
	Disk         *float64           `json:"disk"`
	Network      *float64           `json:"network"`
	ResponseTime *float64           `json:"response_time"`
	Max          map[string]float64 `json:"max,omitempty"`
}

func (s *server) history(t *testing.T) (h history) {
	t.Helper()
	get(t, s.url+"/dashboard/history", &h)
	return h
}

// samplesOf gives slots of these means of CPU, the last of them the newest at that time.
func samplesOf(at time.Time, cpu ...float64) []sample {
	other := 5.0
	newest := at.UnixMilli() / 2000 * 2000
	var all []sample
	for i, mean := range cpu {
		all = append(all, sample{
			Time:         newest - 2000*int64(len(cpu)-1-i),
			CPU:          &mean,
			Memory:       &other,
			Disk:         &other,
			Network:      &other,
			ResponseTime: &other,
		})
	}
	return all
}

// A fake is the real server, but for a stream of made-up snapshots and a made-up history.
type fake struct {
	url    string
	events chan string

	mu    sync.Mutex // guards following
	told  history    // what the history answers; now is the time
	asked []string   // the queries of requests for it
}

func startFake(t *testing.T) *fake {
	t.Helper()
	s := startServer(t)
	f := &fake{events: make(chan string)}
	f.told = s.history(t)
	f.told.Samples = []sample{}
	f.url = s.inFront(t, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		switch r.URL.Path {
		case "/dashboard/history":
			f.serveHistory(w, r)
		case "/dashboard/stream":
			f.serveStream(w, r)
		default:
			next.ServeHTTP(w, r)
		}
	}).URL
	return f
}

func (f *fake) serveHistory(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = append(f.asked, r.URL.RawQuery)
	told := f.told
	told.Now = time.Now().UnixMilli()
	after, _ := strconv.ParseInt(r.URL.Query().Get("after"), 10, 64)
	told.Samples = []sample{}
	for _, s := range f.told.Samples {
		if s.Time > after {
			told.Samples = append(told.Samples, s)
		}
	}
	json.NewEncoder(w).Encode(told)
}

func (f *fake) serveStream(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	fmt.Fprint(w, "retry: 1000\n\n")
	for {
		w.(http.Flusher).Flush()
		select {
		case e := <-f.events:
			fmt.Fprint(w, e)
		case <-r.Context().Done():
			return
		}
	}
}

// tell changes what the history answers.
func (f *fake) tell(change func(*history)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(&f.told)
}

// asks are the queries so far.
func (f *fake) asks() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.asked
}

// queries gives the queries of the requests for the history since the last time.
func (f *fake) queries() (asked []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	asked, f.asked = f.asked, nil
	return asked
}

func (f *fake) send(t *testing.T, at time.Time, data string) {
	t.Helper()
	select {
	case f.events <- fmt.Sprintf("id: %d\ndata: %s\n\n", at.UnixMilli(), data):
	case <-time.After(patience):
		t.Fatal("the page does not read its stream")
	}
}

// watch runs in each page before its own script.
const watch = `globalThis.watched = {streams: 0, liveAfter: 0};
globalThis.EventSource = class extends EventSource {
  constructor(...a) { super(...a); watched.streams++; }
};
addEventListener("securitypolicyviolation", (e) =>
  console.error("refused by policy:", e.violatedDirective, e.blockedURI));
new MutationObserver((_, o) => {
  if (document.body?.dataset.state !== "live") return;
  watched.liveAfter = performance.now();
  o.disconnect();
}).observe(document, {subtree: true, childList: true, attributes: true});`

// A tab shows the page. When it closes, the test fails if there was an error in its console.
type tab struct {
	*testing.T
	ctx    context.Context
	cancel context.CancelFunc

	mu       sync.Mutex // guards following
	problems []string
	failing  bool // requests may fail: the server is to
}

// open opens the first tab of a browser profile of its own. The scripts run before the page's.
func open(t *testing.T, url string, scripts ...string) *tab {
	t.Helper()
	return newTab(t, chromium, url, scripts, chromedp.WithNewBrowserContext())
}

// another opens one more tab beside p.
func (p *tab) another(url string, scripts ...string) *tab {
	p.Helper()
	return newTab(p.T, p.ctx, url, scripts)
}

func newTab(t *testing.T, parent context.Context, url string, scripts []string,
	opts ...chromedp.ContextOption) *tab {
	t.Helper()
	p := &tab{T: t}
	p.ctx, p.cancel = chromedp.NewContext(parent, append(opts, chromedp.WithListener(p.listen))...)
	t.Cleanup(func() {
		if p.ctx.Err() == nil {
			p.close()
		}
	})
	if err := chromedp.Do(p.ctx, chromedp.EmulateViewport(1280, 800)); err != nil {
		t.Fatal(err)
	}
	// A tab behind another one counts as seen, too.
	call(p, emulation.SetFocusEmulationEnabled, emulation.SetFocusEmulationEnabledParams{Enabled: true})
	for _, script := range append([]string{watch}, scripts...) {
		params := page.AddScriptToEvaluateOnNewDocumentParams{Source: script}
		call(p, page.AddScriptToEvaluateOnNewDocument, params)
	}
	p.do(chromedp.Navigate(url))
	return p
}

func (p *tab) listen(event any) {
	var problem string
	switch e := event.(type) {
	case *runtime.EventExceptionThrown:
		problem = "exception: " + e.ExceptionDetails.Text
		if x := e.ExceptionDetails.Exception; x != nil {
			problem += " " + x.Description
		}
	case *runtime.EventConsoleAPICalled:
		if e.Type == runtime.ConsoleAPICalledTypeError || e.Type == runtime.ConsoleAPICalledTypeAssert {
			for _, a := range e.Args {
				problem += string(a.Value) + a.Description + " "
			}
		}
	case *log.EventEntryAdded:
		if e.Entry.Level == log.EntryLevelError {
			problem = fmt.Sprintf("%s: %s (%s)", e.Entry.Source, e.Entry.Text, e.Entry.URL)
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if problem != "" && !(p.failing && strings.HasPrefix(problem, "network: ")) {
		p.problems = append(p.problems, problem)
	}
}

// mayFail says that requests will fail from now on, which Chromium reports as errors.
func (p *tab) mayFail() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.failing = true
}

// takeProblems gives what went wrong since the last time.
func (p *tab) takeProblems() (all []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	all, p.problems = p.problems, nil
	return all
}

func (p *tab) close() {
	chromedp.Run(p.ctx, chromedp.Evaluate[bool]("true")) // what it reported before is here then
	p.cancel()
	for _, problem := range p.takeProblems() {
		p.Errorf("in the page's console: %s", problem)
	}
}

func (p *tab) do(steps ...chromedp.Action[chromedp.Void]) {
	p.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	if err := chromedp.Do(ctx, steps...); err != nil {
		p.Fatal(err)
	}
}

func call[P, R any](p *tab, cmd cdp.Command[P, R], params P) R {
	p.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	result, err := chromedp.Call(ctx, cmd, params)
	if err != nil {
		p.Fatalf("%s: %v", cmd.Method, err)
	}
	return result
}

// eval gives the value of a JavaScript expression; a promise is waited for.
func eval[T any](p *tab, expression string) T {
	p.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, 2*patience)
	defer cancel()
	v, err := chromedp.Run(ctx, chromedp.Evaluate[T](expression, chromedp.EvalAwaitPromise))
	if err != nil {
		p.Fatalf("%s: %v", expression, err)
	}
	return v
}

// isShown tells whether there is such an element that can be seen.
func (p *tab) isShown(selector string) bool {
	p.Helper()
	return eval[bool](p, fmt.Sprintf(`((e) => e?.getClientRects().length > 0
		&& e.checkVisibility({visibilityProperty: true, opacityProperty: true}))
		(document.querySelector(%q))`, selector))
}

// attribute gives an attribute of an element.
func (p *tab) attribute(selector, name string) string {
	p.Helper()
	return eval[string](p, fmt.Sprintf(`document.querySelector(%q)?.getAttribute(%q) ?? "none"`,
		selector, name))
}

func (p *tab) text(selector string) string {
	p.Helper()
	const content = "(document.querySelector(%q)?.textContent ?? 'no such element').trim()"
	return eval[string](p, fmt.Sprintf(content, selector))
}

// waitFor waits until a JavaScript expression is true, and tells how long that took.
func (p *tab) waitFor(expression string) time.Duration {
	p.Helper()
	start := time.Now()
	for !eval[bool](p, "!!("+expression+")") {
		if time.Since(start) > patience {
			state := eval[string](p, "document.body.dataset.state")
			p.Fatalf("never came: %s\nthe page is %q and says %q; console: %q",
				expression, state, p.text("#live"), p.takeProblems())
		}
		time.Sleep(20 * time.Millisecond)
	}
	return time.Since(start)
}

func (p *tab) waitForState(state string) time.Duration {
	p.Helper()
	return p.waitFor(fmt.Sprintf("document.body?.dataset.state === %q", state))
}

// waitForText waits until an element has that text.
func (p *tab) waitForText(selector, want string) {
	p.Helper()
	p.waitFor(fmt.Sprintf(`document.querySelector(%q)?.textContent.trim() === %q`, selector, want))
}

func (p *tab) waitForStart(selector, want string) {
	p.Helper()
	p.waitFor(fmt.Sprintf(`document.querySelector(%q)?.textContent.startsWith(%q)`, selector, want))
}

// waitForLevel waits until an element has that level, "0" to "2".
func (p *tab) waitForLevel(selector, want string) {
	p.Helper()
	p.waitFor(fmt.Sprintf(`document.querySelector(%q)?.dataset.level === %q`, selector, want))
}

// prefer sets media features, such as prefers-color-scheme.
func (p *tab) prefer(nameAndValue ...string) {
	p.Helper()
	var features []*emulation.MediaFeature
	for i := 0; i < len(nameAndValue); i += 2 {
		feature := emulation.MediaFeature{Name: nameAndValue[i], Value: nameAndValue[i+1]}
		features = append(features, &feature)
	}
	call(p, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: features})
}

// slot is one of the page's slots.
type slot struct {
	Time         int64      `json:"time"`
	CPU          *slotValue `json:"cpu"`
	Memory       *slotValue `json:"memory"`
	Disk         *slotValue `json:"disk"`
	Network      *slotValue `json:"network"`
	ResponseTime *slotValue `json:"response_time"`
	Cut          bool       `json:"cut"` // it may be of another source than the one before
}

type slotValue struct {
	Mean  float64 `json:"mean"`
	Max   float64 `json:"max"`
	Count int     `json:"count"`
}

// slots checks that each is one of two seconds, and that they are in order.
func (p *tab) slots() []slot {
	p.Helper()
	all := eval[[]slot](p, "lines.slots")
	last := int64(0)
	for i, s := range all {
		isInOrder := s.Time > last || s.Cut && s.Time == last
		if s.Time%2000 != 0 || !isInOrder {
			p.Errorf("slot %d of %d is that of %d, after %d", i, len(all), s.Time, last)
		}
		last = s.Time
	}
	return all
}

// waitForHistory lets the page ask for the history until it has the server's slots.
func (p *tab) waitForHistory(s *server) {
	p.Helper()
	var missing string
	for end := time.Now().Add(patience); ; time.Sleep(200 * time.Millisecond) {
		eval[int](p, "connection.historyAt = 0")
		h := s.history(p.T)
		time.Sleep(200 * time.Millisecond)
		missing = p.missingOf(h)
		if missing == "" {
			return
		}
		if time.Now().After(end) {
			p.Fatal(missing)
		}
	}
}

// missingOf compares the page's slots with those of a history, but for the newest, which may grow.
func (p *tab) missingOf(h history) string {
	p.Helper()
	all := map[int64]slot{}
	for _, s := range p.slots() {
		all[s.Time] = s
	}
	for _, want := range h.Samples[:len(h.Samples)-1] {
		got := all[want.Time]
		if !got.CPU.is(want.CPU, want.Max["cpu"]) || !got.Memory.is(want.Memory, want.Max["memory"]) {
			slot, _ := json.Marshal(got)
			sample, _ := json.Marshal(want)
			return fmt.Sprintf("the page has\n%s, and the history\n%s", slot, sample)
		}
	}
	return ""
}

// is compares with a history's mean, and its maximum if there is another one.
func (v *slotValue) is(mean *float64, most float64) bool {
	if v == nil || mean == nil {
		return v == nil && mean == nil
	}
	if most == 0 {
		most = *mean
	}
	return v.Mean == *mean && v.Max == most
}

// activities are those listed, as "time message"; it checks that each is listed once.
func (p *tab) activities() []string {
	p.Helper()
	all := eval[[]string](p, `[...document.querySelectorAll("#activities li")].map((li) =>
		[".time", ".message"].map((part) => li.querySelector(part).textContent.trim()).join(" "))`)
	seen := map[string]bool{}
	for _, a := range all {
		if seen[a] {
			p.Errorf("%q is listed twice in %q", a, all)
		}
		seen[a] = true
	}
	return all
}
