package page

import (
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
)

var tiles = []string{"cpu", "memory", "disk", "network", "response_time"}

// Neither this test nor TestMemoryStaysFlatForAnHour is parallel: they measure.
func TestPageIsLiveSoon(t *testing.T) {
	s := startServer(t)
	s.follow(t)
	p := open(t, s.url+"/")
	p.waitForState("live")
	took := eval[float64](p, "watched.liveAfter")
	t.Logf("live %.0f ms after the navigation began", took)
	if took > 5000 {
		t.Errorf("the page was live after %.0f ms", took)
	}
	if got := p.text("#live"); got != "live" {
		t.Errorf("beside the dot stands %q", got)
	}
}

func TestPageShowsNothingBeforeTheFirstSnapshot(t *testing.T) {
	t.Parallel()
	f := startFake(t)
	p := open(t, f.url+"/")
	p.waitFor("watched.streams === 1")
	if got := eval[[]string](p, `[...document.querySelectorAll(".value")].map((e) => e.textContent)`); !slices.Equal(got, []string{"N/A", "N/A", "N/A", "N/A", "N/A"}) {
		t.Errorf("the values are %q", got)
	}
	if got := eval[float64](p, `Math.max(...[...document.querySelectorAll(".fill")].map((e) => e.getBoundingClientRect().width))`); got > 0 {
		t.Errorf("a bar is %v px long", got)
	}
}

func TestPageShowsTheStreamsValues(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "1s")
	newest := s.follow(t)
	p := open(t, s.url+"/")
	p.waitForState("live")
	last, equal, end := "", 0, time.Now().Add(patience)
	for equal < 3 {
		want := newest()
		got := eval[map[string]string](p, `Object.fromEntries([
			...["cpu", "memory", "disk", "network", "response_time"].map((id) => [id, "#" + id + " .value"]),
			...["status", "message", "uptime", "checked"].map((id) => [id, "#" + id]),
		].map(([id, selector]) => [id, document.querySelector(selector).textContent.trim()]).concat([["title", document.title.split(" · ", 2).join(" · ")]]))`)
		status := strings.ToUpper(want.Status.Status[:1]) + want.Status.Status[1:]
		all := map[string]string{"status": status, "message": want.Status.Message, "uptime": want.Status.Uptime,
			"checked": want.Status.LastCheck, "title": status + " · CPU " + want.Metrics["cpu"]}
		maps.Copy(all, want.Metrics)
		differs := ""
		for id, w := range all {
			if got[id] != w {
				differs = fmt.Sprintf("%s is %q, want %q", id, got[id], w)
			}
		}
		if differs == "" && want.Timestamp != last {
			last = want.Timestamp
			equal++
		}
		if time.Now().After(end) {
			t.Fatalf("the page coincided with the stream %d times; last, %s", equal, differs)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func TestActivitiesListATestBroadcastOnce(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	p := open(t, s.url+"/")
	p.waitForState("live")
	for i := 0; i < 3; i++ {
		p.do(chromedp.Click(chromedp.CSS("#test")))
		p.waitFor(`/broadcast/i.test(document.querySelector("#answer").textContent)`)
		p.waitForText("#activities li .message", "Test broadcast")
		time.Sleep(1100 * time.Millisecond) // the next one has another time
	}
	all := strings.Join(p.activities(), "\n")
	if n := strings.Count(all, "Test broadcast"); n != 1 || strings.Contains(all, "Dashboard updated") {
		t.Errorf("the test broadcast is listed %d times in\n%s", n, all)
	}
	if got := eval[string](p, `document.querySelector("#activities").getAttribute("role")`); got != "log" {
		t.Errorf("the role of the activities is %q", got)
	}
}

func TestAlarmIsShownInWords(t *testing.T) {
	t.Parallel()
	p := open(t, startServer(t, "-interval", "500ms", "-probe", failing(t)).url+"/")
	p.waitForText("#status", "Critical")
	p.waitFor(`document.querySelectorAll("#activities li").length >= 2`)
	p.waitFor(`document.title.startsWith("Critical · Response time N/A · ")`)
	p.waitForLevel("#response_time", "2")
	p.waitFor(`/^Critical since \d\d:\d\d:\d\d$/.test(document.querySelector("#response_time .word").textContent)`)
	if got := p.text("#cpu .word") + eval[string](p, `document.querySelector("#cpu").dataset.level`); got != "0" {
		t.Errorf("the CPU, which is well, is marked %q", got)
	}
	levels := eval[[]string](p, `[...document.querySelectorAll("#activities li .level")].map((e) => e.textContent.trim().toLowerCase())`)
	if want := []string{"error", "warning"}; !slices.Equal(levels, want) {
		t.Errorf("the levels in words are %q, want %q", levels, want)
	}
	for _, got := range p.activities() {
		if !strings.HasSuffix(got, "Health probe answers 500") {
			t.Errorf("an activity is %q", got)
		}
	}
}

// failing is the URL of a health check that fails.
func failing(t *testing.T) string {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) }))
	t.Cleanup(s.Close)
	return s.URL
}

