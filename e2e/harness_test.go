// Package e2e tests the built programs from outside, as their users run them.
package e2e

import (
	"bufio"
	"compress/gzip"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// The programs under test. TestMain builds them once; SSE_BINARY names another server.
var serverProgram, clientProgram string

func TestMain(m *testing.M) {
	if addr := os.Getenv("TEST_ATTACK"); addr != "" { // see startAttack
		attackUntilEOF(addr)
		return
	}
	flag.Parse()
	if os.Getenv("SSE_E2E") == "" || testing.Short() {
		fmt.Println("testing: warning: no tests to run") // so that go test's line says it, too
		fmt.Println("e2e: set SSE_E2E=1 to run these tests, without -short")
		return
	}
	os.Exit(buildAndRun(m))
}

func buildAndRun(m *testing.M) (status int) {
	dir, err := os.MkdirTemp("", "e2e")
	if err != nil {
		fmt.Println("making a folder for the programs:", err)
		return 1
	}
	defer os.RemoveAll(dir)
	serverProgram, clientProgram = dir+"/sse-server", dir+"/sse-client"

	// The tests run in the project's folder. The programs are those of build.sh, without a version.
	if err := os.Chdir(".."); err != nil {
		fmt.Println(err)
		return 1
	}
	os.Setenv("CGO_ENABLED", "0")
	sources := map[string]string{serverProgram: "main.go", clientProgram: "./goclient"}
	for program, source := range sources {
		build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", program, source)
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Printf("building %s: %v\n%s", source, err, out)
			return 1
		}
	}
	if other := os.Getenv("SSE_BINARY"); other != "" {
		serverProgram = other
	}

	// Most tests wait for something nearly all the time: some more of them than there are cores.
	parallel := flag.Lookup("test.parallel").Value
	if parallel.String() == fmt.Sprint(runtime.GOMAXPROCS(0)) {
		parallel.Set("8")
	}
	status = m.Run()

	// Without its log, go test does not cache the result: it does not know the programs' sources.
	if log := flag.Lookup("test.testlogfile"); log != nil {
		os.Remove(log.Value.String())
	}
	return status
}

// A server is known by its address; it may be another program's.
type server struct{ addr string }

// request returns the answer's status, header and, except of a stream, body. header is names and
// values; a name whose value is empty is not sent.
func (s *server) request(t testing.TB, method, path string, header ...string) (
	code int, head http.Header, body string) {
	t.Helper()
	return s.send(t, method, path, "", header...)
}

// send is request with a body.
func (s *server) send(t testing.TB, method, path, body string, header ...string) (
	code int, head http.Header, answer string) {
	t.Helper()
	req, err := http.NewRequest(method, "http://"+s.addr+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		switch {
		case header[i] == "Host":
			req.Host = header[i+1]
		case header[i+1] != "":
			req.Header.Set(header[i], header[i+1])
		}
	}
	transport := &http.Transport{DisableKeepAlives: true, ResponseHeaderTimeout: 20 * time.Second}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		t.Error(err)
		return 0, http.Header{}, ""
	}
	defer resp.Body.Close()
	if resp.Header.Get("X-Accel-Buffering") != "" {
		return resp.StatusCode, resp.Header, ""
	}
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Error(err)
	}
	return resp.StatusCode, resp.Header, string(b)
}

const jsonType = "application/json"

// oneSentence is what an error's body is.
var oneSentence = regexp.MustCompile(`^[A-Z][^\n]*\.\n$`)

// put puts an external snapshot.
func (s *server) put(t testing.TB, snapshot string) {
	t.Helper()
	code, _, body := s.send(t, "PUT", "/dashboard/snapshot", snapshot, "Content-Type", jsonType)
	if code != 204 || body != "" {
		t.Errorf("PUT returns %d %q", code, body)
	}
}

func (s *server) deleteSnapshot(t testing.TB) {
	t.Helper()
	if code, _, body := s.request(t, "DELETE", "/dashboard/snapshot"); code != 204 {
		t.Errorf("DELETE returns %d %q", code, body)
	}
}

// post adds an activity.
func (s *server) post(t testing.TB, message string) {
	t.Helper()
	code, _, body := s.send(t, "POST", "/dashboard/activities", `{"message":"`+message+`"}`,
		"Content-Type", jsonType)
	if code != 201 {
		t.Errorf("POST returns %d %q", code, body)
	}
}

type triggerReply struct {
	Message string
	ID      int64
	Streams int
}

