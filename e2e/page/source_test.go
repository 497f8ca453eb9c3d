package page

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
)

// external is a snapshot that cannot be of this host.
func external() snapshot {
	s := madeUp("45%")
	s.Metrics["disk"] = "77%"
	s.Status.Message = "Put by a test"
	return s
}

// keepPutting puts another external snapshot twice a second, until the function it returns is called.
func (s *server) keepPutting(t *testing.T) (stop func()) {
	done, ended := make(chan bool), make(chan bool)
	go func() {
		defer close(ended)
		for n := 0; ; n++ {
			put := external()
			put.Status.LastCheck = fmt.Sprintf("check %d", n)
			s.put(t, put.json())
			select {
			case <-time.After(500 * time.Millisecond):
			case <-done:
				return
			}
		}
	}()
	stop = sync.OnceFunc(func() { close(done); <-ended })
	t.Cleanup(stop)
	return stop
}

// waitForSource waits for the source and for lines of it alone.
func (p *tab) waitForSource(kind string) {
	p.Helper()
	p.waitFor(fmt.Sprintf("dashboard.source?.kind === %q", kind))
	isExternal := "lines.slots.every(({disk}) => disk.mean === 77)"
	if kind == "external" {
		p.waitFor("lines.slots.length > 0 && " + isExternal)
	} else {
		p.waitFor("lines.slots.length > 0 && lines.slots.every(({disk}) => disk?.mean !== 77)")
	}
}

func TestSourceChangeBeginsTheLinesAnew(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "500ms")
	p := open(t, s.url+"/")
	p.waitFor("lines.slots.length >= 2")
	follower := p.another(s.url + "/")
	follower.waitFor("lines.slots.length >= 2")
	first := p.slots()[0].Time

	stop := s.keepPutting(t)
	for _, p := range []*tab{p, follower} {
		p.waitForSource("external")
		if got := p.text("#disk .highest"); got != "77%" {
			t.Errorf("the highest of an external snapshot is %s", got)
		}
	}

	stop()
	s.remove(t)
	for _, p := range []*tab{p, follower} {
		p.waitForSource("host")
		p.waitFor(fmt.Sprintf("lines.slots[0].time === %d", first))
		p.waitFor(`document.querySelector("#disk .highest").textContent !== "77%"`)
	}
}

func TestSourceOfAnotherServerBeginsAnew(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "500ms")
	var replaced atomic.Pointer[server]
	proxy := s.inFront(t, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if other := replaced.Load(); other != nil {
			next = reverseProxy(other.url)
		}
		next.ServeHTTP(w, r)
	})
	p := open(t, proxy.URL+"/")
	p.waitFor("lines.slots.length >= 3")
	p.mayFail()
	other := startServer(t, "-interval", "500ms")
	replaced.Store(other)
	proxy.CloseClientConnections()
	since := other.history(t).Source.Since
	p.waitFor(fmt.Sprintf("dashboard.source.since === %d", since))
	p.waitFor("lines.slots.length >= 2")
	for _, slot := range p.slots() {
		if slot.Time < since-2000 {
			t.Errorf("a slot is %d ms older than the server", since-slot.Time)
		}
	}
	p.waitForHistory(other)
}

