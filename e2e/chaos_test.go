package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
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

	"sse-server/e2e/tools"
)

// chaosTime is how long faults are thrown: SSE_CHAOS, or some seconds.
func chaosTime(t testing.TB) time.Duration {
	if d, err := time.ParseDuration(os.Getenv("SSE_CHAOS")); err == nil {
		return d
	}
	return 6 * time.Second
}

// A reader reads its stream as a well-behaved client does, and notes when each event came.
type reader struct {
	mu    sync.Mutex // guards following
	ids   []int64
	delay []time.Duration // from the millisecond in which the event was made
}

func (r *reader) follow(t testing.TB, addr string, compressed bool, stop <-chan struct{}) {
	request := streamRequest
	if compressed {
		request = gzipRequest
	}
	c := dial(t, addr, request)
	defer c.Close()
	go func() { <-stop; c.Close() }()
	if err := c.beginStream(); err != nil {
		t.Error(err)
		return
	}
	c.SetReadDeadline(time.Time{})
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

// A fault is what strange clients do, workers of them at a time, each again and again.
type fault struct {
	workers, requests int // requests in one go
	throw             func(addr string, stop <-chan struct{})
}

// stalledReaders are as many as a small limit of descriptors allows, and at most 1,000.
func stalledReaders() int {
	var l syscall.Rlimit
	syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l)
	return int(min(uint64(l.Cur)/3, 1000))
}

var faults = map[string]fault{
	"readers that stop reading": {stalledReaders(), 1, func(addr string, stop <-chan struct{}) {
		c := open(addr, streamRequest)
		if c == nil {
			return
		}
		defer c.Close()
		c.(*net.TCPConn).SetReadBuffer(1 << 10)
		head := make([]byte, len("HTTP/1.1 200"))
		for io.ReadFull(c, head); string(head) == "HTTP/1.1 200" && !wasReset(c); {
			select {
			case <-stop:
				return
			case <-time.After(time.Second):
			}
		}
		time.Sleep(100 * time.Millisecond) // there was no room
	}},
	"one byte of a request a second": {50, 1, func(addr string, stop <-chan struct{}) {
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
	}},
	"resets": {4, 1, func(addr string, _ <-chan struct{}) {
		if c := open(addr, streamRequest); c != nil {
			c.Read(make([]byte, 1+rand.Intn(400)))
			c.(*net.TCPConn).SetLinger(0)
			c.Close()
		}
	}},
	"streams past the limit": {1, 50, func(addr string, _ <-chan struct{}) {
		for i := 0; i < 50; i++ {
			if c := open(addr, eventSourceRequest); c != nil {
				defer c.Close()
			}
		}
		time.Sleep(100 * time.Millisecond)
	}},
	"malformed requests": {1, 6, func(addr string, _ <-chan struct{}) {
		b := make([]byte, 200)
		rand.Read(b)
		for _, text := range []string{
			string(b), "GET\r\n\r\n", "GET / HTTP/9.9\r\n\r\n",
			"GET /dashboard/stream HTTP/1.1\r\nHost: a b\r\n\r\n",
			"POST /dashboard/activities HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
			"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", // TLS
		} {
			if c := open(addr, text); c != nil {
				c.(*net.TCPConn).CloseWrite()
				io.Copy(io.Discard, c)
				c.Close()
			}
		}
	}},
	"oversized heads and bodies": {1, 3, func(addr string, _ <-chan struct{}) {
		for _, text := range []string{
			"GET /" + strings.Repeat("x", 100<<10) + " HTTP/1.1\r\n\r\n",
			"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + strings.Repeat("x", 100<<10) + "\r\n\r\n",
			"PUT /dashboard/snapshot HTTP/1.1\r\nHost: localhost\r\n" +
				"Content-Type: application/json\r\nContent-Length: 1000000000\r\n\r\n" +
				strings.Repeat("x", 1<<20),
		} {
			if c := open(addr, text); c != nil {
				io.Copy(io.Discard, c)
				c.Close()
			}
		}
	}},
	"triggers and posts": {32, 2, func(addr string, _ <-chan struct{}) {
		if resp, err := http.Get("http://" + addr + "/dashboard/trigger-test"); err == nil {
			resp.Body.Close()
		}
		body := strings.NewReader(`{"message":"flood"}`)
		resp, err := http.Post("http://"+addr+"/dashboard/activities", jsonType, body)
		if err == nil {
			resp.Body.Close()
		}
	}},
}

