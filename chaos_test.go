package main

import (
	"bufio"
	"fmt"
	"io"
	"math/rand"
	"net"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// chaosTime is how long faults are thrown: SSE_CHAOS, or some seconds.
func chaosTime(t testing.TB) time.Duration {
	if d, err := time.ParseDuration(os.Getenv("SSE_CHAOS")); err == nil {
		return d
	} else if testing.Short() {
		return 3 * time.Second
	}
	return 6 * time.Second
}

// A reader reads its stream as a well-behaved client does, and notes when each snapshot came.
type reader struct {
	mu    sync.Mutex // guards following
	ids   []int64
	delay []time.Duration
}

func (r *reader) follow(t testing.TB, addr string, stop <-chan struct{}) {
	c := dial(t, addr, "GET /dashboard/stream HTTP/1.1\r\nHost: localhost\r\nUser-Agent: good\r\n\r\n")
	defer c.Close()
	go func() { <-stop; c.Close() }()
	for lines := bufio.NewScanner(c.r); lines.Scan(); {
		if id, ok := strings.CutPrefix(lines.Text(), "id: "); ok {
			n, _ := strconv.ParseInt(id, 10, 64)
			r.mu.Lock()
			r.ids = append(r.ids, n)
			r.delay = append(r.delay, time.Since(time.UnixMilli(n)))
			r.mu.Unlock()
		}
	}
}

// faults are what strange clients do, each once; many of each run at a time.
var faults = map[string]func(addr string, stop <-chan struct{}){
	"readers that stop reading": func(addr string, stop <-chan struct{}) {
		if c := open(addr, "GET /dashboard/stream HTTP/1.1\r\nHost: localhost\r\n\r\n"); c != nil {
			c.(*net.TCPConn).SetReadBuffer(1 << 10)
			<-stop
			c.Close()
		}
	},
	"one byte of a request a second": func(addr string, stop <-chan struct{}) {
		c := open(addr, "G")
		for i := 0; c != nil; i++ {
			select {
			case <-stop:
			case <-time.After(time.Second):
				if _, err := c.Write([]byte{"ET /health HTTP/1.1\r\nHost: localhost\r\n"[i%38]}); err == nil {
					continue
				}
			}
			c.Close()
			return
		}
	},
	"resets": func(addr string, _ <-chan struct{}) {
		if c := open(addr, "GET /dashboard/stream HTTP/1.1\r\nHost: localhost\r\n\r\n"); c != nil {
			c.Read(make([]byte, 1+rand.Intn(400)))
			c.(*net.TCPConn).SetLinger(0)
			c.Close()
		}
	},
	"streams past the limit": func(addr string, _ <-chan struct{}) {
		for i := 0; i < 50; i++ {
			if c := open(addr, "GET /dashboard/stream HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n"); c != nil {
				defer c.Close()
			}
		}
		time.Sleep(100 * time.Millisecond)
	},
	"malformed requests": func(addr string, _ <-chan struct{}) {
		b := make([]byte, 200)
		rand.Read(b)
		for _, text := range []string{string(b), "GET\r\n\r\n", "GET / HTTP/9.9\r\n\r\n", "GET /dashboard/stream HTTP/1.1\r\nHost: a b\r\n\r\n",
			"POST /dashboard/activities HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc"} {
			if c := open(addr, text); c != nil {
				c.(*net.TCPConn).CloseWrite()
				io.Copy(io.Discard, c)
				c.Close()
			}
		}
	},
	"oversized heads and bodies": func(addr string, _ <-chan struct{}) {
		for _, text := range []string{"GET /" + strings.Repeat("x", 100<<10) + " HTTP/1.1\r\n\r\n",
			"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + strings.Repeat("x", 100<<10) + "\r\n\r\n",
			"PUT /dashboard/snapshot HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 1000000000\r\n\r\n" + strings.Repeat("x", 1<<20)} {
			if c := open(addr, text); c != nil {
				io.Copy(io.Discard, c)
				c.Close()
			}
		}
	},
	"triggers and posts": func(addr string, _ <-chan struct{}) {
		for i := 0; i < 20; i++ {
			if resp, err := http.Get("http://" + addr + "/dashboard/trigger-test"); err == nil {
				resp.Body.Close()
			}
			resp, err := http.Post("http://"+addr+"/dashboard/activities", "application/json", strings.NewReader(`{"message":"flood"}`))
			if err == nil {
				resp.Body.Close()
			}
		}
	},
}

// open sends text on a connection of its own; nil if there is none to be had.
func open(addr, text string) net.Conn {
	c, err := net.DialTimeout("tcp", addr, time.Second)
	if err != nil {
		return nil
	}
	c.SetDeadline(time.Now().Add(5 * time.Second))
	io.WriteString(c, text)
	c.SetDeadline(time.Time{})
	c.SetReadDeadline(time.Now().Add(2 * time.Second))
	return c
}

// All faults at once: streams that read miss nothing, /health answers, and what was used comes back.
func TestChaosHarmsNoStreamThatReads(t *testing.T) {
	const good, most = 40, 160
	p := startBinary(t, nil, "-interval", "100ms", "-heartbeat", "1s", "-max-streams", strconv.Itoa(most))
	s := &server{addr: p.addr}
	stop, stopGood := make(chan struct{}), make(chan struct{})
	readers := make([]*reader, good)
	var reading sync.WaitGroup
	for i := range readers {
		r := &reader{}
		readers[i] = r
		reading.Add(1)
		go func() { defer reading.Done(); r.follow(t, p.addr, stopGood) }()
	}
	eventually(t, "the good streams are open", func() bool { m, _ := s.metrics(t); return m["sse_streams_open"] == good })
	time.Sleep(min(chaosTime(t)/2, 10*time.Second))
	before, _ := s.metrics(t)
	quiet := delays(readers)

	var thrown sync.Map
	var throwing sync.WaitGroup
	for name, throw := range faults {
		name, throw := name, throw
		count := &atomic.Int64{}
		thrown.Store(name, count)
		workers := map[string]int{"readers that stop reading": 100, "one byte of a request a second": 50, "resets": 4}[name]
		for i := 0; i < max(workers, 1); i++ {
			throwing.Add(1)
			go func() {
				defer throwing.Done()
				for {
					select {
					case <-stop:
						return
					default:
						throw(p.addr, stop)
						count.Add(1)
						time.Sleep(time.Millisecond)
					}
				}
			}()
		}
	}
	var worst time.Duration
	for end := time.Now().Add(chaosTime(t)); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		start := time.Now()
		if code, _, body := s.request(t, "GET", "/health"); code != 200 || body != "OK" {
			t.Errorf("/health answers %d %q", code, body)
		}
		worst = max(worst, time.Since(start))
	}
	loud := delays(readers)
	close(stop)
	throwing.Wait()
	http.DefaultClient.CloseIdleConnections()
	thrown.Range(func(name, n any) bool { t.Logf("%d × %s", n.(*atomic.Int64).Load(), name); return true })
	t.Logf("snapshots after %v (p99), quiet %v; /health within %v", loud, quiet, worst)
	if worst > 2*time.Second {
		t.Errorf("/health took %v", worst)
	}
	if loud > max(3*quiet, 500*time.Millisecond) {
		t.Errorf("the p99 of the delay went from %v to %v", quiet, loud)
	}

	if d := time.Second; !testing.Short() { // stopped, as by a debugger or a laptop's lid
		p.cmd.Process.Signal(syscall.SIGSTOP)
		time.Sleep(d + chaosTime(t)/10)
		p.cmd.Process.Signal(syscall.SIGCONT)
	}
	eventually(t, "only the good streams are left", func() bool { m, _ := s.metrics(t); return m["sse_streams_open"] == good })
	after := map[string]float64{}
	eventually(t, "descriptors and goroutines come back", func() bool {
		after, _ = s.metrics(t)
		return after["process_open_fds"] <= before["process_open_fds"]+5 && after["go_goroutines"] <= before["go_goroutines"]+5
	})
	t.Logf("resident %.1f MB before, %.1f after; %.0f streams opened, %.0f refused, %.0f frames skipped", before["process_resident_memory_bytes"]/1e6,
		after["process_resident_memory_bytes"]/1e6, after["sse_streams_opened_total"], after["sse_streams_rejected_total"], after["sse_frames_skipped_total"])
	if after["process_resident_memory_bytes"] > 3*before["process_resident_memory_bytes"] {
		t.Errorf("memory went from %v to %v bytes", before["process_resident_memory_bytes"], after["process_resident_memory_bytes"])
	}
	if after["sse_streams_rejected_total"] == 0 {
		t.Error("no stream was refused")
	}
	close(stopGood)
	reading.Wait()
	mustMissNothing(t, readers)
	p.stop(t)
	if log := p.log(); strings.Contains(log, "panic") {
		t.Errorf("the log is\n%s", log)
	}
}

