package e2e

import (
	"errors"
	"fmt"
	"io"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"sse-server/e2e/tools"
)

func TestSignalEndsEachStreamWithItsRetry(t *testing.T) {
	t.Parallel()
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP} {
		signal := signal
		t.Run(signal.String(), func(t *testing.T) {
			t.Parallel()
			p := startServer(t)
			var clients []*client
			for i := 0; i < 50; i++ {
				c := p.stream(t)
				c.event(t)
				clients = append(clients, c)
			}
			start := time.Now()
			p.cmd.Process.Signal(signal)
			retries := map[string]bool{}
			for _, c := range clients {
				rest, err := io.ReadAll(c.r)
				m := regexp.MustCompile(`retry: ([1-4]\d{3})\n\n$`).FindStringSubmatch(string(rest))
				if err != nil || m == nil {
					t.Fatalf("a stream ended with %q, %v", rest, err)
				}
				retries[m[1]] = true
			}
			if len(retries) < 25 {
				t.Errorf("50 streams have only %d different retry times", len(retries))
			}
			if err := p.wait(); err != nil {
				t.Errorf("the server ended with %v", err)
			}
			t.Logf("it ended after %v", time.Since(start))
			if tools.Listens(p.addr) {
				t.Error("the port is still open")
			}
			p.mustLog(t, `msg=stopped streams\w*=50 `)
		})
	}
}

// A compressed stream is told, too.
func TestSignalEndsACompressedStream(t *testing.T) {
	t.Parallel()
	p := startServer(t)
	c := dial(t, p.addr, gzipRequest).begin(t)
	c.event(t)
	p.cmd.Process.Signal(syscall.SIGTERM)
	rest, _ := io.ReadAll(c.r)
	if !regexp.MustCompile(`retry: [1-4]\d{3}\n\n$`).Match(rest) {
		t.Errorf("the stream ended with %q", rest)
	}
}

// nohup(1) starts programs with SIGHUP ignored, so that they survive their terminal.
func TestSignalHangupIsIgnoredUnderNohup(t *testing.T) {
	t.Parallel()
	p := startCommand(t, serverAfter(`trap "" HUP`, "-addr", "127.0.0.1:0", "-interval", "0"))
	c := p.stream(t)
	c.event(t)
	status := read(t, fmt.Sprintf("/proc/%d/status", p.pid()))
	ignored := regexp.MustCompile(`(?m)^SigIgn:\t[0-9a-f]{15}([0-9a-f])$`).FindStringSubmatch(status)
	if ignored == nil || !strings.Contains("13579bdf", ignored[1]) { // SIGHUP is number 1
		t.Errorf("the server does not ignore SIGHUP:\n%s", status)
	}
	for i := 0; i < 20; i++ { // some of these come after the server could have begun to stop
		p.cmd.Process.Signal(syscall.SIGHUP)
		id := p.trigger(t).ID
		if e := c.event(t); e.id != id {
			t.Errorf("after SIGHUP and trigger %d comes event %d", id, e.id)
		}
	}
	p.stop(t)
}

// unfinishedPost is a request whose body never comes whole.
const unfinishedPost = "POST /dashboard/activities HTTP/1.1\r\nHost: localhost\r\n" +
	"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"

func TestSignalSecondEndsTheServerAtOnce(t *testing.T) {
	t.Parallel()
	p := startServer(t)
	dial(t, p.addr, unfinishedPost)
	p.stream(t).event(t) // the server has the first by now
	p.cmd.Process.Signal(syscall.SIGTERM)
	eventually(t, "the server stops listening", func() bool { return !tools.Listens(p.addr) })
	ended := make(chan error, 1)
	go func() { ended <- p.wait() }()
	for {
		select {
		case err := <-ended:
			var e *exec.ExitError
			if !errors.As(err, &e) || e.Sys().(syscall.WaitStatus).Signal() != syscall.SIGTERM {
				t.Errorf("ended with %v, want it killed by the second signal", err)
			}
			return
		case <-time.After(10 * time.Millisecond):
			p.cmd.Process.Signal(syscall.SIGTERM)
		}
	}
}

// Neither half a head nor half a body delays the end until its own time limit of five seconds.
func TestSignalEndsHalfARequestSoon(t *testing.T) {
	t.Parallel()
	p := startServer(t)
	dial(t, p.addr, "GET /health HTTP/1.1\r\nHost: localhost\r\nX-")
	dial(t, p.addr, unfinishedPost)
	p.stream(t).event(t)
	start := time.Now()
	p.cmd.Process.Signal(syscall.SIGTERM)
	if err := p.wait(); err != nil || time.Since(start) > 4*time.Second {
		t.Errorf("ended after %v with %v", time.Since(start), err)
	}
}