// wasReset tells whether the other side has reset a connection that nobody reads.
func wasReset(c net.Conn) bool {
	var status int
	raw, _ := c.(*net.TCPConn).SyscallConn() // of an open connection: no error
	raw.Control(func(fd uintptr) {
		status, _ = syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_ERROR)
	})
	return status != 0
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

// An attack throws all faults from a process of its own.
type attack struct {
	cmd   *exec.Cmd
	stdin io.Closer
	out   bytes.Buffer
}

// startAttack attacks the server at addr with the CPU time that nobody else wants (SCHED_IDLE, see
// sched(7)): real attackers have machines of their own.
func startAttack(t testing.TB, addr string) *attack {
	t.Helper()
	tests, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	a := &attack{cmd: exec.Command("chrt", "-i", "0", tests)}
	if exec.Command("chrt", "-i", "0", "true").Run() != nil {
		a.cmd = exec.Command("nice", "-n", "19", tests)
	}
	a.cmd.Env = append(os.Environ(), "TEST_ATTACK="+addr)
	a.cmd.Stdout, a.cmd.Stderr = &a.out, os.Stderr
	if a.stdin, err = a.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := a.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.cmd.Process.Kill() })
	return a
}

// stop ends the attack, and tells how often each fault was thrown.
func (a *attack) stop(t testing.TB) (thrown map[string]int) {
	t.Helper()
	a.stdin.Close()
	if err := a.cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(a.out.Bytes(), &thrown); err != nil {
		t.Fatalf("the attackers said %q", a.out.Bytes())
	}
	return thrown
}

// attackUntilEOF is the attackers' process.
func attackUntilEOF(addr string) {
	http.DefaultClient.Timeout = 5 * time.Second
	stop, thrown := make(chan struct{}), map[string]*atomic.Int64{}
	var throwing sync.WaitGroup
	for name, f := range faults {
		f, count := f, &atomic.Int64{}
		thrown[name] = count
		throwing.Add(f.workers)
		for i := 0; i < f.workers; i++ {
			go func() {
				defer throwing.Done()
				for {
					select {
					case <-stop:
						return
					default:
						f.throw(addr, stop)
						count.Add(int64(f.requests))
						time.Sleep(time.Millisecond)
					}
				}
			}()
		}
	}
	io.Copy(io.Discard, os.Stdin)
	close(stop)
	throwing.Wait()
	counts := map[string]int64{}
	for name, n := range thrown {
		counts[name] = n.Load()
	}
	json.NewEncoder(os.Stdout).Encode(counts)
}

// A watch is what the readers and /health saw for some time, and what the server spent in it.
type watch struct {
	delay, health  spread
	cpu, broadcast float64 // of a core, and ms each
}

func (p *process) watch(t testing.TB, readers []*reader, d time.Duration) (w watch) {
	t.Helper()
	takeDelays(readers)
	before, usedBefore, began := p.metrics(t), usage(t, p.pid()), time.Now()
	for time.Since(began) < d {
		start := time.Now()
		if code, _, body := p.request(t, "GET", "/health"); code != 200 || body != "OK" {
			t.Errorf("/health returns %d %q", code, body)
		}
		w.health = append(w.health, time.Since(start))
		time.Sleep(50 * time.Millisecond)
	}
	after, used := p.metrics(t), usage(t, p.pid())
	grown := func(name string) float64 { return after[name] - before[name] }
	w.cpu = float64(used.cpu-usedBefore.cpu) / float64(used.at.Sub(usedBefore.at))
	w.broadcast = 1000 * grown("sse_broadcast_seconds_total") / grown("sse_broadcasts_total")
	w.delay = takeDelays(readers)
	slices.Sort(w.health)
	return w
}

