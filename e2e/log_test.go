package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"sse-server/e2e/tools"
)

func TestLogHasALineForEachStepOfAStream(t *testing.T) {
	t.Parallel()
	p := startServer(t, "-interval", "100ms", "-heartbeat", "300ms", "-log-level", "debug")
	p.mustLog(t, `level=DEBUG msg=heartbeat streams=0`) // nobody watches
	request := "GET /dashboard/stream HTTP/1.1\r\nHost: localhost\r\nUser-Agent: me\r\n\r\n"
	c := dial(t, p.addr, request).begin(t)
	for c.line(t) != ": heartbeat\n" {
	}
	id := p.trigger(t).ID
	c.Close()
	for _, want := range []string{
		`level=INFO msg=listening url=http://127.0.0.1:\d+/ version=\S+ .*heartbeat=300ms`,
		`level=INFO msg="stream opened" stream=1 remote=127.0.0.1:\d+ user_agent=me`,
		`level=DEBUG msg=broadcast .*id=\d+ streams=\d`,
		fmt.Sprintf(`level=INFO msg=broadcast .*id=%d streams=1 duration=\S+s`, id),
		`level=INFO msg=heartbeat streams=1`,
		`level=INFO msg="stream closed" stream=1 remote=127.0.0.1:\d+ reason=client .*` +
			`duration=\S+s events=\d+ streams=0`,
	} {
		p.mustLog(t, want)
	}
	p.stream(t)
	p.stop(t)
	p.mustLog(t, `level=INFO msg=stopped streams\w*=1 duration=\S+s`)
	if log := p.log(); strings.Contains(log, "level=INFO msg=heartbeat streams=0") {
		t.Errorf("heartbeats to nobody are at info:\n%s", log)
	}
}

func TestLogFirstLineFitsATerminal(t *testing.T) {
	if tools.Listens("127.0.0.1:3001") {
		t.Skip("port 3001, the default, is taken")
	}
	p := startCommand(t, serverCommand())
	p.stop(t)
	first, _, _ := strings.Cut(p.log(), "\n")
	if len(first) > 100 || strings.Contains(first, "map[") {
		t.Errorf("the first line has %d characters: %s", len(first), first)
	}
}

func TestLogFirstLineNamesWhatIsNotDefault(t *testing.T) {
	t.Parallel()
	p := startServer(t, "-interval", "7s", "-edge", "-heartbeat", "30s")
	p.stop(t)
	first, _, _ := strings.Cut(p.log(), "\n")
	if !strings.Contains(first, " interval=7s") || !strings.Contains(first, " edge=true") ||
		strings.Contains(first, "heartbeat") {
		t.Errorf("the first line is %s", first)
	}
}

// sum adds up the numbers that a pattern's group matches in the log.
func (p *process) sum(pattern string) (total int) {
	for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(p.log(), -1) {
		n, _ := strconv.Atoi(m[1])
		total += n
	}
	return total
}

func TestLogSumsUpABurstOfStreams(t *testing.T) {
	t.Parallel()
	const viewers = 400
	p, start := startServer(t), time.Now()
	conns := make([]net.Conn, viewers)
	var dialing sync.WaitGroup
	for i := range conns {
		i := i
		dialing.Add(1)
		go func() {
			defer dialing.Done()
			if conns[i] = open(p.addr, streamRequest); conns[i] == nil {
				t.Error("there is no connection")
			}
		}()
	}
	dialing.Wait()
	single := func(what string) int { return strings.Count(p.log(), `msg="stream `+what+`"`) }
	summed := func(what string) int {
		return p.sum(`msg="streams opened and closed".* ` + what + `=(\d+)`)
	}
	eventually(t, "all opened streams are in the log", func() bool {
		return single("opened")+summed("opened") == viewers
	})
	p.mustLog(t, fmt.Sprintf(`msg="streams opened and closed" .*streams=%d\n`, viewers))
	for _, c := range conns {
		c.Close()
	}
	eventually(t, "all closed streams are in the log", func() bool {
		return single("closed")+summed("closed") == viewers
	})
	seconds := int(time.Since(start)/time.Second) + 2
	if n := single("opened") + single("closed"); n > 20*seconds {
		t.Errorf("%d streams have %d lines of their own in %d s", viewers, n, seconds)
	}
	if n := strings.Count(p.log(), `msg="streams opened and closed"`); n > seconds {
		t.Errorf("there are %d summaries in %d s", n, seconds)
	}
	p.stop(t)
}