// A snapshot that does not continue the one before may be of another source.
func TestSourceIsAskedForAfterABreak(t *testing.T) {
	t.Parallel()
	f := startFake(t)
	f.tell(func(h *history) { h.Interval = 3600 }) // no snapshot is late
	p := open(t, f.url+"/")
	old := activity{"15:04:05", "Deployed v42", "success", "activity-success"}
	s := madeUp("45%", old)
	s.Status.Message = "CPU at 97% over the last minute, since 15:04:05"
	at := time.Now()
	send := func() {
		t.Helper()
		at = at.Add(100 * time.Millisecond)
		f.send(t, at, s.json())
		p.waitForCPU(s.Metrics["cpu"])
	}
	send()
	p.waitFor("dashboard.counted > 0")
	time.Sleep(1200 * time.Millisecond) // longer than a request may be delayed
	f.queries()

	continuing := []string{"98", "5"}
	for _, cpu := range continuing {
		s.Metrics["cpu"] = cpu + "%"
		s.Status.Message = "CPU at " + cpu + "% over the last minute, since 15:04:05"
		added := activity{"15:04:0" + cpu[:1], "Added " + cpu, "info", "activity-info"}
		s.Activities = slices.Insert(s.Activities, 1, added)
		send()
	}
	time.Sleep(1200 * time.Millisecond)
	if got := f.queries(); len(got) > 0 {
		t.Errorf("snapshots that continue ask for the history %d times", len(got))
	}

	for _, c := range []struct {
		what   string
		change func()
	}{
		{"status", func() { s.Status.Status = "degraded" }},
		{"message", func() { s.Status.Message = "Memory at 91%, since 15:04:05" }},
		{"key that is new", func() { s.Metrics["queue"] = "7 jobs" }},
		{"key that is gone", func() { delete(s.Metrics, "queue") }},
		{"activities that are gone", func() { s.Activities = s.Activities[:1] }},
	} {
		c.change()
		send()
		eventually(t, "a request after another "+c.what, func() bool { return len(f.asks()) > 0 })
		time.Sleep(100 * time.Millisecond)
		if got := f.queries(); len(got) != 1 {
			t.Errorf("after another %s there are %d requests: %q", c.what, len(got), got)
		}
	}
}

// Ten activities at a time are known, and a flood pushes them all off.
func TestSourceFloodAsksRarely(t *testing.T) {
	t.Parallel()
	f := startFake(t)
	p := open(t, f.url+"/")
	f.send(t, time.Now(), madeUp("10%").json())
	p.waitForCPU("10%")
	p.waitFor("dashboard.counted > 0")
	f.queries()
	begin := time.Now()
	for i := range 600 {
		var flood []activity
		for j := range 10 {
			message := fmt.Sprintf("Activity %d", 10*i+9-j)
			flood = append(flood, activity{"15:04:05", message, "info", "activity-info"})
		}
		f.send(t, begin.Add(time.Duration(i)*time.Millisecond), madeUp("20%", flood...).json())
		time.Sleep(5 * time.Millisecond)
	}
	p.waitForText("#activities .message", "Activity 5999")
	most := 2 + int(time.Since(begin).Seconds()*4)
	if got := f.queries(); len(got) > most {
		t.Errorf("600 snapshots that do not continue asked %d times, want %d at most", len(got), most)
	}
}

func TestSourceFlappingEndsRight(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "500ms")
	p := open(t, s.url+"/")
	p.waitFor("lines.slots.length >= 2")
	for range 5 {
		s.put(t, external().json())
		time.Sleep(150 * time.Millisecond)
		s.remove(t)
		time.Sleep(150 * time.Millisecond)
	}
	p.waitForSource("host")
	stop := s.keepPutting(t)
	p.waitForSource("external")
	stop()
	s.remove(t)
	p.waitForSource("host")
}

// What was asked before the source changed is answered after it.
func TestSourceLateHistoryIsPutRight(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "500ms")
	var hold sync.Mutex // held while no answer is to arrive
	proxy := s.inFront(t, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.URL.Path != "/dashboard/history" {
			next.ServeHTTP(w, r)
			return
		}
		answer := httptest.NewRecorder()
		next.ServeHTTP(answer, r)
		hold.Lock()
		defer hold.Unlock()
		w.Write(answer.Body.Bytes())
	})
	p := open(t, proxy.URL+"/")
	p.waitFor("lines.slots.length >= 2")
	func() {
		hold.Lock()
		defer hold.Unlock()
		eval[int](p, "connection.historyAt = 0")
		p.waitFor("connection.historyAt > 0")
		s.put(t, external().json())
		p.waitForCPU("45%")
		time.Sleep(1500 * time.Millisecond) // it would ask again by now
	}()
	p.waitFor(`dashboard.source.kind === "external"`)
	s.keepPutting(t)
	p.waitForSource("external")
}