func (w watch) String() string {
	return fmt.Sprintf("events came after %v, /health returned after %v, "+
		"the server used %.2f of a core and %.2f ms for a broadcast",
		w.delay, w.health, w.cpu, w.broadcast)
}

// A host on a network of its own vanishes without a word: its link goes down.
func TestChaosVanishedClientIsGoneSoon(t *testing.T) {
	needRoot(t)
	need(t, "ip", "curl")
	ip := func(args string) error { return exec.Command("ip", strings.Fields(args)...).Run() }
	host := fmt.Sprintf("sse%d", os.Getpid())
	if err := ip("netns add " + host); err != nil {
		t.Skip("ip(8) cannot make a network namespace here: ", err)
	}
	defer func() { ip("link del " + host + "a"); ip("netns del " + host) }()
	addr := fmt.Sprintf("10.231.%d", os.Getpid()%250)
	for _, args := range []string{
		"link add " + host + "a type veth peer name " + host + "b netns " + host,
		"addr add " + addr + ".1/24 dev " + host + "a", "link set " + host + "a up",
		"-n " + host + " addr add " + addr + ".2/24 dev " + host + "b",
		"-n " + host + " link set " + host + "b up",
	} {
		if err := ip(args); err != nil {
			t.Skipf("ip %s does not work here: %v", args, err)
		}
	}
	var servers []*process
	for _, interval := range []string{"2s", "0"} { // 0: only the kernel finds out, by itself
		p := startServer(t, "-addr", addr+".1:0", "-interval", interval)
		curl := exec.Command("ip", "netns", "exec", host,
			"curl", "-sN", "http://"+p.addr+"/dashboard/stream")
		if err := curl.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() { curl.Process.Kill(); curl.Wait() }()
		p.mustLog(t, `"stream opened".*curl`)
		eventually(t, "curl has an event", func() bool {
			return p.metrics(t)["sse_events_sent_total"] > 0
		})
		servers = append(servers, p)
	}
	if err := ip("-n " + host + " link set " + host + "b down"); err != nil {
		t.Fatal(err)
	}
	t.Parallel() // the other tests run while the servers wait for the client
	for _, p := range servers {
		within(t, 100*time.Second, "the vanished client's stream is closed", func() bool {
			return strings.Contains(p.log(), "stream closed")
		})
		line := regexp.MustCompile(`msg="stream closed".* reason=(stalled|error) .*duration=(\S+)`)
		closed := line.FindStringSubmatch(p.log())
		if closed == nil {
			t.Fatalf("the log is\n%s", p.log())
		}
		if after, err := time.ParseDuration(closed[2]); err != nil || after > 90*time.Second {
			t.Errorf("the stream was closed after %s", closed[2])
		}
		t.Logf("closed after %s: %s", closed[2], closed[1])
		p.stop(t)
	}
}