func TestLogRejectionsAreAtDebug(t *testing.T) {
	t.Parallel()
	p := startServer(t, "-log-level", "debug")
	quiet := startServer(t)
	for _, s := range []*process{p, quiet} {
		s.request(t, "GET", "/nothing")
		s.request(t, "DELETE", "/health")
		s.send(t, "POST", "/dashboard/activities", `{"message":"x"}`, "Content-Type", "text/plain")
		s.request(t, "GET", "/dashboard/debug", "Origin", "http://evil.example")
	}
	for _, status := range []int{404, 405, 415, 403} {
		p.mustLog(t, `level=DEBUG msg="request rejected" .*remote=127.0.0.1:\d+ .*`+
			fmt.Sprint("status=", status))
	}
	p.mustLog(t, `msg="request rejected" .*reason=`)
	quiet.stop(t)
	if log := quiet.log(); strings.Contains(log, "rejected") {
		t.Errorf("at info, the log has\n%s", log)
	}
}

func TestLogRejectedStreamIsAWarning(t *testing.T) {
	t.Parallel()
	p := startServer(t, "-max-streams", "1")
	p.stream(t)
	p.request(t, "GET", "/dashboard/stream")
	p.mustLog(t, `level=WARN msg="stream rejected" .*remote=127.0.0.1:\d+`)
}

func TestLogJSONHasDurationsWithAUnit(t *testing.T) {
	t.Parallel()
	p := startServer(t, "-log-format", "json")
	c := p.stream(t)
	c.event(t)
	c.Close()
	p.mustLog(t, `"msg":"stream closed".*"duration":"[^"]*s"`)
	p.stop(t)
	p.mustLog(t, `"msg":"stopped".*"duration":"[^"]*s"`)
	mustBeJSON(t, strings.Split(strings.TrimSpace(p.log()), "\n"))
}

func mustBeJSON(t testing.TB, lines []string) {
	t.Helper()
	for _, line := range lines {
		var fields struct{ Time, Level, Msg string }
		err := json.Unmarshal([]byte(line), &fields)
		if err != nil || fields.Time == "" || fields.Level == "" || fields.Msg == "" {
			t.Errorf("a line is no JSON object of the log: %q", line)
		}
	}
}

// An unreadLog is a server whose log a test reads line by line, or not at all.
type unreadLog struct {
	*process
	pipe  *os.File
	lines *bufio.Reader
}

// startUnread starts a server and reads the first line of its log only.
func startUnread(t testing.TB, args ...string) *unreadLog {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := serverCommand(append([]string{"-addr", "127.0.0.1:0"}, args...)...)
	cmd.Stderr = w
	err = cmd.Start()
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait(); r.Close() })
	ended := make(chan struct{})
	close(ended)
	u := &unreadLog{
		process: &process{cmd: cmd, logEnds: ended},
		pipe:    r, lines: bufio.NewReaderSize(r, 512),
	}
	line, err := u.lines.ReadString('\n')
	m := listeningLine.FindStringSubmatch(line)
	if err != nil || m == nil {
		t.Fatalf("the log begins with %q, %v", line, err)
	}
	u.addr = m[1]
	return u
}

// fillLog makes more lines of a log at debug than its pipe and the server keep.
func (u *unreadLog) fillLog(t testing.TB) {
	t.Helper()
	const batch, batches = 100, 250
	c := dial(t, u.addr, "")
	requests := strings.Repeat("GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n", batch)
	for i := 0; i < batches; i++ {
		if _, err := io.WriteString(c, requests); err != nil {
			t.Fatal(err)
		}
		for answers := 0; answers < batch; {
			if strings.HasPrefix(c.line(t), "HTTP/1.1 404 ") {
				answers++
			}
		}
	}
}

func TestLogThatNobodyReadsDelaysNothing(t *testing.T) {
	t.Parallel()
	u := startUnread(t, "-interval", "100ms", "-log-level", "debug")
	c := u.stream(t)
	c.event(t)
	u.fillLog(t)
	for i := 0; i < 10; i++ {
		id := u.trigger(t).ID
		for c.event(t).id != id {
		}
	}
	u.cmd.Process.Signal(syscall.SIGTERM)
	if err := u.wait(); err != nil {
		t.Errorf("the server ended with %v", err)
	}
}

