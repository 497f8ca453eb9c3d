package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// A host on a network of its own vanishes without a word: its link goes down.
func TestVanishedClientIsGoneSoon(t *testing.T) {
	t.Parallel()
	needRoot(t)
	need(t, "ip", "curl")
	ip := func(args string) error { return exec.Command("ip", strings.Fields(args)...).Run() }
	host := fmt.Sprintf("sse%d", os.Getpid())
	if err := ip("netns add " + host); err != nil {
		t.Skip("ip(8) cannot make a network namespace here: ", err)
	}
	defer func() { ip("link del " + host + "a"); ip("netns del " + host) }()
	addr := fmt.Sprintf("10.231.%d", os.Getpid()%250)
	for _, args := range []string{
		"link add " + host + "a type veth peer name " + host + "b netns " + host,
		"addr add " + addr + ".1/24 dev " + host + "a", "link set " + host + "a up",
		"-n " + host + " addr add " + addr + ".2/24 dev " + host + "b",
		"-n " + host + " link set " + host + "b up",
	} {
		if err := ip(args); err != nil {
			t.Skipf("ip %s does not work here: %v", args, err)
		}
	}
	var servers []*process
	for _, interval := range []string{"2s", "0"} { // 0: only the kernel finds out, by itself
		p := startServer(t, "-addr", addr+".1:0", "-interval", interval)
		curl := exec.Command("ip", "netns", "exec", host, "curl", "-sN", "http://"+p.addr+"/dashboard/stream")
		if err := curl.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() { curl.Process.Kill(); curl.Wait() }()
		p.mustLog(t, `"stream opened".*curl`)
		eventually(t, "curl has an event", func() bool { return p.metrics(t)["sse_events_sent_total"] > 0 })
		servers = append(servers, p)
	}
	if err := ip("-n " + host + " link set " + host + "b down"); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	for _, p := range servers {
		within(t, 90*time.Second, "the vanished client's stream is closed", func() bool { return strings.Contains(p.log(), "stream closed") })
		t.Logf("it was closed after %v", time.Since(start))
		p.mustLog(t, `"stream closed".*reason=(stalled|error)`)
		p.stop(t)
	}
}
