package page

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/chromedp/chromedp"
)

// put makes body the external snapshot; remove ends that.
func (s *server) put(t *testing.T, body string) { s.changeSnapshot(t, "PUT", body) }

func (s *server) remove(t *testing.T) { s.changeSnapshot(t, "DELETE", "") }

func (s *server) changeSnapshot(t *testing.T, method, body string) {
	t.Helper()
	req, err := http.NewRequest(method, s.url+"/dashboard/snapshot", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusNoContent {
		t.Fatalf("%s /dashboard/snapshot: %s", method, resp.Status)
	}
}

// ownClock is a script after which advance can move the page's clock. seen are the states that
// the page was in since watchStates.
const ownClock = `globalThis.ahead = 0;
Date.now = ((now) => () => now() + ahead)(Date.now);
globalThis.watchStates = () => {
	globalThis.seen = new Set([document.body.dataset.state]);
	new MutationObserver(() => seen.add(document.body.dataset.state)).observe(document.body, {attributes: true});
};`

// advance moves the page's clock an hour ahead, in steps that are too short to be taken for sleep:
// 30 of a second, then 60 of a minute.
func (p *tab) advance() {
	p.Helper()
	eval[bool](p, `(async () => {
		for (let i = 0; i < 90; i++) {
			ahead += i < 30 ? 1e3 : 60e3;
			tick();
			await new Promise((resolve) => setTimeout(resolve, 10));
		}
		return true;
	})()`)
}

func (p *tab) seen() []string {
	p.Helper()
	return eval[[]string](p, "[...seen]")
}

func TestExternalNeverStaleByThePagesClock(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	var hold sync.Mutex // held while the history is not to be answered
	proxy := s.inFront(t, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.URL.Path == "/dashboard/history" {
			hold.Lock()
			defer hold.Unlock()
		}
		next.ServeHTTP(w, r)
	})
	before := open(t, proxy.URL+"/", ownClock) // it learns the interval of the host's own snapshots
	before.waitFor("dashboard.interval === 2 && dashboard.counted > 0")
	s.put(t, madeUp("45%").json())
	before.waitForCPU("45%")
	got := func() string {
		hold.Lock()
		defer hold.Unlock()
		return eval[string](before, `(() => { for (let i = 0; i < 7; i++) { ahead += 1e3; tick(); } return view.state(); })()`)
	}()
	if got != "live" {
		t.Errorf("before it knows that the interval ended, the page is %s", got)
	}
	before.waitFor("dashboard.interval === 0")
	after := open(t, s.url+"/", ownClock)
	for _, p := range []*tab{before, after} {
		p.waitForCPU("45%")
		p.waitForState("live")
		follower := p.another(eval[string](p, "location.href"), ownClock)
		follower.waitForState("live")
		eval[bool](p, "watchStates(), true")
		p.advance()
		if got := p.seen(); !slices.Equal(got, []string{"live"}) {
			t.Errorf("within an hour without another snapshot the page was %q", got)
		}
		if got := p.text("#live") + ", " + p.text("#status"); got != "live, Online" {
			t.Errorf("after an hour the page says %q", got)
		}
		if n := eval[int](p, "watched.streams"); n != 1 {
			t.Errorf("the page opened %d streams", n)
		}
		if got := eval[string](follower, "ahead = 3600e3, view.show(), view.state()"); got != "live" {
			t.Errorf("a tab that follows is %s", got)
		}
	}
	s.put(t, madeUp("46%").json())
	for _, p := range []*tab{before, after} {
		p.waitForCPU("46%")
		p.waitForState("live")
	}
	s.remove(t) // then the host's own come again, at their interval
	for _, p := range []*tab{before, after} {
		p.waitFor(`document.querySelector("#cpu .value").textContent !== "46%"`)
		eval[int](p, "connection.historyAt = 0") // it is fetched each 30 s
		p.waitFor("dashboard.interval === 2")
	}
}