// What was dropped is told, and in JSON, too.
func TestLogTellsWhatWasDropped(t *testing.T) {
	t.Parallel()
	for _, format := range []string{"text", "json"} {
		format := format
		t.Run(format, func(t *testing.T) {
			t.Parallel()
			u := startUnread(t, "-interval", "0", "-log-level", "debug", "-log-format", format)
			u.fillLog(t)
			// The server may tell it with the next line that it writes.
			stop, more := make(chan struct{}), make(chan struct{})
			go func() {
				defer close(more)
				for {
					select {
					case <-stop:
						return
					default:
						if c := open(u.addr, "GET /nothing HTTP/1.0\r\n\r\n"); c != nil {
							c.Read(make([]byte, 1000))
							c.Close()
						}
					}
				}
			}()
			var lines []string
			u.pipe.SetReadDeadline(time.Now().Add(20 * time.Second))
			told := false
			for !told {
				line, err := u.lines.ReadString('\n')
				if err != nil {
					break
				}
				lines = append(lines, line)
				told = strings.Contains(line, "dropped")
			}
			close(stop)
			<-more
			if !told {
				t.Fatalf("none of %d lines says that some were dropped", len(lines))
			}
			t.Logf("after %d lines: %s", len(lines), lines[len(lines)-1])
			if format == "json" {
				mustBeJSON(t, lines)
				return
			}
			for _, line := range lines {
				if !strings.HasPrefix(line, "time=") || !strings.Contains(line, " msg=") {
					t.Errorf("a line is not like the others: %q", line)
				}
			}
		})
	}
}

func TestLogPipeThatDiedEndsNothing(t *testing.T) {
	t.Parallel()
	p := startServer(t)
	p.logPipe.Close()
	for i := 0; i < 3; i++ {
		p.stream(t).event(t) // logs a line
	}
	p.stop(t)
}

func TestLogShowsNoPasswordOfTheProbe(t *testing.T) {
	t.Parallel()
	p := startServer(t, "-probe", "http://me:s3cret@127.0.0.1:1/up")
	_, _, body := p.request(t, "GET", "/dashboard/debug")
	if strings.Contains(body, "s3cret") || !strings.Contains(body, "127.0.0.1:1/up") {
		t.Errorf("the state is %s", body)
	}
	p.mustLog(t, "level=WARN .*source=probe")
	p.stop(t)
	if log := p.log(); strings.Contains(log, "s3cret") {
		t.Errorf("the log is\n%s", log)
	}
}

func TestLogHasTheAddressOfAWrongToken(t *testing.T) {
	t.Parallel()
	cmd := serverCommand("-addr", "127.0.0.1:0", "-log-level", "debug")
	cmd.Env = append(cmd.Env, "SSE_TOKEN=s3cret")
	p := startCommand(t, cmd)
	for _, c := range []struct {
		header string
		want   int
	}{{"", 401}, {"Bearer guess1", 401}, {"Bearer s3cret", 200}} {
		code, head, body := p.request(t, "GET", "/dashboard/debug", "Authorization", c.header)
		if code != c.want || strings.Contains(body+fmt.Sprint(head), "s3cret") {
			t.Errorf("with %q the answer is %d %v %s", c.header, code, head, body)
		}
	}
	p.stop(t)
	p.mustLog(t, `msg="(wrong token|request rejected)" .*remote=127.0.0.1:\d+`)
	log := p.log()
	if strings.Contains(log, "s3cret") || strings.Contains(log, "guess1") {
		t.Errorf("the log is\n%s", log)
	}
}

func TestLogWarnsOnceOfAServerWithoutAToken(t *testing.T) {
	t.Parallel()
	for addr, want := range map[string]int{"127.0.0.1:0": 0, "0.0.0.0:0": 1} {
		p := startServer(t, "-addr", addr)
		p.stop(t)
		if n := strings.Count(p.log(), "level=WARN"); n != want {
			t.Errorf("at %s there are %d warnings in\n%s", addr, n, p.log())
		}
	}
}
