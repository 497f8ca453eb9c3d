package main

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
)

// scale is how many streams the tests of this file open at most: SSE_SCALE, or the fewest that
// show the same.
func scale(t *testing.T, most int) int {
	t.Helper()
	if testing.Short() {
		t.Skip("it takes some seconds")
	}
	if n, err := strconv.Atoi(os.Getenv("SSE_SCALE")); err == nil {
		return min(n, most)
	}
	return 300
}

// Each snapshot of the origin is at each stream of its three edges, and of an edge of an edge.
func TestScaleEdgesCarryEachSnapshotToEachStream(t *testing.T) {
	n := scale(t, 15000) / 3
	origin := startBinary(t, nil, "-interval", "1s")
	edges := []*process{startEdge(t, origin.addr), startEdge(t, origin.addr), startEdge(t, origin.addr)}
	edges = append(edges, startEdge(t, edges[0].addr))

	empty := kernelMemory()
	direct := follow(t, origin.addr)
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
	names := []string{"edge 1", "edge 2", "edge 3", "edge of an edge", "origin"}
	var before, after []use
	for _, p := range append(edges, origin) {
		before = append(before, usage(t, p.cmd.Process.Pid))
	}
	time.Sleep(10 * time.Second)
	for _, p := range append(edges, origin) {
		after = append(after, usage(t, p.cmd.Process.Pid))
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
		s := &server{addr: edge.addr}
		m, _ := s.metrics(t)
		r := loads[i].stop(t)
		if r.Reconnects+r.Errors+len(r.Wrong) > 0 || m["sse_frames_skipped_total"] > 0 {
			t.Errorf("edge %d: %+v, %v frames skipped", i+1, r, m["sse_frames_skipped_total"])
		}
		if least := 9 * n; r.Events < least {
			t.Errorf("the clients of edge %d got %d events, want %d at the least", i+1, r.Events, least)
		}
	}
	if m, _ := (&server{addr: origin.addr}).metrics(t); m["sse_streams_opened_total"] != 4 { // the edges' and the test's
		t.Errorf("the origin had %v streams", m["sse_streams_opened_total"])
	}
	t.Logf("%d streams over three edges; after the direct stream's: %v; an edge of an edge %v", 3*n, quantiles(hop), quantiles(twoHops))
	for i, name := range names {
		t.Logf("%s: %s", name, after[i].since(before[i]))
	}
	t.Logf("the kernel takes %.2f KiB for each end of a stream", kernel/float64(6*n))
}

// One Puma thread serves the stream that feeds an edge. Its viewers stay while Rails is away.
func TestScaleViewersStayWhileRailsRestarts(t *testing.T) {
	n := scale(t, 5000)
	addr := freeAddr(t)
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
	v.await(t, "Test broadcast")
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
	t.Logf("%d viewers, Rails had %d stream; stale %.1f s after it was killed, live %.1f s after it was started again (it answered after %.1f s)",
		n, rails.Streams, stale.Seconds(), live.Seconds(), up.Seconds())
}

// An edge dies without a word: its viewers come back at the others, through the file of deploy/edges.
func TestScaleViewersOfADeadEdgeComeBackAtTheOthers(t *testing.T) {
	program, err := exec.LookPath("haproxy")
	if err != nil {
		t.Skip("haproxy is not installed")
	}
	n := scale(t, 1000)
	origin := startBinary(t, nil, "-interval", "1s")
	edges := []*process{startEdge(t, origin.addr), startEdge(t, origin.addr), startEdge(t, origin.addr)}
	file, err := os.ReadFile("deploy/edges/haproxy.cfg")
	if err != nil {
		t.Fatal(err)
	}
	dir, addr := proxyDir(t), freeAddr(t)
	conf := string(file)
	for i, edge := range edges {
		conf = strings.ReplaceAll(conf, fmt.Sprintf("10.0.0.%d:3001", i+1), edge.addr)
	}
	writeCertificate(t, dir+"/tls.pem")
	conf, args := haproxyConf(conf, dir, addr, "")
	proxy := startProxy(t, program, addr, dir, conf, args)
	alone := usage(t, proxy.Process.Pid)
	load := startLoad(t, n, "https://"+addr+"/dashboard/stream", edges, "SSL_CERT_FILE="+dir+"/tls.pem")
	before := usage(t, proxy.Process.Pid)
	const snapshots = 4
	time.Sleep(snapshots * time.Second)
	after := usage(t, proxy.Process.Pid)
	lost := streamsOpen(t, edges[2])
	if lost < n/4 {
		t.Errorf("%d of %d streams are at the third edge", lost, n)
	}
	edges[2].cmd.Process.Kill()
	edges[2].cmd.Wait()
	start := time.Now()
	eventually(t, "all viewers are at the two other edges", func() bool { return streamsOpen(t, edges[:2]...) >= n })
	back := time.Since(start)
	time.Sleep(2 * time.Second)
	r := load.stop(t)
	if r.Open != n || r.Reconnects != lost || r.Errors > lost/10 {
		t.Errorf("%d streams were lost; the viewers have seen %+v", lost, r)
	}
	t.Logf("%d requests got a 502, as they came while HAProxy found the edge dead", r.Errors)
	t.Logf("%d of %d viewers lost their edge and were back after %.1f s; without a snapshot they were %.1f s (half of them), %.1f s at the most",
		lost, n, back.Seconds(), r.Away.P50/1e3, r.Away.Max/1e3)
	t.Logf("HAProxy, with TLS: %s, %.1f KiB a viewer, %d µs of CPU for each that came, %d for a delivery", after.since(before),
		(after.resident-alone.resident)*1e6/1024/float64(n), (before.cpu-alone.cpu).Microseconds()/int64(n),
		(after.cpu-before.cpu).Microseconds()/int64(n*snapshots))
}