// delays gives the p99 of the delay of the snapshots so far, and forgets them.
func delays(readers []*reader) time.Duration {
	var all []time.Duration
	for _, r := range readers {
		r.mu.Lock()
		all = append(all, r.delay...)
		r.delay = nil
		r.mu.Unlock()
	}
	slices.Sort(all)
	return all[len(all)*99/100]
}

// mustMissNothing checks that each reader has each snapshot that another has, from its first to its last.
func mustMissNothing(t *testing.T, readers []*reader) {
	t.Helper()
	all := map[int64]bool{}
	var newest int64
	for _, r := range readers {
		for _, id := range r.ids {
			all[id] = true
		}
		newest = max(newest, r.ids[len(r.ids)-1])
	}
	for i, r := range readers {
		want := 0
		for id := range all {
			if id >= r.ids[0] && id <= r.ids[len(r.ids)-1] {
				want++
			}
		}
		if len(r.ids) != want || !slices.IsSorted(r.ids) || r.ids[len(r.ids)-1] < newest-2000 {
			t.Errorf("stream %d has %d of %d snapshots", i, len(r.ids), want)
		}
	}
	t.Logf("%d streams had each of %d snapshots", len(readers), len(all))
}

// The server's streams all come back to the next process on its port, none refused.
func TestChaosOfAKilledServerBringsAllStreamsBack(t *testing.T) {
	clients := 300
	if chaosTime(t) > time.Minute {
		clients = 5000
	}
	addr := freeAddr(t)
	p := startBinary(t, nil, "-addr", addr)
	var refused atomic.Int64
	stop := make(chan struct{})
	var running sync.WaitGroup
	back := make(chan time.Time, clients)
	var second atomic.Int64 // when the first process was killed, in Unix ms
	for i := 0; i < clients; i++ {
		running.Add(1)
		go func() {
			defer running.Done()
			retry := 3 * time.Second
			for {
				c, err := net.Dial("tcp", addr)
				if err == nil {
					io.WriteString(c, "GET /dashboard/stream HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n")
					done := make(chan struct{})
					go func() {
						select {
						case <-stop:
							c.Close()
						case <-done:
						}
					}()
					for lines := bufio.NewScanner(c); lines.Scan(); {
						if ms, ok := strings.CutPrefix(lines.Text(), "retry: "); ok {
							n, _ := strconv.Atoi(ms)
							retry = time.Duration(n) * time.Millisecond
						} else if strings.HasPrefix(lines.Text(), ": full") {
							refused.Add(1)
						} else if id, ok := strings.CutPrefix(lines.Text(), "id: "); ok && second.Load() > 0 {
							if n, _ := strconv.ParseInt(id, 10, 64); n < second.Load() {
								continue // of the first process
							}
							back <- time.Now()
							<-stop
							return
						}
					}
					close(done)
					c.Close()
				}
				select {
				case <-stop:
					return
				case <-time.After(retry):
				}
			}
		}()
	}
	s := &server{addr: addr}
	eventually(t, "all streams are open", func() bool { m, _ := s.metrics(t); return m["sse_streams_open"] == float64(clients) })
	p.cmd.Process.Kill()
	p.cmd.Wait()
	second.Store(time.Now().UnixMilli())
	start := time.Now()
	p = startBinary(t, nil, "-addr", addr)
	var last time.Time
	for i := 0; i < clients; i++ {
		select {
		case last = <-back:
		case <-time.After(15 * time.Second):
			t.Fatalf("%d of %d streams came back", i, clients)
		}
	}
	t.Logf("all %d streams were back %v after the start", clients, last.Sub(start).Round(time.Millisecond))
	if n := refused.Load(); n > 0 {
		t.Errorf("%d were refused", n)
	}
	close(stop)
	running.Wait()
	p.stop(t)
}