func TestEdgeWaitsForTheFirstExternalSnapshot(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-edge")
	p := open(t, s.url+"/", ownClock)
	p.waitForText("#viewers", "1")
	eval[bool](p, "watchStates(), true")
	p.advance()
	if got := p.seen(); !slices.Equal(got, []string{"waiting"}) {
		t.Errorf("within an hour without a snapshot the page was %q", got)
	}
	if n := eval[int](p, "watched.streams"); n != 1 {
		t.Errorf("the page opened %d streams", n)
	}
	for selector, want := range map[string]string{"#live": "waiting", "#status": "Waiting", "#message": "No snapshot has come yet.", "#cpu .value": "N/A"} {
		if got := p.text(selector); got != want {
			t.Errorf("%s is %q, want %q", selector, got, want)
		}
	}
	p.seesStaleStatus(func(data string) { s.put(t, data) })

	// An edge that was started anew has no snapshot. What the page shows is an old one.
	p.mayFail()
	s.kill()
	p.waitForState("disconnected")
	s.restart(t)
	p.waitForState("waiting")
	if got := p.text("#live") + ", " + p.text("#status"); got != "waiting, Was online" || !eval[bool](p, isGrey) {
		t.Errorf("an old snapshot is shown as %q, grey: %v", got, eval[bool](p, isGrey))
	}
	follower := p.another(s.url + "/")
	follower.waitFor("dashboard.snapshot")
	follower.waitForState("waiting")
	s.put(t, madeUp("47%").json())
	for _, p := range []*tab{p, follower} {
		p.waitForCPU("47%")
		p.waitForState("live")
	}
}

func TestEdgeKnowsItsSourceSoon(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-edge")
	p := open(t, s.url+"/")
	p.waitFor(`dashboard.source?.kind === "none"`)
	s.put(t, external().json())
	p.waitForSource("external")
	p.waitFor(`document.querySelector("#age").textContent.endsWith(" s ago")`)
}

func TestEdgeWaitsAgainAfterDelete(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-edge")
	s.put(t, external().json())
	p := open(t, s.url+"/")
	p.waitForSource("external")
	s.remove(t)
	eval[int](p, "connection.historyAt = 0")
	p.waitForState("waiting")
	if got := p.text("#status"); got != "Was online" || !eval[bool](p, isGrey) {
		t.Errorf("an old snapshot is shown as %q, grey: %v", got, eval[bool](p, isGrey))
	}
	s.put(t, external().json())
	p.waitForState("live")
	p.waitForSource("external")
}

// A forwarder puts its newest snapshot again whenever its upstream sends a comment.
func TestEdgeIsLiveWhenPutTheSameAgain(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-edge", "-interval", "0")
	p := open(t, s.url+"/", ownClock)
	same := madeUp("45%", activity{"15:04:05", "Deployed v42", "success", "activity-success"}).json()
	s.put(t, same)
	p.waitForCPU("45%")
	p.waitForState("live")
	eval[bool](p, "watchStates(), true")
	for range 2 {
		id := eval[int64](p, "dashboard.id")
		s.put(t, same)
		p.waitFor(fmt.Sprintf("dashboard.id > %d", id))
		p.advance()
	}
	if got := p.seen(); !slices.Equal(got, []string{"live"}) {
		t.Errorf("the page was %q", got)
	}
	if got := p.activities(); len(got) != 1 {
		t.Errorf("the activities are %q", got)
	}
	if n := s.debug(t).Opened; n != 1 {
		t.Errorf("the page opened %d streams", n)
	}
}

func TestTestBroadcastAnswerIsShown(t *testing.T) {
	t.Parallel()
	const sentence = "There is no external snapshot yet: put one to /dashboard/snapshot."
	var status int
	var kind, body string
	p := open(t, startServer(t).inFront(t, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.URL.Path != "/dashboard/trigger-test" {
			next.ServeHTTP(w, r)
			return
		}
		w.Header().Set("Content-Type", kind)
		w.WriteHeader(status)
		fmt.Fprint(w, body)
	}).URL+"/")
	p.waitForState("live")
	p.mayFail()
	for _, c := range []struct {
		status           int
		kind, body, want string
	}{
		{200, "application/json", `{"id":1,"message":"External snapshot sent again","streams":1}`, "External snapshot sent again to 1 stream"},
		{200, "application/json", `{"id":2,"message":"Test broadcast sent","streams":20}`, "Test broadcast sent to 20 streams"},
		{409, "text/plain; charset=utf-8", sentence + "\n", sentence},
		{502, "text/html", "<html><title>502 Bad Gateway</title></html>", "The server answers 502."},
	} {
		status, kind, body = c.status, c.kind, c.body
		p.do(chromedp.Click(chromedp.CSS("#test")))
		p.waitForText("#answer", c.want)
	}
	p.waitForText("#viewers", "20")
}
