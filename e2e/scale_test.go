package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"sse-server/e2e/proxies"
	"sse-server/e2e/tools"
)

// scale is how many streams a test opens at most: SSE_SCALE, where it measures and so runs alone,
// or the fewest that show the same.
func scale(t *testing.T, most int) int {
	t.Helper()
	if n, err := strconv.Atoi(os.Getenv("SSE_SCALE")); err == nil {
		return min(n, most)
	}
	t.Parallel()
	return 300
}

// Each event of the upstream is at each stream of its three edges, and of an edge of an edge.
func TestScaleEdgesCarryEachEventToEachStream(t *testing.T) {
	n := scale(t, 15000) / 3
	upstream := startServer(t, "-interval", "1s")
	edges := []*process{
		startEdge(t, upstream.addr), startEdge(t, upstream.addr), startEdge(t, upstream.addr),
	}
	edges = append(edges, startEdge(t, edges[0].addr))

	empty := kernelMemory()
	direct := follow(t, upstream.addr)
	var loads []*load
	var viewers []*viewer
	for i, edge := range edges {
		if i < 3 {
			loads = append(loads, startLoad(t, n, "http://"+edge.addr+"/dashboard/stream", edges[i:i+1]))
		}
		for range [5]int{} {
			viewers = append(viewers, follow(t, edge.addr))
		}
	}
	kernel := kernelMemory() - empty
	var before, after []use
	for _, p := range append(edges, upstream) {
		before = append(before, usage(t, p.pid()))
	}
	const events = 10
	most := direct.count() + events
	eventually(t, "ten more events have come", func() bool {
		lacks := func(v *viewer) bool { return v.count() < events }
		return direct.count() >= most && !slices.ContainsFunc(viewers, lacks)
	})
	for _, p := range append(edges, upstream) {
		after = append(after, usage(t, p.pid()))
	}
	viewed := direct.stop()
	var hop, twoHops []time.Duration
	for i, v := range viewers {
		late := mustBeWhole(t, fmt.Sprintf("viewer %d of edge %d", i%5, i/5+1), viewed, v.stop())
		if i/5 < 3 {
			hop = append(hop, late...)
		} else {
			twoHops = append(twoHops, late...)
		}
	}
	for i, edge := range edges[:3] {
		if got := mustBeWell(t, edge, loads[i]); got < (events-1)*n {
			t.Errorf("the clients of edge %d got %d events, want at least %d", i+1, got, (events-1)*n)
		}
	}
	if n := upstream.metrics(t)["sse_streams_opened_total"]; n != 4 { // the edges' and the test's
		t.Errorf("the upstream had %v streams", n)
	}
	t.Logf("%d streams over three edges; after the direct stream's: %v; an edge of an edge %v",
		3*n, quantiles(hop), quantiles(twoHops))
	for i, name := range [...]string{"edge 1", "edge 2", "edge 3", "edge of an edge", "upstream"} {
		t.Logf("%s: %s", name, after[i].since(before[i]))
	}
	t.Logf("the kernel takes %.2f KiB for each end of a stream", kernel/float64(6*n))
}

// mustBeWell ends an edge's load and checks that nothing went wrong. It returns how many events
// came.
func mustBeWell(t *testing.T, edge *process, l *load) (events int) {
	t.Helper()
	skipped := edge.metrics(t)["sse_events_skipped_total"]
	r := l.stop(t)
	if r.Reconnects+r.Errors+len(r.Wrong) > 0 || skipped > 0 {
		t.Errorf("the edge at %s: %+v, %v events skipped", edge.addr, r, skipped)
	}
	return r.Events
}

// One Puma thread serves the stream that feeds an edge. Its viewers stay while Rails is away.
func TestScaleViewersStayWhileRailsRestarts(t *testing.T) {
	n := scale(t, 5000)
	addr := tools.FreeAddr(t)
	kill := startRails(t, addr)
	edge := startEdge(t, addr)
	load := startLoad(t, n, "http://"+edge.addr+"/dashboard/stream", []*process{edge})
	v := follow(t, edge.addr)
	_, _, debug := (&server{addr: addr}).request(t, "GET", "/dashboard/debug")
	var rails struct {
		Streams int `json:"streams"`
	}
	if err := json.Unmarshal([]byte(debug), &rails); err != nil || rails.Streams != 1 {
		t.Errorf("Rails has %d streams open, %v: %s", rails.Streams, err, debug)
	}
	(&server{addr: addr}).request(t, "GET", "/dashboard/trigger-test")
	v.await(t, testMessage)
	killed := time.Now()
	kill()
	v.await(t, `"status":"stale"`)
	stale := time.Since(killed)
	started := time.Now()
	startRails(t, addr)
	up := time.Since(started)
	v.await(t, `"status":"online"`)
	live := time.Since(started)
	r := load.stop(t)
	if r.Open != n || r.Reconnects+r.Closed+r.Errors+len(r.Wrong) > 0 {
		t.Errorf("the viewers have seen %+v", r)
	}
	t.Logf("%d viewers, Rails had %d stream; stale %.1f s after it was killed, "+
		"live %.1f s after it was started again (it was up after %.1f s)",
		n, rails.Streams, stale.Seconds(), live.Seconds(), up.Seconds())
}