func TestHistoryIsDrawnAtOnceAndContinued(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "500ms")
	var before history
	eventually(t, "some history", func() bool {
		before = s.history(t)
		return len(before.Samples) >= 4
	})
	p := open(t, s.url+"/")
	p.waitFor(fmt.Sprintf("lines.slots.length >= %d", len(before.Samples)))
	first := p.slots()
	if d := first[len(first)-1].Time - before.Samples[len(before.Samples)-1].Time; d > 5000 {
		t.Errorf("the history was there after %d ms", d)
	}
	if missing := p.missingOf(before); missing != "" {
		t.Error(missing)
	}
	p.waitFor(`[...document.querySelectorAll(".curve:not(.alarmed)")].every((e) => e.getAttribute("d"))`)
	p.waitFor(fmt.Sprintf("lines.slots.length >= %d", len(first)+3))
	if d := p.slots(); d[0].Time != first[0].Time || d[len(d)-1].Time <= first[len(first)-1].Time {
		t.Error("the slots that follow do not continue the history")
	}
	second := p.another(s.url + "/")
	second.waitFor(fmt.Sprintf("lines.slots.length >= %d", len(first)))
	if got := second.slots(); got[0].Time != first[0].Time {
		t.Error("a second tab has no history")
	}
}

func TestTabsShareOneStreamAndTakeItOver(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "500ms")
	tabs := []*tab{open(t, s.url+"/")}
	for len(tabs) < 7 {
		tabs = append(tabs, tabs[0].another(s.url+"/"))
	}
	// The first one owns the browser profile, so it is not the one to close.
	holder := func() int {
		i := -1
		for j, p := range tabs {
			if eval[bool](p, "tabs.isHolder") {
				if i >= 0 {
					t.Fatal("two tabs hold the stream")
				}
				i = j
			}
		}
		return i
	}
	check := func() {
		t.Helper()
		var checked []string
		for _, p := range tabs {
			p.waitForState("live")
			checked = append(checked, p.text("#checked"))
		}
		for i, p := range tabs {
			p.waitFor(fmt.Sprintf(`document.querySelector("#checked").textContent.trim() !== %q`, checked[i]))
			p.waitForState("live")
		}
		s.waitForStreams(t, 1)
		eventually(t, "one tab holds the stream", func() bool { return holder() >= 0 })
	}
	check()
	for range 2 {
		i := holder()
		if i == 0 {
			tabs[0].do(chromedp.Navigate("about:blank"))
		} else {
			tabs[i].close()
		}
		tabs = slices.Delete(tabs, i, i+1)
		check()
	}
}

