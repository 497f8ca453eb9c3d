package main

import (
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"sse-server/e2e/tools"
)

// Servers that nobody here wrote: whatever is found wrong with a sound one is this client's mistake.
// -short leaves them out.

func TestInteropFindsNothingWrongWithNchan(t *testing.T) {
	if testing.Short() {
		t.Skip("another server takes 7 s")
	}
	nginx, err := exec.LookPath("nginx")
	if err != nil {
		t.Skip("nginx is not installed")
	}
	module := "/usr/lib/nginx/modules/ngx_nchan_module.so"
	if _, err := os.Stat(module); err != nil {
		t.Skip("libnginx-mod-nchan is not installed")
	}
	t.Parallel()
	addr := tools.FreeAddr(t)
	base := "http://" + addr
	startNginx(t, nginx, t.TempDir(), "load_module "+module+";\n", "server { listen "+addr+`;
		location = /stream { nchan_subscriber eventsource; nchan_channel_id a;
			nchan_eventsource_ping_interval 1; }
		location = /short { nchan_subscriber eventsource; nchan_channel_id a;
			nchan_subscriber_timeout 1s; }
		location = /publish { nchan_publisher; nchan_channel_id a; } }
`, []string{base})
	publish := []string{"-publish", base + "/publish", "-body", writeFile(t, `{"message": "Grüße"}`)}
	expectEachEvent(t, base+"/stream", publish...)
	if s := comeBack(t, base+"/short", "4500ms"); s.Events != 5*8 {
		t.Errorf("%d events came to 5 streams over a reconnect: each of the 8 stored ones once is 40", s.Events)
	}
}

// betterSSE is a server of npm's better-sse. /short ends its streams; /publish says how many
// streams have come back with the id of their last event.
const betterSSE = `
const { createSession, createChannel } = require("better-sse");
const channel = createChannel();
let cameBack = 0;
require("http").createServer(async (req, res) => {
	if (req.url === "/publish") {
		channel.broadcast({ message: "Grüße" });
		return res.end(String(cameBack));
	}
	const session = await createSession(req, res, { retry: 100, keepAlive: 500 });
	if (session.lastId) cameBack++;
	channel.register(session);
	session.push({ message: "first" });
	if (req.url === "/short") setTimeout(() => res.end(), 300);
}).listen(process.argv[2], "127.0.0.1");
`

func TestInteropFindsNothingWrongWithBetterSSE(t *testing.T) {
	if testing.Short() {
		t.Skip("another server needs the network")
	}
	for _, program := range []string{"node", "npm"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skip(program + " is not installed")
		}
	}
	t.Parallel()
	dir := t.TempDir()
	npm := exec.Command("npm", "install", "--no-audit", "--no-fund", "--fetch-retries", "1",
		"--prefix", dir, "better-sse@0.16.1")
	if out, err := npm.CombinedOutput(); err != nil {
		t.Skipf("npm cannot fetch better-sse: %v\n%s", err, out)
	}
	if err := os.WriteFile(filepath.Join(dir, "server.js"), []byte(betterSSE), 0o644); err != nil {
		t.Fatal(err)
	}
	addr := tools.FreeAddr(t)
	base := "http://" + addr
	startProcess(t, addr, exec.Command("node", filepath.Join(dir, "server.js"), strings.Split(addr, ":")[1]))
	expectEachEvent(t, base+"/stream", "-publish", base+"/publish")
	comeBack(t, base+"/short", "2s")
	resp, err := http.Get(base + "/publish")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if n, err := io.ReadAll(resp.Body); err != nil || string(n) == "0" {
		t.Errorf("%s streams came back with a Last-Event-ID: %v", n, err)
	}
}

// expectEachEvent publishes to 20 streams of a server with heartbeats.
func expectEachEvent(t *testing.T, url string, publish ...string) {
	t.Helper()
	s := clientJSON(t, 0, append(publish, "-url", url, "-clients", "20", "-rounds", "8",
		"-gap", "100ms", "-check", "json", "-heartbeat", "2s")...)
	if s.OpenedOnce != 20 || s.Open != 20 || s.Reconnects != 0 || s.Errors != 0 {
		t.Errorf("%d of 20 streams opened, %d open at the end, %d reconnects, %d errors: %v",
			s.OpenedOnce, s.Open, s.Reconnects, s.Errors, s.ErrorKinds)
	}
	if s.Rounds != 8 || s.Missed == nil || *s.Missed != 0 || *s.Mixed != 0 || s.Events < 160 {
		t.Errorf("%d publishes of 8, %v missed, %v mixed, %d events", s.Rounds, s.Missed, s.Mixed, s.Events)
	}
	if s.Heartbeats == 0 || s.Last == nil || s.Last.Max > 2000 {
		t.Errorf("%d heartbeats, last reached %+v", s.Heartbeats, s.Last)
	}
}

// comeBack reads five streams that the server ends again and again.
func comeBack(t *testing.T, url, duration string) *summary {
	t.Helper()
	s := clientJSON(t, 0, "-url", url, "-clients", "5", "-duration", duration, "-check", "json", "-heartbeat", "5s")
	if s.Reconnects < 5 || s.Cut != 0 || s.Errors != 0 {
		t.Errorf("%d reconnects of 5, %d streams cut, %d errors: %v", s.Reconnects, s.Cut, s.Errors, s.ErrorKinds)
	}
	return s
}
