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
	rails := freeAddr(t)
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

// startRails starts the server of bench/rails with a snapshot a second; kill ends it.
func startRails(t *testing.T, addr string) (kill func()) {
	t.Helper()
	need(t, "ruby")
	required := `require "puma"; require "rails"; require "action_controller/railtie"`
	if out, err := exec.Command("ruby", "-e", required).CombinedOutput(); err != nil {
		reason, _, _ := strings.Cut(string(out), "\n")
		t.Skipf("Rails or Puma is not installed: %v %s", err, reason)
	}
	_, port, _ := net.SplitHostPort(addr)
	cmd := exec.Command("bench/rails/run.sh")
	cmd.Env = append(os.Environ(), "PORT="+port, "SSE_INTERVAL=1")
	startLogged(t, cmd, "Rails")
	eventually(t, "Rails answers", func() bool {
		resp, err := http.Get("http://" + addr + "/health")
		if err == nil {
			resp.Body.Close()
		}
		return err == nil && resp.StatusCode == http.StatusOK
	})
	return func() { // a stream never ends by itself
		cmd.Process.Kill()
		cmd.Wait()
	}
}

// readSnapshots returns the data of the first n events of a stream.
func readSnapshots(t *testing.T, url string, n int) (all []string) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	for len(all) < n && lines.Scan() {
		if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
			all = append(all, data)
		}
	}
	if len(all) < n {
		t.Fatalf("%s ended after %d snapshots: %v", url, len(all), lines.Err())
	}
	return all
}