func TestStreamClosesWithThePage(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	p := open(t, s.url+"/")
	p.waitForState("live")
	s.waitForStreams(t, 1)
	// As a browser does that keeps the page for the way back; this one may or may not.
	eval[bool](p, `dispatchEvent(new PageTransitionEvent("pagehide", {persisted: true}))`)
	s.waitForStreams(t, 0)
	eval[bool](p, `dispatchEvent(new PageTransitionEvent("pageshow", {persisted: true}))`)
	s.waitForStreams(t, 1)
	p.do(chromedp.Navigate("about:blank"))
	start := time.Now()
	s.waitForStreams(t, 0)
	t.Logf("the server knew after %v", time.Since(start).Round(time.Millisecond))
	p.do(chromedp.NavigateBack())
	p.waitForState("live")
	s.waitForStreams(t, 1)
}

// The history of the server that was killed is gone, so the lines begin anew.
func TestServerRestartKeepsActivities(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "500ms", "-probe", failing(t))
	p := open(t, s.url+"/")
	p.waitFor(`document.querySelectorAll("#activities li").length >= 2 && lines.slots.length >= 2`)
	eval[bool](p, "globalThis.loadedOnce = true")
	p.mayFail()
	s.kill()
	t.Logf("disconnected %v after the server was killed", p.waitForState("disconnected").Round(time.Millisecond))
	if got := p.text("#live"); !regexp.MustCompile(`^disconnected since \d\d:\d\d:\d\d, trying again`).MatchString(got) {
		t.Errorf("beside the dot stands %q", got)
	}
	if got := p.text("#memory .value"); !strings.HasSuffix(got, "%") {
		t.Errorf("the value of memory became %q", got)
	}
	slots, activities := p.slots(), p.activities()
	time.Sleep(time.Second) // so that the new server's activities have other times
	s.restart(t)
	t.Logf("live %v after the server was restarted", p.waitForState("live").Round(time.Millisecond))
	newest := slots[len(slots)-1].Time
	p.waitFor(fmt.Sprintf("lines.slots.length > 0 && lines.slots[0].time >= %d", newest))
	p.waitFor(fmt.Sprintf("dashboard.source.since === %d", s.history(t).Source.Since))
	p.waitFor(fmt.Sprintf(`document.querySelectorAll("#activities li").length >= %d`, len(activities)+2))
	if got := p.activities(); !slices.Equal(got[len(got)-len(activities):], activities) {
		t.Errorf("before the restart there were %q, then %q", activities, got)
	}
	if !eval[bool](p, "globalThis.loadedOnce") {
		t.Error("the page was reloaded")
	}
	s.waitForStreams(t, 1)
}

// A proxy may pass on the stream alone.
func TestHistoryMissingLeavesThePageLive(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "500ms")
	var asked atomic.Int32
	p := open(t, s.inFront(t, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.URL.Path == "/dashboard/history" {
			asked.Add(1)
			http.NotFound(w, r)
			return
		}
		next.ServeHTTP(w, r)
	}).URL+"/", ownClock)
	p.mayFail()
	p.waitForState("live")
	eval[bool](p, "watchStates(), true")
	for range 3 {
		n := asked.Load()
		eval[int](p, "connection.historyAt = 0")
		eventually(t, "another request for the history", func() bool { return asked.Load() > n })
		id := eval[int64](p, "dashboard.id")
		p.waitFor(fmt.Sprintf("dashboard.id > %d", id))
	}
	if got := p.seen(); !slices.Equal(got, []string{"live"}) {
		t.Errorf("the page was %q", got)
	}
	if got := len(p.slots()); got == 0 {
		t.Error("nothing is drawn")
	}
}

func TestServerStalledIsStaleAndRecovers(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "500ms")
	p := open(t, s.url+"/")
	p.waitForState("live")
	p.waitFor("dashboard.counted > 0")
	p.mayFail()
	s.stop()
	t.Logf("stale %v after the server was stopped", p.waitForState("stale").Round(time.Millisecond))
	if got := p.text("#live"); !regexp.MustCompile(`^stale since \d\d:\d\d:\d\d`).MatchString(got) {
		t.Errorf("beside the dot stands %q", got)
	}
	s.proceed()
	p.waitForState("live")

	streams := eval[int](p, "watched.streams")
	opened := s.debug(t).Opened
	s.stop()
	took := p.waitFor(fmt.Sprintf("watched.streams > %d", streams))
	t.Logf("a new stream %v after the server was stopped", took.Round(time.Millisecond))
	s.proceed()
	p.waitForState("live")
	s.waitForStreams(t, 1)
	if got := s.debug(t).Opened; got <= opened {
		t.Error("the page opened no new stream")
	}
}