func (s *server) trigger(t testing.TB) (reply triggerReply) {
	t.Helper()
	code, head, body := s.request(t, "GET", "/dashboard/trigger-test")
	err := json.Unmarshal([]byte(body), &reply)
	if code != 200 || err != nil || head.Get("Content-Type") != jsonType {
		t.Errorf("the trigger returns %d %q", code, body)
	}
	return reply
}

// waitForSnapshot waits until there is one.
func (s *server) waitForSnapshot(t testing.TB) {
	t.Helper()
	eventually(t, "there is a snapshot", func() bool { return s.debug(t).LastID > 0 })
}

// debugState is what /dashboard/debug shows.
type debugState struct {
	Version    string
	Settings   map[string]string
	Source     string
	Status     string
	Age        *float64 `json:"snapshot_age_seconds"`
	Open       int      `json:"streams_open"`
	Opened     int      `json:"streams_opened"`
	Rejected   int      `json:"streams_rejected"`
	Skipped    int      `json:"events_skipped"`
	LastID     int64    `json:"last_id"`
	Goroutines int
	Streams    []struct {
		Remote    string
		UserAgent string `json:"user_agent"`
		Encoding  string
		Events    int
	}
}

func (s *server) debug(t testing.TB) (d debugState) {
	t.Helper()
	_, _, body := s.request(t, "GET", "/dashboard/debug")
	if err := json.Unmarshal([]byte(body), &d); err != nil {
		t.Fatalf("/dashboard/debug: %v in %s", err, body)
	}
	return d
}

// metrics returns the values of /metrics by name and labels.
func (s *server) metrics(t testing.TB) map[string]float64 {
	t.Helper()
	code, _, text := s.request(t, "GET", "/metrics")
	if code != 200 {
		t.Fatalf("/metrics returns %d", code)
	}
	values := map[string]float64{}
	for _, line := range strings.Split(text, "\n") {
		if name, value, ok := strings.Cut(line, "} "); ok {
			values[name+"}"], _ = strconv.ParseFloat(value, 64)
		} else if name, value, ok := strings.Cut(line, " "); ok && !strings.HasPrefix(line, "#") {
			values[name], _ = strconv.ParseFloat(value, 64)
		}
	}
	return values
}

// A process is a server that a test started. Its log is in text.
type process struct {
	server
	cmd     *exec.Cmd
	logPipe io.Closer
	logEnds chan struct{} // closed when all is in text
	mu      sync.Mutex    // guards text
	text    strings.Builder
}

// serverCommand is the server with these arguments, whatever SSE_ variables the tests have.
func serverCommand(args ...string) *exec.Cmd {
	return withoutSettings(exec.Command(serverProgram, args...))
}

// serverAfter is serverCommand in a shell that runs a script first.
func serverAfter(script string, args ...string) *exec.Cmd {
	args = append([]string{"-c", script + `; exec "$0" "$@"`, serverProgram}, args...)
	return withoutSettings(exec.Command("sh", args...))
}

func withoutSettings(cmd *exec.Cmd) *exec.Cmd {
	cmd.Env = []string{}
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "SSE_") {
			cmd.Env = append(cmd.Env, v)
		}
	}
	return cmd
}

// startServer starts a server on a free port and waits until it listens. It ends with the test.
func startServer(t testing.TB, args ...string) *process {
	t.Helper()
	return startCommand(t, serverCommand(append([]string{"-addr", "127.0.0.1:0"}, args...)...))
}

var listeningLine = regexp.MustCompile(`listening.*?http://([^/]*)/`)

// startCommand is startServer with a command of the test's own.
func startCommand(t testing.TB, cmd *exec.Cmd) *process {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = w
	p := &process{cmd: cmd, logPipe: r, logEnds: make(chan struct{})}
	err = cmd.Start()
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait(); r.Close() })

	addr := make(chan string, 1)
	go func() {
		defer close(p.logEnds)
		for lines := bufio.NewScanner(r); lines.Scan(); {
			p.mu.Lock()
			fmt.Fprintln(&p.text, lines.Text())
			p.mu.Unlock()
			if m := listeningLine.FindStringSubmatch(lines.Text()); m != nil && len(addr) == 0 {
				addr <- m[1]
			}
		}
	}()
	select {
	case p.addr = <-addr:
	case <-p.logEnds:
		t.Fatalf("the server ended: %s", p.log())
	case <-time.After(20 * time.Second):
		t.Fatalf("the server does not start: %s", p.log())
	}
	return p
}