func TestScaleEdgeIsStaleWhileItsOriginIsStopped(t *testing.T) {
	t.Parallel()
	scale(t, 1)
	origin := startBinary(t, nil, "-interval", "1s")
	v := follow(t, startEdge(t, origin.addr).addr)
	(&server{addr: origin.addr}).trigger(t)
	v.await(t, testMessage)
	origin.cmd.Process.Signal(syscall.SIGSTOP)
	v.await(t, `"status":"stale"`)
	origin.cmd.Process.Signal(syscall.SIGCONT)
	v.await(t, `"status":"online"`)
}

func TestScaleEdgeWaitsForAnOriginThatIsAway(t *testing.T) {
	t.Parallel()
	scale(t, 1)
	addr := freeAddr(t)
	v := follow(t, startEdge(t, addr).addr)
	v.await(t, `"status":"stale"`)
	time.Sleep(time.Second) // the forwarder tries
	startBinary(t, nil, "-addr", addr, "-interval", "1s")
	v.await(t, `"status":"online"`)
	seen := v.stop()
	for _, a := range seen[:len(seen)-1] {
		if !strings.Contains(a.data, `"cpu":"N/A","memory":"N/A"`) {
			t.Errorf("meanwhile it shows %s", a.data)
		}
	}
}

func TestScaleEdgeThatIsRestartedHasTheNewestAtOnce(t *testing.T) {
	t.Parallel()
	scale(t, 1)
	origin := startBinary(t, nil, "-interval", "0", "-heartbeat", "1s")
	(&server{addr: origin.addr}).trigger(t) // before the edge is there
	edge := startEdge(t, origin.addr)
	follow(t, edge.addr).await(t, testMessage)
	time.Sleep(500 * time.Millisecond) // the forwarder has its answer, and nothing to try again
	edge.cmd.Process.Kill()
	edge.cmd.Wait()
	startBinary(t, nil, "-edge", "-addr", edge.addr)
	start := time.Now()
	follow(t, edge.addr).await(t, testMessage)
	t.Logf("it has the origin's newest %.1f s after its start", time.Since(start).Seconds())
}

func TestScaleEdgeOfAnOriginThatSendsRarelyStaysLive(t *testing.T) {
	t.Parallel()
	scale(t, 1)
	origin := startBinary(t, nil, "-interval", "0", "-heartbeat", "5s")
	v := follow(t, startEdge(t, origin.addr).addr)
	(&server{addr: origin.addr}).trigger(t)
	v.await(t, testMessage)
	time.Sleep(givenPatience + 2*time.Second)
	seen := v.stop()
	if newest := seen[len(seen)-1].data; !strings.Contains(newest, testMessage) || strings.Contains(newest, "stale") {
		t.Errorf("it shows %s", newest)
	}
}

func TestEdgesScriptStartsAllAndLeavesNothing(t *testing.T) {
	if _, err := exec.LookPath("haproxy"); err != nil {
		t.Skip("haproxy is not installed")
	}
	checkScript(t, "deploy/edges.sh")
}

// checkScript runs a script of deploy/, reads the stream at the first of its ports, and ends it.
func checkScript(t *testing.T, script string) {
	if testing.Short() {
		t.Skip("it builds the programs")
	}
	first := 20000 // below the ports that the kernel gives away
	for i := 0; i < 6; i++ {
		l, err := net.Listen("tcp", fmt.Sprint(":", first+i))
		if err != nil {
			first, i = first+i+1, -1
			continue
		}
		l.Close()
	}
	log := filepath.Join(t.TempDir(), "log")
	out, err := os.Create(log)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd := exec.Command(script, strconv.Itoa(first))
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	said := func() string { b, _ := os.ReadFile(log); return string(b) }
	for end := time.Now().Add(time.Minute); !strings.Contains(said(), "Ctrl-C"); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) || strings.Contains(said(), filepath.Base(script)+": ") {
			t.Fatalf("it does not start: %s", said())
		}
	}
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
}