func TestProxyErrorIsRetriedUntilItEnds(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	proxy, broken := s.inFrontOfStream(t)
	p := open(t, proxy.URL+"/")
	p.waitForState("live")
	p.mayFail()
	streams := eval[int](p, "watched.streams")
	broken.Store(true)
	proxy.CloseClientConnections()
	p.waitForState("disconnected")
	p.waitFor(fmt.Sprintf("watched.streams >= %d", streams+3))
	if !eval[bool](p, `(() => {
		const before = watched.streams;
		dispatchEvent(new Event("online"));
		return watched.streams > before;
	})()`) {
		t.Error("the page waits on, although the computer has a network again")
	}
	broken.Store(false)
	p.waitForState("live")
	last := eval[int64](p, "lines.slots.at(-1).time")
	p.waitFor(fmt.Sprintf("lines.slots.at(-1).time > %d", last))
	for i, all := 1, p.slots(); i < len(all); i++ {
		if d := all[i].Time - all[i-1].Time; d > 5000 {
			t.Errorf("the line has a gap of %d ms that the server's history fills", d)
		}
	}
	s.waitForStreams(t, 1)
}

// The browser reconnects by itself then, and the page fetches what was missed.
func TestLinesHaveNoGapAfterAnOutage(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "1s")
	target, _ := url.Parse(s.url)
	network := func(addr string) *httptest.Server {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		n := &httptest.Server{Listener: l, Config: &http.Server{Handler: httputil.NewSingleHostReverseProxy(target)}}
		n.Start()
		t.Cleanup(func() { n.CloseClientConnections(); n.Close() })
		return n
	}
	n := network("127.0.0.1:0")
	p := open(t, n.URL+"/")
	p.waitFor("lines.slots.length >= 2")
	p.mayFail()
	n.CloseClientConnections()
	n.Close()
	p.waitForState("disconnected")
	time.Sleep(7 * time.Second)
	network(n.Listener.Addr().String())
	p.waitForState("live")
	p.waitFor(fmt.Sprintf("lines.slots.at(-1).time > %d", time.Now().UnixMilli()))
	for i, all := 1, p.slots(); i < len(all); i++ {
		if d := all[i].Time - all[i-1].Time; d > 5000 {
			t.Errorf("the line has a gap of %d ms that the server's history fills", d)
		}
	}
}

// A tab that hangs while it holds the stream loses it to another, and does no harm when it wakes up.
func TestTabsReplaceAHangingHolder(t *testing.T) {
	for _, address := range []string{"/", "/?stream=/dashboard/stream"} {
		t.Run(address, func(t *testing.T) { testHangingHolder(t, address) })
	}
}

func testHangingHolder(t *testing.T, address string) {
	t.Parallel()
	s := startServer(t, "-interval", "500ms", "-probe", failing(t))
	first := open(t, s.url+address)
	first.waitForState("live")
	second := first.another(s.url + address)
	second.waitForState("live")
	second.waitFor(`document.querySelectorAll("#activities li").length >= 2 && lines.slots.length >= 3`)
	if !eval[bool](first, "tabs.isHolder") {
		t.Fatal("the first tab does not hold the stream")
	}
	hung := make(chan bool)
	go func() {
		defer close(hung)
		eval[bool](first, "(() => { for (const end = Date.now() + 14e3; Date.now() < end;); return true; })()")
	}()
	second.waitFor("tabs.isHolder")
	second.waitForState("live")
	before, activities := second.slots(), second.activities()
	<-hung
	first.waitForState("live")
	first.waitFor("!tabs.isHolder")
	s.waitForStreams(t, 1)
	time.Sleep(2 * time.Second)
	if got := second.slots(); len(got) < len(before) || got[0].Time != before[0].Time {
		t.Errorf("the line had %d slots, then %d", len(before), len(got))
	}
	for _, p := range []*tab{first, second} {
		p.slots()
		if got := p.activities(); !slices.Equal(got, activities) {
			t.Errorf("the activities were %q, then %q", activities, got)
		}
	}
}