// An edge dies without a word: its viewers come back at the others, through the file of
// deploy/edges.
func TestScaleViewersOfADeadEdgeComeBack(t *testing.T) {
	need(t, "haproxy")
	n := scale(t, 1000)
	upstream := startServer(t, "-interval", "1s")
	edges := []*process{
		startEdge(t, upstream.addr), startEdge(t, upstream.addr), startEdge(t, upstream.addr),
	}
	place := proxyPlace(t, "")
	conf := read(t, "deploy/edges/haproxy.cfg")
	for i, edge := range edges {
		conf = strings.ReplaceAll(conf, fmt.Sprintf("10.0.0.%d:3001", i+1), edge.addr)
	}
	proxy := startProxy(t, proxies.HAProxy(conf), place)
	alone := usage(t, proxy.Process.Pid)
	load := startLoad(t, n, "https://"+place.Addr+"/dashboard/stream", edges,
		"SSL_CERT_FILE="+place.Dir+"/ca.pem")
	before := usage(t, proxy.Process.Pid)
	const events = 4
	v := follow(t, edges[0].addr)
	eventually(t, "four events have come", func() bool { return v.count() > events })
	v.stop()
	after := usage(t, proxy.Process.Pid)
	lost := streamsOpen(t, edges[2])
	if lost < n/4 {
		t.Errorf("%d of %d streams are at the third edge", lost, n)
	}
	edges[2].kill()
	start := time.Now()
	eventually(t, "all viewers are at the two other edges", func() bool {
		return streamsOpen(t, edges[:2]...) >= n
	})
	back := time.Since(start)
	v = follow(t, edges[0].addr)
	eventually(t, "each viewer has an event again", func() bool { return v.count() > 2 })
	r := load.stop(t)
	if r.Open != n || r.Reconnects != lost || r.Errors > lost/10 {
		t.Errorf("%d streams were lost; the viewers have seen %+v", lost, r)
	}
	t.Logf("%d requests got a 502, as they came while HAProxy found the edge dead", r.Errors)
	t.Logf("%d of %d viewers lost their edge and were back after %.1f s; "+
		"they had no event for %.1f s (half of them), %.1f s at most",
		lost, n, back.Seconds(), r.Away.P50/1e3, r.Away.Max/1e3)
	t.Logf("HAProxy, with TLS: %s, %.1f KiB a viewer, "+
		"%d µs of CPU for each that came, %d for a delivery",
		after.since(before), (after.resident-alone.resident)*1e6/1024/float64(n),
		(before.cpu-alone.cpu).Microseconds()/int64(n),
		(after.cpu-before.cpu).Microseconds()/int64(n*events))
}

func TestScaleEdgesScriptLeavesNothing(t *testing.T) {
	need(t, "haproxy", "curl")
	checkScript(t, "deploy/edges.sh")
}

// checkScript runs a script of deploy/, reads the stream at the first of its ports, and ends it. Its
// logs are left.
func checkScript(t *testing.T, script string) {
	first := 20000 // below the ports that the kernel hands out
	for i := 0; i < 6; i++ {
		l, err := net.Listen("tcp", fmt.Sprint(":", first+i))
		if err != nil {
			first, i = first+i+1, -1
			continue
		}
		l.Close()
	}
	log, logs := filepath.Join(t.TempDir(), "log"), filepath.Join(t.TempDir(), "logs")
	out, err := os.Create(log)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd := exec.Command(script, strconv.Itoa(first))
	cmd.Env = append(os.Environ(), "LOGS="+logs)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	said := func() string { return read(t, log) }
	url := fmt.Sprintf("http://localhost:%d/", first)
	eventually(t, "the script says what it does and what to open", func() bool {
		begin, _, _ := strings.Cut(said(), "Ready")
		return strings.HasPrefix(begin, "This starts ") && strings.Contains(begin, "Open "+url) &&
			strings.Contains(begin, "Ctrl-C") && strings.Contains(begin, "The logs are in "+logs)
	})
	within(t, time.Minute, "the script has started everything", func() bool {
		if strings.Contains(said(), filepath.Base(script)+": ") {
			t.Fatalf("it does not start: %s", said())
		}
		return strings.Contains(said(), "Ready: "+url)
	})
	eventually(t, "the stream has a snapshot", func() bool {
		return snapshotPattern.MatchString(streamData(t, fmt.Sprintf("127.0.0.1:%d", first)))
	})
	cmd.Process.Signal(syscall.SIGTERM)
	if err := cmd.Wait(); err != nil {
		t.Errorf("it ended with %v: %s", err, said())
	}
	if _, n := groupUsage(cmd.Process.Pid); n > 0 {
		t.Errorf("%d processes are left", n)
	}
	kept, _ := filepath.Glob(logs + "/*.log")
	if len(kept) < 3 || !strings.Contains(said(), "has ended; the logs are in "+logs) {
		t.Errorf("%q is left, and it says %s", kept, said())
	}
}

// A load is a running sse-client with many streams.
type load struct {
	cmd *exec.Cmd
	out strings.Builder
}

