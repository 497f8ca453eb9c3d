package e2e

import (
	"bufio"
	"net"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"sse-server/e2e/tools"
)

// activitiesFormat is the part of a snapshot that snapshotPattern leaves open.
var activitiesFormat = func() *regexp.Regexp {
	activity := `\{"time":"\d\d:\d\d:\d\d","message":"[^"]+","level":"(info|warning|error)",` +
		`"css_class":"activity-(info|warning|error)"\}`
	return regexp.MustCompile(`"activities":\[` + activity + `(,` + activity + `)*\],"timestamp"`)
}()

// Keys, their order and the formats of their values are the same in both servers' snapshots.
func TestRailsSnapshotsHaveTheSameFormat(t *testing.T) {
	t.Parallel()
	rails := tools.FreeAddr(t)
	startRails(t, rails)
	servers := []struct{ name, addr string }{
		{"Rails", rails},
		{"sse-server", startServer(t, "-interval", "1s").addr},
	}
	for _, s := range servers {
		base := "http://" + s.addr + "/dashboard"
		out, err := exec.Command(clientProgram,
			"-url", base+"/stream", "-check", "snapshot", "-clients", "20",
			"-publish", base+"/trigger-test", "-rounds", "8", "-gap", "300ms").CombinedOutput()
		if err != nil {
			t.Errorf("sse-client finds something wrong with %s: %v\n%s", s.name, err, out)
		}
		for _, data := range readSnapshots(t, base+"/stream", 3) {
			if !snapshotPattern.MatchString(data) || !activitiesFormat.MatchString(data) ||
				!strings.Contains(data, `"message":"Test broadcast"`) {
				t.Errorf("a snapshot of %s is not of the common format:\n%s", s.name, data)
			}
		}
	}
}

// What sse-server sends is published at the two others, as bench/compare.sh does it.
func TestCompareOthersSendTheSameSnapshot(t *testing.T) {
	t.Parallel()
	us := startServer(t, "-interval", "1h")
	us.waitForSnapshot(t)
	_, _, snapshot := us.request(t, "GET", "/dashboard/snapshot")
	snapshot = strings.TrimSpace(snapshot)
	body := t.TempDir() + "/snapshot"
	write(t, body, snapshot)

	others := map[string]func(t *testing.T, addr string){
		"Nchan":      startComparedNchan,
		"better-sse": startBetterSSE,
	}
	for name, start := range others {
		name, start := name, start
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			addr := tools.FreeAddr(t)
			start(t, addr)
			code, _, answer := (&server{addr: addr}).send(t, "POST", "/publish", snapshot)
			if code >= 300 {
				t.Fatalf("publishing the first event returns %d %s", code, answer)
			}

			base := "http://" + addr
			out, err := exec.Command(clientProgram,
				"-url", base+"/dashboard/stream", "-check", "snapshot", "-clients", "20",
				"-publish", base+"/publish", "-body", body, "-rounds", "8", "-gap", "100ms").CombinedOutput()
			if err != nil {
				t.Errorf("sse-client finds something wrong with %s: %v\n%s", name, err, out)
			}
			newest := readSnapshots(t, base+"/dashboard/stream", 1)[0]
			if newest != snapshot {
				t.Errorf("a new stream of %s starts with\n%s, want\n%s", name, newest, snapshot)
			}
		})
	}
}

func startComparedNchan(t *testing.T, addr string) {
	needNchanModule(t)
	cmd := exec.Command("bench/nchan/run.sh", proxyDir(t))
	startCompared(t, cmd, "Nchan", addr)
}

func startBetterSSE(t *testing.T, addr string) {
	need(t, "node", "npm")
	out, err := exec.Command("npm", "install", "--prefix", "bench/better-sse").CombinedOutput()
	if err != nil {
		t.Skipf("npm cannot install better-sse: %v: %.200q", err, out)
	}
	startCompared(t, exec.Command("node", "bench/better-sse/server.js"), "better-sse", addr)
}

// startCompared starts a server of bench/ and waits until it answers.
func startCompared(t *testing.T, cmd *exec.Cmd, name, addr string, settings ...string) {
	t.Helper()
	_, port, _ := net.SplitHostPort(addr)
	cmd.Env = append(append(os.Environ(), "PORT="+port), settings...)
	startLogged(t, cmd, name)
	eventually(t, name+" answers", func() bool { return isHealthy(addr) })
}

func isHealthy(addr string) bool {
	resp, err := http.Get("http://" + addr + "/health")
	if err != nil {
		return false
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

// startRails starts the server of bench/rails with a snapshot a second; kill ends it.
func startRails(t *testing.T, addr string) (kill func()) {
	t.Helper()
	need(t, "ruby")
	required := `require "puma"; require "rails"; require "action_controller/railtie"`
	if out, err := exec.Command("ruby", "-e", required).CombinedOutput(); err != nil {
		reason, _, _ := strings.Cut(string(out), "\n")
		t.Skipf("Rails or Puma is not installed: %v %s", err, reason)
	}
	cmd := exec.Command("bench/rails/run.sh")
	startCompared(t, cmd, "Rails", addr, "SSE_INTERVAL=1")
	return func() { // a stream never ends by itself
		cmd.Process.Kill()
		cmd.Wait()
	}
}

// readSnapshots returns the data of the first n events of a stream.
func readSnapshots(t *testing.T, url string, n int) (all []string) {
	t.Helper()
	request, err := http.NewRequest("GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Accept", "text/event-stream") // Nchan rejects other requests
	client := http.Client{Timeout: 20 * time.Second}  // for the whole stream
	resp, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	for len(all) < n && lines.Scan() {
		if data, ok := strings.CutPrefix(lines.Text(), "data:"); ok {
			all = append(all, strings.TrimPrefix(data, " "))
		}
	}
	if len(all) < n {
		t.Fatalf("%s ended after %d snapshots: %v", url, len(all), lines.Err())
	}
	return all
}