// What a tab missed while it hung comes late, to itself and to the others.
func TestSnapshotIfOldIsIgnoredUnlessFirst(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "1h")
	first := open(t, s.url+"/")
	first.waitFor("dashboard.counted > 0 && lines.slots.length >= 1")
	second := first.another(s.url + "/")
	second.waitFor("dashboard.id > 0")
	old := strings.ReplaceAll(madeUp("77%").json(), "Dashboard updated", "Long ago")
	eval[bool](first, fmt.Sprintf(`connection.receive({lastEventId: String(dashboard.id - 5000), data: %q}), true`, old))
	eval[bool](first, fmt.Sprintf(`tabs.channel.postMessage({snapshot: %s, id: dashboard.id - 5000}), tabs.channel.postMessage({streams: 12345}), true`, old))
	second.waitForText("#viewers", "12345") // it came after that
	for _, p := range []*tab{first, second} {
		if got := p.text("#cpu .value"); got == "77%" || len(p.activities()) > 0 {
			t.Errorf("an old snapshot is shown: %s, %q", got, p.activities())
		}
	}
	// The server's clock was put back, and it was started anew: that is no old snapshot.
	eval[bool](first, fmt.Sprintf(`connection.isFirst = true, connection.receive({lastEventId: String(dashboard.id - 5000), data: %q}), true`, old))
	for _, p := range []*tab{first, second} {
		p.waitForText("#cpu .value", "77%")
	}
}

func TestLocksRefusedLeaveThePageLive(t *testing.T) {
	t.Parallel()
	p := open(t, startServer(t).url+"/", `LockManager.prototype.request = () => Promise.reject(new DOMException("no cookies", "SecurityError"))`)
	p.waitForState("live")
}

func TestTimesAreTheServers(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	p := open(t, "about:blank", `Date.now = ((now) => () => now() + 3600e3)(Date.now)`) // a clock that is an hour ahead
	call(p, emulation.SetTimezoneOverride, emulation.SetTimezoneOverrideParams{TimezoneID: "Asia/Kathmandu"})
	p.do(chromedp.Navigate(s.url + "/"))
	p.waitFor("dashboard.counted > 0")
	at := time.Now()
	if got := p.text("#counted"); got != at.Format("at 15:04") && got != at.Add(-time.Minute).Format("at 15:04") {
		t.Errorf("the viewers are counted %q, and the server has %v", got, at)
	}
	p.mayFail()
	s.kill()
	p.waitForState("disconnected")
	got := strings.TrimSuffix(strings.TrimPrefix(p.text("#live"), "disconnected since "), ", trying again")
	if d := time.Since(at); got < at.Add(-time.Second).Format(time.TimeOnly) || got > at.Add(d+time.Second).Format(time.TimeOnly) {
		t.Errorf("disconnected since %s, and the server has %v", got, at)
	}
}

// The host is read more often than its snapshots are sent, and the history tells.
func TestLinesShowWhatRareSnapshotsLeaveOut(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "1h")
	s.follow(t)
	eventually(t, "some history", func() bool { return len(s.history(t).Samples) >= 3 })
	p := open(t, s.url+"/")
	p.waitFor("dashboard.counted > 0")
	p.waitFor("lines.slots.length >= 3")

	// A trigger sends the newest metrics again.
	p.do(chromedp.Click(chromedp.CSS("#test")))
	p.waitFor(`document.querySelector("#activities li")`)
	p.slots()
}

