package e2e

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const connectionsClosed = "sse_connections_closed_total"

// startWithFiles starts a server that may have so many descriptors. One twentieth of them, and at
// least 32, is the share of connections that are not streams.
func startWithFiles(t *testing.T, files int, args ...string) *process {
	t.Helper()
	var limit syscall.Rlimit
	syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit)
	if limit.Max < uint64(files) {
		t.Skipf("the limit of descriptors is %d, and %d are needed", limit.Max, files)
	}
	script := fmt.Sprint("ulimit -n ", files)
	args = append([]string{"-addr", "127.0.0.1:0"}, args...)
	return startCommand(t, serverAfter(script, args...))
}

// Peers that send half a request, and come back, take nothing from streams, probe and /health. It
// runs alone, because other tests would delay /health, too.
func TestConnectionsHalfRequestsHarmNobody(t *testing.T) {
	p := startWithFiles(t, 200, "-interval", "100ms", "-heartbeat", "400ms")
	p.waitForSnapshot(t)
	stop := make(chan struct{})
	readers := make([]*reader, 20)
	var reading sync.WaitGroup
	for i := range readers {
		i, r := i, &reader{}
		readers[i] = r
		reading.Add(1)
		go func() { defer reading.Done(); r.follow(t, p.addr, i%2 == 0, stop) }()
	}
	watcher := follow(t, p.addr)
	eventually(t, "all metrics are measured", func() bool {
		return p.metrics(t)["sse_streams_open"] == 21 && watcher.count() > 0 &&
			!strings.Contains(watcher.newest(), "N/A")
	})
	quiet := watcher.count()

	endAttack := sendHalfRequests(p.addr, 260)
	closed := func() float64 { return p.metrics(t)[connectionsClosed] }
	eventually(t, "so many connections are closed", func() bool { return closed() > 260 })
	before := closed()
	var health spread
	for i := 0; i < 16; i++ {
		start := time.Now()
		if code, _, body := p.request(t, "GET", "/health"); code != 200 || body != "OK" {
			t.Errorf("/health returns %d %q", code, body)
		}
		health = append(health, time.Since(start))
	}
	after := closed()
	eventually(t, "there were several probes", func() bool { return watcher.count() > quiet+60 })
	endAttack()

	slices.Sort(health)
	t.Logf("%.0f connections were closed, /health returned after %v", after-before, health)
	if after <= before {
		t.Errorf("%s went from %v to %v", connectionsClosed, before, after)
	}
	if worst := health[len(health)-1]; worst > 2*time.Second {
		t.Errorf("/health took %v", worst)
	}
	close(stop)
	reading.Wait()
	mustMissNothing(t, readers)
	for _, a := range watcher.stop()[quiet:] {
		isReal := snapshotPattern.MatchString(strings.TrimSpace(a.data))
		if !isReal || strings.Contains(a.data, "N/A") || strings.Contains(a.data, "probe failed") {
			t.Fatalf("a snapshot is %s", a.data)
		}
	}
	p.stop(t)
}

// sendHalfRequests starts peers that send the first word of a request, and do so again whenever
// they are closed.
func sendHalfRequests(addr string, peers int) (end func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var sending sync.WaitGroup
	for i := 0; i < peers; i++ {
		sending.Add(1)
		go func() {
			defer sending.Done()
			for ctx.Err() == nil {
				c, err := net.Dial("tcp", addr)
				if err != nil {
					time.Sleep(10 * time.Millisecond)
					continue
				}
				stopClosing := context.AfterFunc(ctx, func() { c.Close() })
				io.WriteString(c, "GET")
				io.Copy(io.Discard, c)
				stopClosing()
				c.Close()
			}
		}()
	}
	return func() { cancel(); sending.Wait() }
}

// Viewers that come at the same instant all get their stream, however few may wait for one.
func TestConnectionsStormOfViewersLosesNone(t *testing.T) {
	for _, storm := range []struct{ files, share, viewers int }{
		{640, 32, 500}, {4000, 200, 2000},
	} {
		t.Run(fmt.Sprintf("%d through a share of %d", storm.viewers, storm.share), func(t *testing.T) {
			p := startWithFiles(t, storm.files)
			p.waitForSnapshot(t)
			took := openAtOnce(t, p.addr, storm.viewers)
			slices.Sort(took)
			t.Logf("%d viewers had the first event after %v, %.0f connections were closed",
				len(took), took, p.metrics(t)[connectionsClosed])
			p.stop(t)
		})
	}
}