// startEdge starts a server and the forwarder that feeds it from another's stream.
func startEdge(t *testing.T, upstream string) *process {
	t.Helper()
	edge := startBinary(t, nil, "-edge", "-origins", "https://dashboard.example.com")
	startForwarder(t, "http://"+upstream+"/dashboard/stream", "http://"+edge.addr+"/dashboard/snapshot")
	return edge
}

// startForwarder runs sse-client -forward until the test ends.
func startForwarder(t *testing.T, from, to string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(clientProgram(t), append([]string{"-url", from, "-forward", to}, args...)...)
	startLogged(t, cmd, "the forwarder to "+to)
	return cmd
}

var buildClient = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "sse-client")
	if err != nil {
		return "", err
	}
	out, err := exec.Command("go", "build", "-o", dir, "./goclient").CombinedOutput()
	if err != nil {
		err = fmt.Errorf("building sse-client: %w\n%s", err, out)
	}
	return dir, err
})

// clientProgram gives the path of an sse-client.
func clientProgram(t testing.TB) string {
	t.Helper()
	dir, err := buildClient()
	if err != nil {
		t.Fatal(err)
	}
	return dir + "/goclient"
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
	l := &load{cmd: exec.Command(clientProgram(t), "-url", url, "-clients", strconv.Itoa(n), "-json")}
	l.cmd.Env = append(os.Environ(), environ...)
	l.cmd.Stdout = &l.out
	if err := l.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.cmd.Process.Kill() })
	eventually(t, "all streams are open", func() bool { return streamsOpen(t, servers...) >= before+n })
	return l
}

func streamsOpen(t *testing.T, servers ...*process) (n int) {
	t.Helper()
	for _, p := range servers {
		m, _ := (&server{addr: p.addr}).metrics(t)
		n += int(m["sse_streams_open"])
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

func follow(t *testing.T, addr string) *viewer {
	t.Helper()
	c := dial(t, addr, "GET /dashboard/stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
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

// stop ends the stream and gives what came.
func (v *viewer) stop() []arrival {
	v.conn.Close()
	<-v.done
	return v.seen
}

// await waits until a snapshot that has text is the newest.
func (v *viewer) await(t *testing.T, text string) {
	t.Helper()
	for end := time.Now().Add(40 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		v.mu.Lock()
		n := len(v.seen)
		found := n > 0 && strings.Contains(v.seen[n-1].data, text)
		v.mu.Unlock()
		if found {
			return
		}
	}
	t.Fatalf("no snapshot with %s comes", text)
}

// mustBeWhole checks that got has each snapshot of want from the first that both have on, in the
// same order and once, and gives how much later each came. The last of want may be on its way.
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
		t.Errorf("%s has %d snapshots of %d, from number %d on", who, len(got), len(want), at+1)
		return nil
	}
	for i, a := range got[:min(len(got), len(want)-at)] {
		if a.data != want[at+i].data {
			t.Errorf("%s: the next snapshot is\n%s, want\n%s", who, a.data, want[at+i].data)
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
	return fmt.Sprintf("p50 %.2f ms, p99 %.2f ms, most %.2f ms", ms(len(d)/2), ms(len(d)*99/100), ms(len(d)-1))
}

// A use is what a process has used by a time.
type use struct {
	cpu      time.Duration
	resident float64 // MB
	at       time.Time
}

func usage(t testing.TB, pid int) use {
	t.Helper()
	u, _, _, err := readStat(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Skip("there is no /proc: ", err)
	}
	return u
}

// readStat reads a process's file of proc(5); Linux counts CPU time in hundredths of a second.
func readStat(name string) (u use, state string, group int, err error) {
	text, err := os.ReadFile(name)
	f := strings.Fields(string(text[strings.LastIndex(string(text), ")")+1:])) // from field 3 on
	if err != nil || len(f) < 22 {
		return u, "", 0, fmt.Errorf("reading %s: %q, %w", name, text, err)
	}
	number := func(i int) int { n, _ := strconv.Atoi(f[i-3]); return n }
	return use{time.Duration(number(14)+number(15)) * 10 * time.Millisecond,
		float64(number(24)*os.Getpagesize()) / 1e6, time.Now()}, f[0], number(5), nil
}

// since says what was used from then on.
func (u use) since(before use) string {
	return fmt.Sprintf("%.1f %% of a core, %.1f MB resident", 100*float64(u.cpu-before.cpu)/float64(u.at.Sub(before.at)), u.resident)
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