func TestServerStalledIsNoticedWithoutInterval(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "0")
	p := open(t, s.url+"/")
	p.waitFor("dashboard.interval === 0")
	p.mayFail()
	s.stop()
	eval[int](p, "connection.historyAt = 0") // it is asked for each 30 s
	p.waitForState("disconnected")
	s.proceed()
	eval[int](p, "connection.historyAt = 0")
	p.waitForState("live")
}

func TestStreamTextStaysText(t *testing.T) {
	t.Parallel()
	f := startFake(t)
	p := open(t, f.url+"/")
	const img = `<img src=x onerror="globalThis.hacked = true">`
	bad := madeUp(img, activity{img, img, img, `" onclick="hacked = true"` + img}, activity{"<b>", "</li></ol>" + img, "</span>", "activity-error"})
	bad.Status.Status, bad.Status.Message, bad.Status.Uptime, bad.Status.LastCheck, bad.Timestamp = img, img, img, img, img
	for _, id := range tiles {
		bad.Metrics[id] = img
	}
	f.send(t, time.Now(), bad.json())
	p.waitForText("#activities li .message", img)
	for _, selector := range []string{"#cpu .value", "#response_time .value", "#message", "#activities li .level"} {
		if got := p.text(selector); !strings.EqualFold(got, img) {
			t.Errorf("%s shows %q", selector, got)
		}
	}
	if got := p.activities(); len(got) != 2 || !strings.Contains(got[1], "</li></ol><img") {
		t.Errorf("the activities are %q", got)
	}
	at := time.Now()
	send := func(data string) {
		at = at.Add(time.Second) // no two have the same id
		f.send(t, at, data)
	}
	for i, data := range []string{`{}`, `null`, `[]`, `7`, `"<img>"`, `{`, `{"system_status":null,"metrics":7,"activities":"x"}`,
		`{"system_status":{"status":5,"message":{},"uptime":null},"metrics":{"cpu":{},"memory":[1],"disk":-1e400,"network":true},"activities":[null,1,[],{"time":{},"message":7},{}],"timestamp":{}}`,
		`{"system_status":"x","metrics":[],"activities":{"length":3}}`} {
		good := fmt.Sprintf("%d%%", 20+i)
		send(data)
		send(madeUp(good).json())
		p.waitForText("#cpu .value", good)
		p.waitForState("live")
	}
	if eval[bool](p, `!!globalThis.hacked || document.querySelectorAll("img, [onclick]").length > 0`) {
		t.Error("text of the stream became HTML")
	}
}

// A forwarder puts its last snapshot again so when nothing comes any more.
func TestStatusStaleIsGreyAndItsClockIgnored(t *testing.T) {
	t.Parallel()
	f := startFake(t)
	open(t, f.url+"/").seesStaleStatus(func(data string) { f.send(t, time.Now(), data) })
}

// isGrey tells whether the page shows that its metrics are old.
const isGrey = `["--line", "--text", "--ok"].every((name) => getComputedStyle(document.querySelector("main")).getPropertyValue(name)
	=== getComputedStyle(document.body).getPropertyValue("--muted"))`

func (p *tab) seesStaleStatus(send func(data string)) {
	p.Helper()
	long := madeUp("45%", activity{"04:05:06", "Deployed v42", "success", "activity-success"})
	long.Timestamp = time.Now().Add(-7 * time.Hour).Format(time.TimeOnly)
	long.Status.Status, long.Status.Message, long.Status.LastCheck = "stale", "No snapshot since "+long.Timestamp, long.Timestamp
	send(long.json())
	p.waitForState("live")
	for selector, want := range map[string]string{"#status": "Stale", "#live": "connected", "#message": long.Status.Message, "#checked": long.Timestamp, "#cpu .value": "45%"} {
		if got := p.text(selector); got != want {
			p.Errorf("%s is %q, want %q", selector, got, want)
		}
	}
	if got := eval[string](p, "document.title"); !strings.HasPrefix(got, "Stale · CPU 45%") {
		p.Errorf("the title is %q", got)
	}
	time.Sleep(1100 * time.Millisecond)
	send(long.json())
	if !eval[bool](p, isGrey) {
		p.Error("the old metrics are not grey")
	}
	if n := len(p.slots()); n > 0 {
		p.Errorf("the old metrics are drawn as %d new slots", n)
	}
	if got, now := eval[string](p, "ownClock(Date.now())"), time.Now(); got < now.Add(-2*time.Second).Format(time.TimeOnly) || got > now.Format(time.TimeOnly) {
		p.Errorf("it is %s on the page, and %v", got, now)
	}
	if got := p.activities(); len(got) != 1 {
		p.Errorf("the activities are %q", got)
	}
	send(madeUp("46%").json())
	p.waitForText("#cpu .value", "46%")
	if eval[bool](p, isGrey) || p.text("#status")+p.text("#live") != "Onlinelive" || len(p.slots()) != 1 {
		p.Errorf("fresh metrics are grey, %q, %q, or not drawn", p.text("#status"), p.text("#live"))
	}
}