// stop ends the server as an operator does.
func (p *process) stop(t testing.TB) {
	t.Helper()
	p.cmd.Process.Signal(syscall.SIGTERM)
	if err := p.wait(); err != nil {
		t.Errorf("the server ended with %v: %s", err, p.log())
	}
}

// wait waits until the server has ended and its log is read. It kills one that hangs.
func (p *process) wait() error {
	defer time.AfterFunc(20*time.Second, func() { p.cmd.Process.Kill() }).Stop()
	err := p.cmd.Wait()
	<-p.logEnds
	return err
}

// kill ends the server without a word.
func (p *process) kill() {
	p.cmd.Process.Kill()
	p.cmd.Wait()
}

func (p *process) pid() int { return p.cmd.Process.Pid }

func (p *process) log() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.text.String()
}

// mustLog waits until the log has a line.
func (p *process) mustLog(t testing.TB, pattern string) {
	t.Helper()
	line := regexp.MustCompile(pattern)
	eventually(t, "the log has "+pattern, func() bool { return line.MatchString(p.log()) })
}

// A client reads a stream from a bare socket.
type client struct {
	net.Conn
	r *bufio.Reader // after begin: the stream without chunks, and not compressed
}

type event struct {
	id   int64
	data string
}

const streamRequest = "GET /dashboard/stream HTTP/1.1\r\nHost: localhost\r\n\r\n"

// eventSourceRequest is one that gets 200 even from a full server.
const eventSourceRequest = "GET /dashboard/stream HTTP/1.1\r\nHost: localhost\r\n" +
	"Accept: text/event-stream\r\n\r\n"

// gzipRequest is a browser's.
const gzipRequest = "GET /dashboard/stream HTTP/1.1\r\nHost: localhost\r\n" +
	"User-Agent: Mozilla/5.0 (e2e)\r\nAccept: text/event-stream\r\n" +
	"Accept-Encoding: gzip, deflate\r\n\r\n"

func dial(t testing.TB, addr, request string) *client {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if _, err := io.WriteString(c, request); err != nil {
		t.Fatal(err)
	}
	return &client{c, bufio.NewReader(c)}
}

// stream opens a stream and reads its head and its retry.
func (s *server) stream(t testing.TB) *client {
	t.Helper()
	return dial(t, s.addr, streamRequest).begin(t)
}

// begin reads a stream up to the line with retry.
func (c *client) begin(t testing.TB) *client {
	t.Helper()
	if err := c.beginStream(); err != nil {
		t.Fatal(err)
	}
	return c
}

func (c *client) beginStream() error {
	c.SetReadDeadline(time.Now().Add(20 * time.Second))
	head, err := readHead(c.r)
	if err != nil {
		return err
	}
	if !strings.HasPrefix(head, "HTTP/1.") || !strings.Contains(head, " 200 OK\r\n") {
		return fmt.Errorf("the stream begins with %q", head)
	}
	if strings.Contains(head, "\r\nTransfer-Encoding: chunked\r\n") {
		c.r = bufio.NewReader(httputil.NewChunkedReader(c.r))
	}
	if strings.Contains(head, "\r\nContent-Encoding: gzip\r\n") {
		z, err := gzip.NewReader(c.r)
		if err != nil {
			return err
		}
		c.r = bufio.NewReader(z)
	}
	if line, err := c.r.ReadString('\n'); !strings.HasPrefix(line, "retry: ") {
		return fmt.Errorf("after the head comes %q, %v", line, err)
	}
	return nil
}

// readHead reads an answer's head, with the empty line at its end.
func readHead(r *bufio.Reader) (head string, err error) {
	for !strings.HasSuffix(head, "\r\n\r\n") {
		line, err := r.ReadString('\n')
		if err != nil {
			return head, err
		}
		head += line
	}
	return head, nil
}

// line reads the next line; it waits for it for twenty seconds.
func (c *client) line(t testing.TB) string {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(20 * time.Second))
	line, err := c.r.ReadString('\n')
	if err != nil {
		t.Fatalf("after %q: %v", line, err)
	}
	return line
}

// event reads the next event, and fails on anything that is neither an event nor a heartbeat.
func (c *client) event(t testing.TB) (e event) {
	t.Helper()
	line := c.line(t)
	for line == ": heartbeat\n" {
		c.mustRead(t, "\n")
		line = c.line(t)
	}
	data := c.line(t)
	_, err := fmt.Sscanf(line, "id: %d\n", &e.id)
	if err != nil || !strings.HasPrefix(data, "data: ") {
		t.Fatalf("this is no event: %q %q", line, data)
	}
	c.mustRead(t, "\n")
	e.data = strings.TrimSuffix(strings.TrimPrefix(data, "data: "), "\n")
	return e
}