// A loadReport is what sse-client saw.
type loadReport struct {
	Open       int `json:"streams_open"`
	Closed     int `json:"closed_by_server"`
	Reconnects int
	Errors     int
	Events     int
	Wrong      []any
	Away       struct{ P50, Max float64 } `json:"away_ms"`
}

// startLoad opens n streams and waits until the servers have them all.
func startLoad(t *testing.T, n int, url string, servers []*process, environ ...string) *load {
	t.Helper()
	before := streamsOpen(t, servers...)
	l := &load{cmd: exec.Command(clientProgram, "-url", url, "-clients", strconv.Itoa(n), "-json")}
	l.cmd.Env = append(os.Environ(), environ...)
	l.cmd.Stdout = &l.out
	if err := l.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.cmd.Process.Kill() })
	eventually(t, "all streams are open", func() bool {
		return streamsOpen(t, servers...) >= before+n
	})
	return l
}

func streamsOpen(t *testing.T, servers ...*process) (n int) {
	t.Helper()
	for _, p := range servers {
		n += int(p.metrics(t)["sse_streams_open"])
	}
	return n
}

func (l *load) stop(t *testing.T) (r loadReport) {
	t.Helper()
	l.cmd.Process.Signal(syscall.SIGINT)
	l.cmd.Wait()
	if err := json.Unmarshal([]byte(l.out.String()), &r); err != nil {
		t.Fatalf("sse-client prints %q: %v", l.out.String(), err)
	}
	return r
}

// A viewer notes the data of each event of a stream, and when it came.
type viewer struct {
	conn net.Conn
	done chan struct{}
	mu   sync.Mutex // guards seen
	seen []arrival
}

type arrival struct {
	data string
	at   time.Time
}

func follow(t testing.TB, addr string) *viewer {
	t.Helper()
	c := dial(t, addr, streamRequest)
	v := &viewer{conn: c.Conn, done: make(chan struct{})}
	go func() {
		defer close(v.done)
		for {
			line, err := c.r.ReadString('\n')
			if err != nil {
				return
			}
			if data, ok := strings.CutPrefix(line, "data: "); ok {
				v.mu.Lock()
				v.seen = append(v.seen, arrival{data, time.Now()})
				v.mu.Unlock()
			}
		}
	}()
	return v
}

// count is how many events have come.
func (v *viewer) count() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return len(v.seen)
}

// newest is the data of the newest event.
func (v *viewer) newest() string {
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.seen) == 0 {
		return ""
	}
	return v.seen[len(v.seen)-1].data
}

// stop ends the stream and returns what came.
func (v *viewer) stop() []arrival {
	v.conn.Close()
	<-v.done
	return v.seen
}

// await waits until the newest event has text.
func (v *viewer) await(t testing.TB, text string) {
	t.Helper()
	within(t, time.Minute, "the newest event has "+text, func() bool {
		return strings.Contains(v.newest(), text)
	})
}

// mustBeWhole checks that got has each event of want from the first that both have on, in the
// same order and once, and returns how much later each came. The last of want may be on its way.
func mustBeWhole(t *testing.T, who string, want, got []arrival) (late []time.Duration) {
	t.Helper()
	at := -1
	for len(got) > 0 && at < 0 { // at first an edge has none
		first := got[0].data
		if at = slices.IndexFunc(want, func(a arrival) bool { return a.data == first }); at < 0 {
			got = got[1:]
		}
	}
	if at < 0 || len(got) < 5 || at+len(got) < len(want)-1 {
		t.Errorf("%s has %d events of %d, from number %d on", who, len(got), len(want), at+1)
		return nil
	}
	for i, a := range got[:min(len(got), len(want)-at)] {
		if a.data != want[at+i].data {
			t.Errorf("%s: the next event is\n%s, want\n%s", who, a.data, want[at+i].data)
			return nil
		}
		if i > 0 { // the first was sent before somebody came
			late = append(late, a.at.Sub(want[at+i].at))
		}
	}
	return late
}

func quantiles(d []time.Duration) string {
	if len(d) == 0 {
		return "nothing"
	}
	slices.Sort(d)
	ms := func(i int) float64 { return float64(d[i].Microseconds()) / 1e3 }
	return fmt.Sprintf("p50 %.2f ms, p99 %.2f ms, max %.2f ms",
		ms(len(d)/2), ms(len(d)*99/100), ms(len(d)-1))
}

// kernelMemory is what the kernel's own objects and the data in its sockets take, in KiB.
func kernelMemory() (kib float64) {
	text, _ := os.ReadFile("/proc/meminfo")
	if m := regexp.MustCompile(`(?m)^Slab: +(\d+)`).FindSubmatch(text); m != nil {
		kib, _ = strconv.ParseFloat(string(m[1]), 64)
	}
	text, _ = os.ReadFile("/proc/net/sockstat")
	if m := regexp.MustCompile(`(?m)^TCP: .* mem (\d+)`).FindSubmatch(text); m != nil {
		pages, _ := strconv.Atoi(string(m[1]))
		kib += float64(pages*os.Getpagesize()) / 1024
	}
	return kib
}
