package main

import (
	"bufio"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
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
func TestSnapshotsAreThoseOfTheRailsServer(t *testing.T) {
	if testing.Short() {
		t.Skip("it starts a Rails server")
	}
	servers := []struct{ name, addr string }{
		{"Rails", startRails(t)},
		{"sse-server", startBinary(t, nil, "-interval", "1s").addr},
	}
	client := filepath.Join(t.TempDir(), "sse-client")
	if out, err := exec.Command("go", "build", "-o", client, "./goclient").CombinedOutput(); err != nil {
		t.Fatalf("building sse-client: %v\n%s", err, out)
	}
	for _, s := range servers {
		base := "http://" + s.addr + "/dashboard"
		out, err := exec.Command(client, "-url", base+"/stream", "-check", "snapshot", "-clients", "20",
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

// startRails starts the server of bench/rails with a snapshot a second.
func startRails(t *testing.T) (addr string) {
	t.Helper()
	required := `require "puma"; require "rails"; require "action_controller/railtie"`
	if out, err := exec.Command("ruby", "-e", required).CombinedOutput(); err != nil {
		reason, _, _ := strings.Cut(string(out), "\n")
		t.Skipf("Rails or Puma is not installed: %v %s", err, reason)
	}
	addr = freeAddr(t)
	_, port, _ := net.SplitHostPort(addr)
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("bench/rails/run.sh")
	cmd.Env = append(os.Environ(), "PORT="+port, "SSE_INTERVAL=1")
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill() // a stream never ends by itself
		cmd.Wait()
		log.Close()
		if text, _ := os.ReadFile(log.Name()); t.Failed() {
			t.Logf("Rails says:\n%s", text)
		}
	})
	eventually(t, "Rails answers", func() bool {
		resp, err := http.Get("http://" + addr + "/health")
		if err == nil {
			resp.Body.Close()
		}
		return err == nil && resp.StatusCode == http.StatusOK
	})
	return addr
}

// readSnapshots gives the data of the first n events of a stream.
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