// Answers may arrive in another order than they were asked for.
func TestSourceLateAnswerIsDropped(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "500ms")
	holding := &atomic.Bool{}
	held := make(chan bool)
	var once sync.Once
	release := func() { once.Do(func() { close(held) }) }
	proxy := s.inFront(t, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.URL.Path != "/dashboard/history" || !holding.CompareAndSwap(true, false) {
			next.ServeHTTP(w, r)
			return
		}
		answer := httptest.NewRecorder()
		next.ServeHTTP(answer, r)
		<-held
		w.Write(answer.Body.Bytes())
	})
	t.Cleanup(release) // before the proxy closes
	p := open(t, proxy.URL+"/")
	p.waitFor("lines.slots.length >= 2 && dashboard.counted > 0")
	holding.Store(true)
	eval[int](p, "connection.historyAt = 0")
	eventually(t, "an answer is held", func() bool { return !holding.Load() })

	s.keepPutting(t)
	p.waitForSource("external")
	counted := eval[int64](p, "dashboard.counted")
	release()
	eval[int](p, "connection.historyAt = 0")
	p.waitFor(fmt.Sprintf("dashboard.counted > %d", counted))
	p.waitForSource("external")
	if got := p.text("#disk .highest"); got != "77%" {
		t.Errorf("the highest is %s", got)
	}
}

// Nobody knows when the next external snapshot comes, and the stream is open.
func TestExternalLivesWithoutAHistory(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-edge")
	s.put(t, external().json())
	var isBroken atomic.Bool
	var asked atomic.Int32
	proxy := s.inFront(t, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if isBroken.Load() && r.URL.Path == "/dashboard/history" {
			asked.Add(1)
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		next.ServeHTTP(w, r)
	})
	p := open(t, proxy.URL+"/", ownClock)
	p.waitForSource("external")
	p.mayFail()
	isBroken.Store(true)
	eval[bool](p, "watchStates(), true")
	for range 3 {
		n := asked.Load()
		eval[int](p, "connection.historyAt = 0")
		eventually(t, "another request for the history", func() bool { return asked.Load() > n })
		eval[bool](p, drawn)
	}
	time.Sleep(time.Second) // for the last answer
	if got := p.seen(); !slices.Equal(got, []string{"live"}) {
		t.Errorf("the page was %q", got)
	}
	if n := eval[int](p, "watched.streams"); n != 1 {
		t.Errorf("the page opened %d streams", n)
	}
}

func TestExternalLinesBeginEmptyAtEachLoad(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-edge")
	s.put(t, external().json())
	p := open(t, s.url+"/")
	p.waitForSource("external")
	first := p.slots()[0].Time
	p.waitFor(fmt.Sprintf("Date.now() > %d", first+2000)) // in another slot
	p.do(chromedp.Navigate(s.url + "/"))
	p.waitForSource("external")
	if got := p.slots(); len(got) != 1 {
		t.Errorf("after another load there are %d slots", len(got))
	}
}

// The server may send it again and again, to others or at its interval.
func TestExternalAgeIsThatOfItsPut(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "500ms")
	s.put(t, external().json())
	begun := time.Now()
	p := open(t, s.url+"/")
	p.waitForSource("external")
	const age = `parseInt(document.querySelector("#age").textContent)`
	p.waitFor(age + " >= 4")
	s.follow(t) // another stream
	later := open(t, s.url+"/")
	later.waitForSource("external")
	later.waitFor(age + " >= 5")
	if got := eval[float64](p, age); got > time.Since(begun).Seconds()+1 {
		t.Errorf("after %v the age is %v s", time.Since(begun), got)
	}
}

func TestExternalAgeIsShown(t *testing.T) {
	t.Parallel()
	f := startFake(t)
	f.tell(func(h *history) {
		h.Interval = 0
		h.Source.Kind = "external"
	})
	p := open(t, f.url+"/")
	f.send(t, time.Now().Add(-63*time.Minute), external().json())
	p.waitFor(`/^6\d min ago$|^1 h.* ago$/.test(document.querySelector("#age").textContent.trim())`)
	f.send(t, time.Now(), external().json())
	p.waitFor(`/^\d s ago$/.test(document.querySelector("#age").textContent.trim())`)
	if !p.isShown("#age") {
		t.Error("the age is not shown")
	}
	if got := p.text("#live") + ", " + p.text("#status"); got != "live, Online" {
		t.Errorf("the page says %q", got)
	}

	// The host's own snapshots come at an interval.
	f.tell(func(h *history) {
		h.Interval = 2
		h.Source.Kind = "host"
	})
	eval[int](p, "connection.historyAt = 0")
	p.waitFor(`dashboard.source.kind === "host"`)
	if p.isShown("#age") {
		t.Error("the age of the host's own snapshot is shown")
	}
}