// openAtOnce opens n streams and keeps them until each has its first event or has failed. It
// returns how long that took.
func openAtOnce(t *testing.T, addr string, n int) (took spread) {
	t.Helper()
	connecting := make(chan struct{}, 16) // so few that each sends its request as soon as it can
	failures := make(chan error, n)       // or nil
	leave := make(chan struct{})
	defer close(leave)
	start := time.Now()
	for i := 0; i < n; i++ {
		go func() {
			c, wasPrompt, err := openStream(addr, connecting)
			for err != nil && !wasPrompt {
				c, wasPrompt, err = openStream(addr, connecting)
			}
			failures <- err
			if err == nil {
				<-leave
				c.Close()
			}
		}()
	}

	lost := 0
	for i := 0; i < n; i++ {
		err := <-failures
		if err == nil {
			took = append(took, time.Since(start))
			continue
		}
		lost++
		if lost == 1 {
			t.Errorf("a viewer got no stream: %v", err)
		}
	}
	if lost > 0 {
		t.Fatalf("%d of %d viewers got no stream", lost, n)
	}
	return took
}

// openStream opens a stream up to its first event. connecting has room for viewers that connect.
// A viewer whose request is not sent at once, because this machine is busy, was not prompt: the
// server may close it.
func openStream(addr string, connecting chan struct{}) (c *client, wasPrompt bool, err error) {
	const promptly = 50 * time.Millisecond

	connecting <- struct{}{}
	start := time.Now()
	conn, err := net.Dial("tcp", addr)
	if err == nil {
		_, err = io.WriteString(conn, streamRequest)
	}
	wasPrompt = time.Since(start) < promptly
	<-connecting
	if err != nil {
		return nil, wasPrompt, err
	}

	c = &client{conn, bufio.NewReader(conn)}
	err = c.beginStream()
	for line := "\n"; line == "\n" && err == nil; { // an empty line ends the retry
		line, err = c.r.ReadString('\n')
		if err == nil && line != "\n" && !strings.HasPrefix(line, "id: ") {
			err = fmt.Errorf("after the retry comes %q", line)
		}
	}
	if err != nil {
		conn.Close()
	}
	return c, wasPrompt, err
}

// Pooled connections are still open when they are used again after some seconds.
func TestConnectionsOfAPoolOutliveAPause(t *testing.T) {
	t.Parallel()
	p := startServer(t)
	var limit syscall.Rlimit
	syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit)
	share := min(max(int(limit.Max)/20, 32), 1024)
	pool := make([]*client, min(150, share*3/4))
	for i := range pool {
		pool[i] = dial(t, p.addr, pooledPost)
	}
	for _, c := range pool {
		mustAnswerPost(t, c)
	}

	time.Sleep(5500 * time.Millisecond) // longer than a server with short patience keeps them
	for _, c := range pool {
		io.WriteString(c, pooledPost) // an error shows when its answer is read
	}
	for _, c := range pool {
		mustAnswerPost(t, c)
	}
	if n := p.metrics(t)[connectionsClosed]; n > 0 {
		t.Errorf("%v connections were closed", n)
	}
	t.Logf("%d connections were used twice", len(pool))
}

// pooledPost adds an activity on a connection that stays open.
const pooledPost = "POST /dashboard/activities HTTP/1.1\r\nHost: localhost\r\n" +
	"Content-Type: application/json\r\nContent-Length: 15\r\n\r\n" + `{"message":"x"}`

func mustAnswerPost(t *testing.T, c *client) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(20 * time.Second))
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil {
		t.Fatalf("a POST was lost: %v", err)
	}
	io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	if resp.StatusCode != 201 || resp.Close {
		t.Errorf("a POST returns %s, and the connection closes: %v", resp.Status, resp.Close)
	}
}
