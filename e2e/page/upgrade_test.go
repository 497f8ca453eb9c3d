package page

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// nextVersion builds the server with another page, whose heading is "Dashboard 2".
var nextVersion = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp(filepath.Dir(binary), "next")
	if err != nil {
		return "", err
	}
	for _, name := range []string{"main.go", "go.mod", "dashboard.html"} {
		text, err := os.ReadFile(filepath.Join("../..", name))
		if err != nil {
			return "", err
		}
		changed := strings.Replace(string(text), "<h1>Dashboard", "<h1>Dashboard 2", 1)
		if err := os.WriteFile(filepath.Join(dir, name), []byte(changed), 0o600); err != nil {
			return "", err
		}
	}
	path := filepath.Join(dir, "sse-server")
	build := exec.Command("go", "build", "-o", path, "main.go")
	build.Dir = dir
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building the next version: %v\n%s", err, out)
	}
	return path, nil
})

// startNext starts the next version.
func startNext(t *testing.T, args ...string) *server {
	t.Helper()
	path, err := nextVersion()
	if err != nil {
		t.Fatal(err)
	}
	s := &server{args: args, path: path}
	s.start(t, "127.0.0.1:0")
	t.Cleanup(func() { s.kill() })
	return s
}

// countLoads is a script that counts how often the page was loaded.
const countLoads = `sessionStorage.loads = Number(sessionStorage.loads ?? 0) + 1;`

func (p *tab) loads() int {
	p.Helper()
	return eval[int](p, "Number(sessionStorage.loads)")
}

const isNext = `document.querySelector("h1")?.textContent.startsWith("Dashboard 2")`

func TestUpgradeReachesAnOpenTab(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "500ms")
	p := open(t, s.url+"/?kiosk#here", countLoads)
	p.waitForState("live")
	follower := p.another(s.url+"/", countLoads)
	follower.waitForState("live")
	p.mayFail()
	follower.mayFail()
	s.kill()
	path, err := nextVersion()
	if err != nil {
		t.Fatal(err)
	}
	s.path = path
	s.restart(t)
	hash := s.history(t).Page
	for _, p := range []*tab{p, follower} {
		p.waitFor(isNext)
		p.waitForState("live")
		p.waitFor("dashboard.counted > 0")
		if got := p.attribute("meta[name=page-hash]", "content"); got != hash {
			t.Errorf("the page has the hash %q, want %q", got, hash)
		}
		if got := eval[[]string](p, "history.state.reloadedFor"); len(got) != 1 || got[0] != hash {
			t.Errorf("it was loaded again for %q", got)
		}
		if got := p.loads(); got != 2 {
			t.Errorf("it was loaded %d times, want 2", got)
		}
	}
	if got := eval[string](p, "location.search + location.hash"); got != "?kiosk#here" {
		t.Errorf("its address became %q", got)
	}
}

// twoVersions is a proxy before both versions. choose tells which one answers a request.
func twoVersions(t *testing.T, choose func(r *http.Request) bool) string {
	t.Helper()
	s := startServer(t, "-interval", "500ms")
	next := reverseProxy(startNext(t, "-interval", "500ms").url)
	return s.inFront(t, func(w http.ResponseWriter, r *http.Request, own http.Handler) {
		if choose(r) {
			own = next
		}
		own.ServeHTTP(w, r)
	}).URL
}

// A cache on the way gives the old page whatever the browser asks for.
func TestUpgradeBehindACacheIsNoLoop(t *testing.T) {
	t.Parallel()
	var pages atomic.Int32
	url := twoVersions(t, func(r *http.Request) bool {
		if r.URL.Path == "/" {
			pages.Add(1)
		}
		return r.URL.Path != "/"
	})
	p := open(t, url+"/", countLoads)
	p.waitForState("live")
	for range 5 {
		p.waitFor("dashboard.counted > 0")
		eval[int](p, "dashboard.counted = 0, connection.historyAt = 0")
	}
	p.waitFor("dashboard.counted > 0")
	eventually(t, "the page looks for its new version", func() bool { return pages.Load() >= 2 })
	if got := p.loads(); got != 1 {
		t.Errorf("the page was loaded %d times, want once", got)
	}
	if got := pages.Load(); got > 7 {
		t.Errorf("it was asked for %d times", got)
	}
	p.waitForState("live")
}

// One of two servers behind one address is new, and requests go to either in turns.
func TestUpgradeOfOneOfTwoIsNoLoop(t *testing.T) {
	t.Parallel()
	var pages, histories atomic.Int32
	url := twoVersions(t, func(r *http.Request) bool {
		switch r.URL.Path {
		case "/":
			return pages.Add(1)%2 == 0
		case "/dashboard/history":
			return histories.Add(1)%2 == 0
		}
		return false
	})
	p := open(t, url+"/", countLoads)
	p.waitForState("live")
	for range 12 {
		n := histories.Load()
		p.waitFor("(connection.historyAt = 0, true)")
		eventually(t, "another history", func() bool { return histories.Load() > n })
		p.waitForState("live")
	}
	if got := p.loads(); got > 3 {
		t.Errorf("the page was loaded %d times, want 3 at most", got)
	}
	p.takeProblems() // a request that a load has cut off
}

func TestUpgradeFailsQuietly(t *testing.T) {
	t.Parallel()
	var loaded, failed atomic.Int32
	s := startServer(t, "-interval", "500ms")
	next := reverseProxy(startNext(t, "-interval", "500ms").url)
	proxy := s.inFront(t, func(w http.ResponseWriter, r *http.Request, own http.Handler) {
		switch {
		case r.URL.Path != "/":
			next.ServeHTTP(w, r)
		case loaded.Add(1) > 1:
			failed.Add(1)
			w.WriteHeader(http.StatusBadGateway)
			fmt.Fprint(w, s.history(t).Page)
		default:
			own.ServeHTTP(w, r)
		}
	})
	p := open(t, proxy.URL+"/", countLoads)
	p.mayFail()
	p.waitForState("live")
	eventually(t, "the page looks for its new version", func() bool { return failed.Load() > 0 })
	eval[int](p, "dashboard.counted = 0, connection.historyAt = 0")
	p.waitFor("dashboard.counted > 0")
	p.waitForState("live")
	if got := p.loads(); got != 1 {
		t.Errorf("the page was loaded %d times, want once", got)
	}
}

// Pages of two versions may not understand each other.
func TestUpgradeKeepsVersionsApart(t *testing.T) {
	t.Parallel()
	url := twoVersions(t, func(r *http.Request) bool { return r.URL.Query().Has("next") })
	p := open(t, url+"/")
	p.waitFor("tabs.isHolder")
	p.waitForState("live")
	next := p.another(url + "/?next")
	next.waitFor(isNext)
	next.waitFor("tabs.isHolder")
	next.waitForState("live")
	if !eval[bool](p, "tabs.isHolder") || !eval[bool](p, "!("+isNext+")") {
		t.Error("the page of the other version lost its stream")
	}
	eval[bool](next, "tabs.channel.postMessage({...dashboard, streams: 12345}), true")
	another := next.another(url + "/?next")
	another.waitForState("live")
	if got := p.text("#viewers"); got == "12345" {
		t.Error("a tab hears those of another version")
	}
}
