package e2e

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"sse-server/e2e/proxies"
)

// ways lead to a server: each returns the address at which clients reach it.
var ways = []struct {
	name  string
	start func(t *testing.T, s *server) (addr string)
}{
	{"direct", func(_ *testing.T, s *server) string { return s.addr }},
	{"varnish", startBareVarnish},
}

// startBareVarnish runs Varnish as it is without any setting.
func startBareVarnish(t *testing.T, s *server) (addr string) {
	t.Helper()
	place := proxyPlace(t, s.addr)
	for _, x := range proxies.Bare {
		if x.Name == "Varnish" {
			needProxy(t, x)
			startProxy(t, x, place)
		}
	}
	return place.Addr
}

// HEAD gets the stream's head and its end at once.
func TestReadersHeadGetsNoStream(t *testing.T) {
	t.Parallel()
	for _, w := range ways {
		w := w
		t.Run(w.name, func(t *testing.T) {
			t.Parallel()
			p := startServer(t)
			p.waitForSnapshot(t)
			url := "http://" + w.start(t, &p.server) + "/dashboard/stream"
			mustHead(t, url)
			if opened := p.debug(t).Opened; w.name == "direct" && opened > 0 {
				t.Errorf("HEAD opened %d streams", opened)
			}
			eventually(t, "no stream is open", func() bool { return p.debug(t).Open == 0 })
		})
	}
}

// mustHead asks for a head with Go's client and, where it is installed, with curl.
func mustHead(t *testing.T, url string) {
	t.Helper()
	client := http.Client{Timeout: 20 * time.Second}
	resp, err := client.Head(url)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	const eventStream = "text/event-stream"
	if kind := resp.Header.Get("Content-Type"); resp.StatusCode != 200 || kind != eventStream {
		t.Errorf("HEAD returns %s, %s", resp.Status, kind)
	}

	need(t, "curl")
	out, err := exec.Command("curl", "-sSI", "-m", "20", url).CombinedOutput()
	isHead := strings.HasPrefix(string(out), "HTTP/1.1 200 OK\r\n") &&
		strings.Contains(string(out), "\r\nContent-Type: "+eventStream+"\r\n") &&
		strings.HasSuffix(string(out), "\r\n\r\n")
	if err != nil || !isHead {
		t.Errorf("curl -I prints %q, %v", out, err)
	}
}

// gzip(1) accepts the whole body of a stream that the server ended.
func TestReadersGzipAcceptsAnEndedStream(t *testing.T) {
	t.Parallel()
	need(t, "curl", "gzip")
	p := startServer(t, "-interval", "0", "-heartbeat", "400ms")
	p.waitForSnapshot(t)
	file := t.TempDir() + "/body.gz"
	curl := exec.Command("curl", "-sSN", "-A", "Mozilla/5.0", "-H", "Accept-Encoding: gzip",
		"-o", file, "http://"+p.addr+"/dashboard/stream")
	startLogged(t, curl, "curl")
	eventually(t, "the stream is open", func() bool { return p.debug(t).Open == 1 })
	var last int64
	for i := 0; i < 10; i++ {
		last = p.trigger(t).ID
	}
	eventually(t, "all events are sent", func() bool {
		d := p.debug(t)
		return len(d.Streams) == 1 && d.Streams[0].Events+d.Skipped == 11
	})

	p.stop(t)
	if err := curl.Wait(); err != nil {
		t.Errorf("curl ended with %v", err)
	}
	if out, err := exec.Command("gzip", "-t", file).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("gzip -t says %q, %v", out, err)
	}
	text, err := exec.Command("gzip", "-dc", file).Output()
	if err != nil || !bytes.Contains(text, []byte(fmt.Sprintf("id: %d\n", last))) {
		info, _ := os.Stat(file)
		t.Errorf("event %d is not in the %d bytes, %v", last, info.Size(), err)
	}
}