func TestPageWorksBehindAPathPrefix(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "500ms")
	proxy := s.inFront(t, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if !strings.HasPrefix(r.URL.Path, "/some/prefix/") {
			t.Errorf("the page asks for %s", r.URL.Path)
		}
		http.StripPrefix("/some/prefix", next).ServeHTTP(w, r)
	})
	p := open(t, proxy.URL+"/some/prefix/")
	p.waitForState("live")
	p.waitFor("lines.slots.length > 0")
	p.do(chromedp.Click(chromedp.CSS("#test")))
	p.waitFor(`/broadcast/i.test(document.querySelector("#answer").textContent)`)
}

// Each other test fails at such a problem, too; this one shows that problems are seen.
func TestConsoleHasNoErrorAndNoViolation(t *testing.T) {
	t.Parallel()
	p := open(t, startServer(t, "-interval", "500ms").url+"/")
	p.waitForState("live")
	p.do(chromedp.Click(chromedp.CSS("#test")))
	p.waitFor(`document.querySelector("#activities li")`)
	if got := p.takeProblems(); len(got) > 0 {
		t.Errorf("the page's console has %q", got)
	}
	eval[bool](p, `document.body.insertAdjacentHTML("beforeend", '<i onclick="1" style="color: red"></i>'), setTimeout(() => nowhere), true`)
	all := ""
	eventually(t, "a violation and an exception are seen", func() bool {
		all += strings.Join(p.takeProblems(), "\n")
		return strings.Contains(all, "refused by policy") && strings.Contains(all, "nowhere is not defined")
	})
}

func TestLayoutNeverScrollsSideways(t *testing.T) {
	t.Parallel()
	f := startFake(t)
	p := open(t, f.url+"/")
	now := time.Now()
	s := madeUp("100%", activity{"15:04:05", strings.Repeat("unbreakable", 20), "warning", "activity-warning"})
	s.Status.Message, s.Status.Uptime = strings.Repeat("CPU at 99% over the last minute; ", 5), "1000 days, 23 hours"
	s.Metrics["network"], s.Metrics["response_time"] = "123456 Mbps", "12345ms"
	f.send(t, now, s.json())
	p.waitForState("live")
	for _, width := range []int64{320, 375, 768, 1280, 2560} {
		p.do(chromedp.EmulateViewport(width, 900))
		if d := eval[int](p, `document.scrollingElement.scrollWidth - document.documentElement.clientWidth`); d > 0 {
			t.Errorf("at %d px the page is %d px too wide", width, d)
		}
		cut := eval[[]string](p, `[...document.querySelectorAll("body *")].filter((e) => e.checkVisibility({visibilityProperty: true, opacityProperty: true})
			&& (e.getBoundingClientRect().right > innerWidth + 1 || e.clientWidth > 1 && e.scrollWidth > e.clientWidth + 1)).map((e) => e.outerHTML.slice(0, 80))`)
		if len(cut) > 0 {
			t.Errorf("at %d px these stand over an edge: %q", width, cut)
		}
	}
}