// A log that cannot be written ends nothing and holds nothing up.
func TestChaosOfTheLog(t *testing.T) {
	t.Parallel()
	for name, stderr := range map[string]string{"a full disk": "2>/dev/full", "closed": "2>&-", "a pipe whose reader died": "2>&1 | true"} {
		addr := freeAddr(t)
		sh := exec.Command("sh", "-c", "exec 3>&1; { \"$0\" -addr "+addr+" "+stderr+"; }", os.Args[0])
		sh.Env = append(os.Environ(), "TEST_SERVER=1")
		sh.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		if err := sh.Start(); err != nil {
			t.Fatal(err)
		}
		s := &server{addr: addr}
		eventually(t, "the server listens with its log on "+name, func() bool { return listens(addr) })
		c := dial(t, addr, "GET /dashboard/stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
		c.head(t)
		c.event(t)
		for i := 0; i < 20; i++ {
			s.trigger(t)
		}
		c.event(t)
		c.Close()
		syscall.Kill(-sh.Process.Pid, syscall.SIGTERM)
		go sh.Wait()
		eventually(t, "with its log on "+name+" the server ends", func() bool { return !listens(addr) })
	}
}

// The wall clock cannot be set here; what it does to ids is: they rise by one until it has caught up.
func TestChaosOfTheClock(t *testing.T) {
	s := testServer(t)
	now := time.Now()
	var last int64
	for _, step := range []time.Duration{0, time.Second, -time.Hour, time.Millisecond, 24 * time.Hour, -24 * time.Hour, 2 * time.Second} {
		now = now.Add(step)
		s.sample(now.Round(0)) // without the monotonic clock's reading
		if f := s.broadcast(now.Round(0)); f.id <= last {
			t.Errorf("after a step of %v the id is %d, before %d", step, f.id, last)
		} else {
			last = f.id
		}
	}
	if body := fmt.Sprint(s.figures); regexp.MustCompile(`Inf|e\+`).MatchString(body) {
		t.Errorf("the figures are %s", body)
	}
}