// heartbeat reads the next heartbeat, and fails on anything else.
func (c *client) heartbeat(t testing.TB) {
	t.Helper()
	c.mustRead(t, ": heartbeat\n")
	c.mustRead(t, "\n")
}

func (c *client) mustRead(t testing.TB, want string) {
	t.Helper()
	if line := c.line(t); line != want {
		t.Fatalf("the stream has %q, want %q", line, want)
	}
}

// An activity is one of a snapshot's.
type activity struct{ Time, Message, Level string }

func (e event) activities(t testing.TB) []activity {
	t.Helper()
	var s struct{ Activities []activity }
	if err := json.Unmarshal([]byte(e.data), &s); err != nil {
		t.Fatalf("%v in %s", err, e.data)
	}
	return s.Activities
}

// snapshotPattern is the form of a snapshot of a host on which all can be measured.
var snapshotPattern = regexp.MustCompile(`^\{` +
	`"system_status":\{"status":"(online|degraded|critical)",` +
	`"uptime":"(less than a minute|(\d+ (day|hour|minute)s?)(, \d+ (hour|minute)s?)?)",` +
	`"last_check":"\d\d:\d\d:\d\d","message":"[^"]+"\},` +
	`"metrics":\{"cpu":"\d+%","memory":"\d+%","disk":"\d+%",` +
	`"network":"(\d\.\d|\d\d+) Mbps|N/A","response_time":"\d+ms"\},` +
	`"activities":\[\{"time":"\d\d:\d\d:\d\d","message":"Dashboard updated","level":"info",` +
	`"css_class":"activity-info"\}.*\],"timestamp":"\d\d:\d\d:\d\d"\}$`)

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
		t.Fatal(err)
	}
	return u
}

// groupUsage sums the processes of a group.
func groupUsage(group int) (sum use, processes int) {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, name := range stats {
		if u, state, its, err := readStat(name); err == nil && its == group && state != "Z" {
			sum = use{cpu: sum.cpu + u.cpu, resident: sum.resident + u.resident, at: u.at}
			processes++
		}
	}
	return sum, processes
}

// readStat reads a process's file of proc(5); Linux counts CPU time in hundredths of a second.
func readStat(name string) (u use, state string, group int, err error) {
	text, err := os.ReadFile(name)
	f := strings.Fields(string(text[strings.LastIndex(string(text), ")")+1:])) // from field 3 on
	if err != nil || len(f) < 22 {
		return u, "", 0, fmt.Errorf("reading %s: %q, %w", name, text, err)
	}
	number := func(i int) int { n, _ := strconv.Atoi(f[i-3]); return n }
	u.cpu = time.Duration(number(14)+number(15)) * 10 * time.Millisecond
	u.resident = float64(number(24)*os.Getpagesize()) / 1e6
	u.at = time.Now()
	return u, f[0], number(5), nil
}

// since says what was used from then on.
func (u use) since(before use) string {
	share := 100 * float64(u.cpu-before.cpu) / float64(u.at.Sub(before.at))
	return fmt.Sprintf("%.1f %% of a core, %.1f MB resident", share, u.resident)
}

// openFiles is the number of a process's descriptors.
func openFiles(t testing.TB, pid int) int {
	t.Helper()
	names, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}

// need skips a test where a program is not installed.
func need(t testing.TB, programs ...string) {
	t.Helper()
	for _, name := range programs {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("%s is not installed", name)
		}
	}
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("it needs root")
	}
}

// startLogged runs a program until the test ends. What it says is shown if the test fails.
func startLogged(t testing.TB, cmd *exec.Cmd, name string) {
	t.Helper()
	log, err := os.Create(t.TempDir() + "/log")
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		log.Close()
		if b, _ := os.ReadFile(log.Name()); t.Failed() {
			t.Logf("%s says\n%s", name, b)
		}
	})
}

// exitStatus is the status with which a command ended, -1 if a signal ended it.
func exitStatus(err error) int {
	var e *exec.ExitError
	if errors.As(err, &e) {
		return e.ExitCode()
	}
	return 0
}

func read(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// eventually fails if ok does not become true within twenty seconds.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	within(t, 20*time.Second, what, ok)
}

func within(t testing.TB, d time.Duration, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("within %v it never became true that %s", d, what)
}