// All faults at once: streams that read miss nothing, /health returns OK, and resources are
// given back.
func TestChaosHarmsNoStreamThatReads(t *testing.T) {
	const good, room = 40, 20
	stalled := stalledReaders()
	p := startServer(t, "-interval", "100ms", "-heartbeat", "1s",
		"-max-streams", strconv.Itoa(good+stalled+room))
	open := func() float64 { return p.metrics(t)["sse_streams_open"] }
	stopGood := make(chan struct{})
	readers := make([]*reader, good)
	var reading sync.WaitGroup
	for i := range readers {
		i, r := i, &reader{}
		readers[i] = r
		reading.Add(1)
		go func() { defer reading.Done(); r.follow(t, p.addr, i%2 == 0, stopGood) }()
	}
	eventually(t, "the good streams are open", func() bool { return open() == good })
	before := p.resources(t)
	quiet := p.watch(t, readers, min(chaosTime(t)/2, 30*time.Second))
	t.Logf("quiet: %v", quiet)

	attackers := startAttack(t, p.addr)
	eventually(t, "the stalled streams are open", func() bool {
		return open() >= float64(good+stalled)
	})
	loud := p.watch(t, readers, chaosTime(t))
	for name, n := range attackers.stop(t) {
		t.Logf("%d × %s", n, name)
		if n == 0 {
			t.Errorf("there were no %s", name)
		}
	}
	t.Logf("attacked: %v; the p99 of the delay is %.2f times the quiet one", loud,
		float64(loud.delay.p99())/float64(quiet.delay.p99()))
	if worst := loud.health[len(loud.health)-1]; worst > 2*time.Second {
		t.Errorf("/health took %v", worst)
	}
	if loud.delay.p99() > max(3*quiet.delay.p99(), 500*time.Millisecond) {
		t.Errorf("the p99 of the delay went from %v to %v", quiet.delay.p99(), loud.delay.p99())
	}

	p.cmd.Process.Signal(syscall.SIGSTOP) // as by a debugger or a laptop's lid
	time.Sleep(time.Second + chaosTime(t)/10)
	p.cmd.Process.Signal(syscall.SIGCONT)
	eventually(t, "only the good streams are left", func() bool { return open() == good })
	p.mustGiveBack(t, before)
	m := p.metrics(t)
	rejected, skipped := m["sse_streams_rejected_total"], m["sse_events_skipped_total"]
	t.Logf("%.0f streams opened, %.0f rejected, %.0f events skipped",
		m["sse_streams_opened_total"], rejected, skipped)
	if rejected == 0 || skipped == 0 {
		t.Error("no stream was rejected, or none was lagging")
	}
	close(stopGood)
	reading.Wait()
	mustMissNothing(t, readers)
	p.stop(t)
	if log := p.log(); strings.Contains(log, "panic") {
		t.Errorf("the log is\n%s", log)
	}
}

// Resources are what a server takes from the system.
type resources struct {
	goroutines, files int
	memory            float64 // MB
}

func (p *process) resources(t testing.TB) resources {
	t.Helper()
	return resources{p.debug(t).Goroutines, openFiles(t, p.pid()), usage(t, p.pid()).resident}
}

// mustGiveBack waits until a server takes no more than before, and not much more memory.
func (p *process) mustGiveBack(t testing.TB, before resources) {
	t.Helper()
	eventually(t, "descriptors and goroutines are given back", func() bool {
		now := p.resources(t)
		return now.files <= before.files+5 && now.goroutines <= before.goroutines+5
	})
	after := p.resources(t)
	t.Logf("resident %.1f MB before, %.1f after", before.memory, after.memory)
	if after.memory > 3*before.memory {
		t.Errorf("memory went from %v to %v MB", before.memory, after.memory)
	}
}

// A spread is durations in order.
type spread []time.Duration

func (s spread) p99() time.Duration { return s[len(s)*99/100] }

func (s spread) String() string {
	return fmt.Sprintf("%.1f ms (p50), %.1f ms (p99), %.1f ms at most",
		ms(s[len(s)/2]), ms(s.p99()), ms(s[len(s)-1]))
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// takeDelays returns the delays of the events since it was last called.
func takeDelays(readers []*reader) (all spread) {
	for _, r := range readers {
		r.mu.Lock()
		all = append(all, r.delay...)
		r.delay = nil
		r.mu.Unlock()
	}
	slices.Sort(all)
	return all
}

// mustMissNothing checks that each reader has each event that another has, from its first to its
// last.
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
			t.Errorf("stream %d has %d of %d events", i, len(r.ids), want)
		}
	}
	t.Logf("%d streams had each of %d events", len(readers), len(all))
}

// Returning are clients that come back whenever their stream ends, as EventSource does.
type returning struct {
	addr     string
	stop     chan struct{}
	rejected atomic.Int64
	killed   atomic.Int64   // when the first server was killed, in Unix ms; 0: it lives
	back     chan time.Time // when each had an event of the second server
}

// run is one client.
func (r *returning) run() {
	retry := 3 * time.Second
	for {
		if c, err := net.Dial("tcp", r.addr); err == nil {
			retry = r.read(c, retry)
			c.Close()
		}
		select {
		case <-r.stop:
			return
		case <-time.After(retry):
		}
	}
}

// read reads a stream until it ends, and returns when to come back.
func (r *returning) read(c net.Conn, retry time.Duration) time.Duration {
	io.WriteString(c, eventSourceRequest)
	done := make(chan struct{})
	defer close(done)
	go func() {
		select {
		case <-r.stop:
			c.Close()
		case <-done:
		}
	}()
	isBack := false
	for lines := bufio.NewScanner(c); lines.Scan(); {
		if text, ok := strings.CutPrefix(lines.Text(), "retry: "); ok {
			ms, _ := strconv.Atoi(text)
			retry = time.Duration(ms) * time.Millisecond
		}
		if strings.HasPrefix(lines.Text(), ": full") {
			r.rejected.Add(1)
		}
		text, isID := strings.CutPrefix(lines.Text(), "id: ")
		id, _ := strconv.ParseInt(text, 10, 64)
		if killed := r.killed.Load(); isID && !isBack && killed > 0 && id >= killed {
			isBack = true
			r.back <- time.Now()
		}
	}
	return retry
}

// The server's streams all come back to the next process on its port; none is rejected.
func TestChaosKilledServerGetsItsStreamsBack(t *testing.T) {
	clients := 300
	if chaosTime(t) > time.Minute {
		clients = 5000
	}
	r := &returning{addr: tools.FreeAddr(t), stop: make(chan struct{}), back: make(chan time.Time, clients)}
	p := startServer(t, "-addr", r.addr)
	var running sync.WaitGroup
	for i := 0; i < clients; i++ {
		running.Add(1)
		go func() { defer running.Done(); r.run() }()
	}
	eventually(t, "all streams are open", func() bool {
		return p.metrics(t)["sse_streams_open"] == float64(clients)
	})

	p.kill()
	r.killed.Store(time.Now().UnixMilli())
	start := time.Now()
	p = startServer(t, "-addr", r.addr)
	took := make(spread, clients)
	deadline := time.After(30 * time.Second)
	for i := range took {
		select {
		case at := <-r.back:
			took[i] = at.Sub(start)
		case <-deadline:
			t.Fatalf("%d of %d streams came back", i, clients)
		}
	}
	slices.Sort(took)
	t.Logf("of %d streams each was back after the start: %v", clients, took)
	if n := r.rejected.Load(); n > 0 {
		t.Errorf("%d were rejected", n)
	}
	close(r.stop)
	running.Wait()
	p.stop(t)
}

// A log that cannot be written ends nothing and delays nothing.
func TestChaosOfTheLogEndsNothing(t *testing.T) {
	t.Parallel()
	for name, stderr := range map[string]string{
		"a full disk": "2>/dev/full", "closed": "2>&-", "a pipe whose reader died": "2>&1 | true",
	} {
		addr := tools.FreeAddr(t)
		sh := exec.Command("sh", "-c", "exec 3>&1; { \"$0\" -addr "+addr+" "+stderr+"; }", serverProgram)
		withoutSettings(sh)
		sh.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		if err := sh.Start(); err != nil {
			t.Fatal(err)
		}
		s := &server{addr: addr}
		eventually(t, "the server listens with its log on "+name, func() bool { return tools.Listens(addr) })
		c := s.stream(t)
		c.event(t)
		for i := 0; i < 20; i++ {
			s.trigger(t)
		}
		c.event(t)
		c.Close()
		syscall.Kill(-sh.Process.Pid, syscall.SIGTERM)
		go sh.Wait()
		eventually(t, "with its log on "+name+" the server ends", func() bool { return !tools.Listens(addr) })
	}
}
