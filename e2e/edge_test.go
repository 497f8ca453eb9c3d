package e2e

import (
	"encoding/json"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"sse-server/e2e/tools"
)

// testMessage is the activity of a trigger.
const testMessage = "Test broadcast"

// mustShowNothing checks that a stream has heartbeats and nothing else.
func mustShowNothing(t testing.TB, c *client) {
	t.Helper()
	for i := 0; i < 3; i++ {
		c.heartbeat(t)
	}
}

// historyState is the part of /dashboard/history that tells what is on show.
type historyState struct {
	Interval float64
	Samples  []any
}

func (s *server) history(t testing.TB) (h historyState) {
	t.Helper()
	_, _, body := s.request(t, "GET", "/dashboard/history")
	if err := json.Unmarshal([]byte(body), &h); err != nil || h.Samples == nil {
		t.Fatalf("/dashboard/history: %v in %s", err, body)
	}
	return h
}

// has tells whether there is a metric of that name, with whatever labels.
func has(metrics map[string]float64, name string) bool {
	for n := range metrics {
		if n == name || strings.HasPrefix(n, name+"{") {
			return true
		}
	}
	return false
}

func TestEdgeWithoutASnapshotSendsOnlyHeartbeats(t *testing.T) {
	t.Parallel()
	p := startServer(t, "-edge", "-interval", "100ms", "-heartbeat", "200ms")
	c := p.stream(t)
	mustShowNothing(t, c)

	code, _, body := p.request(t, "GET", "/dashboard/trigger-test")
	if code != 409 || !oneSentence.MatchString(body) {
		t.Errorf("the trigger returns %d %q", code, body)
	}
	code, _, body = p.send(t, "POST", "/dashboard/activities", `{"message":"x"}`,
		"Content-Type", jsonType)
	if code != 409 || !oneSentence.MatchString(body) {
		t.Errorf("posting an activity returns %d %q", code, body)
	}
	if d := p.debug(t); d.Source != "none" || d.Status != "" || d.Age != nil {
		t.Errorf("its source is %q, its status %q, the age of its snapshot %v", d.Source, d.Status, d.Age)
	}
	if h := p.history(t); h.Interval != 0 || len(h.Samples) > 0 {
		t.Errorf("its history is %+v", h)
	}
	m := p.metrics(t)
	for _, name := range []string{"sse_snapshot_age_seconds", "sse_status", "sse_host_memory_ratio"} {
		if has(m, name) {
			t.Errorf("its metrics have %s: %v", name, m)
		}
	}
	mustShowNothing(t, c)
}

func TestEdgeWaitsAgainAfterDelete(t *testing.T) {
	t.Parallel()
	p := startServer(t, "-edge", "-interval", "100ms", "-heartbeat", "200ms")
	early := p.stream(t)
	p.put(t, `{"n":1}`)
	if e := early.event(t); e.data != `{"n":1}` {
		t.Errorf("the stream has %s", e.data)
	}
	if d := p.debug(t); d.Source != "external" || d.Age == nil {
		t.Errorf("its source is %q, the age of its snapshot %v", d.Source, d.Age)
	}
	p.deleteSnapshot(t)
	mustShowNothing(t, p.stream(t))
	if d := p.debug(t); d.Source != "none" {
		t.Errorf("after DELETE, its source is %q", d.Source)
	}
}

// The server never makes it stale: who puts one knows whether it still holds.
func TestExternalSnapshotStaysOnShow(t *testing.T) {
	t.Parallel()
	p := startServer(t, "-interval", "100ms", "-heartbeat", "500ms")
	const snapshot = `{"system_status":{"status":"online","message":"fine"}}`
	c := p.stream(t)
	p.put(t, snapshot)
	for e := c.event(t); e.data != snapshot; e = c.event(t) { // until then, the host's own
	}
	within(t, time.Minute, "the snapshot is 12 s old", func() bool { return *p.debug(t).Age >= 12 })
	if e := p.stream(t).event(t); e.data != snapshot {
		t.Errorf("a new stream begins with %s", e.data)
	}
	if h := p.history(t); h.Interval != 0 || len(h.Samples) > 0 {
		t.Errorf("the history of an external snapshot is %+v", h)
	}
	if m := p.metrics(t); m[`sse_status{status="online"}`] != 1 || m["sse_snapshot_age_seconds"] < 12 {
		t.Errorf("the metrics are %v", m)
	}
	p.put(t, `{"n":2}`)
	e := c.event(t)
	for ; e.data == snapshot; e = c.event(t) {
	}
	if e.data != `{"n":2}` {
		t.Errorf("between two snapshots that were put, there was %s", e.data)
	}
	p.deleteSnapshot(t)
	if e := c.event(t); !snapshotPattern.MatchString(e.data) {
		t.Errorf("after DELETE the stream has %s", e.data)
	}
}

func TestExternalSnapshotAgeIsThatOfItsContent(t *testing.T) {
	t.Parallel()
	p := startServer(t, "-interval", "0")
	age := func() float64 { return p.metrics(t)["sse_snapshot_age_seconds"] }
	p.put(t, `{"n":1}`)
	eventually(t, "the snapshot is two seconds old", func() bool { return age() >= 2 })
	p.put(t, `{"n":1}`)
	if a := age(); a < 2 {
		t.Errorf("after the same snapshot was put again, its age is %v s", a)
	}
	start := time.Now()
	p.put(t, `{"n":2}`)
	if a := age(); a > time.Since(start).Seconds() {
		t.Errorf("%v after another snapshot was put, its age is %v s", time.Since(start), a)
	}
}

func TestExternalStatusIsInMetricsAndDebug(t *testing.T) {
	t.Parallel()
	p := startServer(t, "-interval", "0")
	p.waitForSnapshot(t)
	for _, c := range []struct{ snapshot, status, metric string }{
		{`{"system_status":{"status":"degraded"}}`, "degraded", `sse_status{status="degraded"}`},
		{`{"system_status":{"status":"stale","message":"x"}}`, "stale", `sse_status{status="stale"}`},
		{`{"n":1}`, "", ""},
		{`{"system_status":"fine"}`, "", ""},
	} {
		p.put(t, c.snapshot)
		m := p.metrics(t)
		if c.metric != "" && m[c.metric] != 1 || has(m, "sse_status") != (c.metric != "") {
			t.Errorf("with %s on show, the metrics are %v", c.snapshot, m)
		}
		if got := p.debug(t).Status; got != c.status {
			t.Errorf("with %s on show, the status is %q", c.snapshot, got)
		}
	}
}

func TestExternalSnapshotIsTriggeredAsItIs(t *testing.T) {
	t.Parallel()
	p := startServer(t, "-interval", "0")
	c := p.stream(t)
	c.event(t)
	p.put(t, `{"n":1}`)
	first := c.event(t)
	reply := p.trigger(t)
	if reply.Message != "External snapshot sent again" || reply.Streams != 1 {
		t.Errorf("the trigger returns %+v", reply)
	}
	if e := c.event(t); e.data != first.data || e.id <= first.id || e.id != reply.ID {
		t.Errorf("after %+v and trigger %d, the stream has %+v", first, reply.ID, e)
	}
	p.deleteSnapshot(t)
	if a := c.event(t).activities(t); len(a) != 1 || a[0].Message != "Dashboard updated" {
		t.Errorf("after DELETE the activities are %+v", a)
	}
}

func TestEdgeIsStaleWhileItsUpstreamIsStopped(t *testing.T) {
	t.Parallel()
	upstream := startServer(t, "-interval", "1s")
	edge := startEdge(t, upstream.addr)
	v := follow(t, edge.addr)
	upstream.trigger(t)
	v.await(t, testMessage)
	eventually(t, "the forwarder knows the usual gap", func() bool { return v.count() > 3 })
	upstream.cmd.Process.Signal(syscall.SIGSTOP)
	v.await(t, `"status":"stale"`)
	if m := edge.metrics(t); m[`sse_status{status="stale"}`] != 1 {
		t.Errorf("the edge's metrics are %v", m)
	}
	upstream.cmd.Process.Signal(syscall.SIGCONT)
	v.await(t, `"status":"online"`)
}

// What is stale already is passed on unchanged, so that each hop shows since when it is.
func TestEdgeOfAnEdgePassesStaleOn(t *testing.T) {
	t.Parallel()
	upstream := startServer(t, "-interval", "1s")
	first := startEdge(t, upstream.addr)
	second := startEdge(t, first.addr)
	one, two := follow(t, first.addr), follow(t, second.addr)
	two.await(t, `"status":"online"`)
	upstream.kill()
	one.await(t, `"status":"stale"`)
	eventually(t, "the second edge shows what the first does", func() bool {
		return two.newest() == one.newest()
	})
}

func TestEdgeWaitsForAnUpstreamThatIsAway(t *testing.T) {
	t.Parallel()
	addr := tools.FreeAddr(t)
	edge := startEdge(t, addr, "-heartbeat", "200ms")
	mustShowNothing(t, edge.stream(t))
	v := follow(t, edge.addr)
	upstream := startServer(t, "-addr", addr, "-interval", "1s")
	v.await(t, `"status":"online"`)
	direct := follow(t, upstream.addr)
	eventually(t, "the upstream's events come to both", func() bool {
		return v.count() > 6 && direct.count() > 6
	})
	mustBeWhole(t, "the edge's viewer", direct.stop(), v.stop())
}

func TestEdgeThatIsRestartedHasTheNewestAtOnce(t *testing.T) {
	t.Parallel()
	upstream := startServer(t, "-interval", "0", "-heartbeat", "1s")
	upstream.trigger(t) // before the edge is there
	edge := startEdge(t, upstream.addr)
	follow(t, edge.addr).await(t, testMessage)
	edge.kill()
	startServer(t, "-edge", "-addr", edge.addr)
	start := time.Now()
	follow(t, edge.addr).await(t, testMessage)
	t.Logf("it has the upstream's newest %.1f s after its start", time.Since(start).Seconds())
}

func TestEdgeOfARareUpstreamStaysLive(t *testing.T) {
	t.Parallel()
	upstream := startServer(t, "-interval", "0", "-heartbeat", "5s")
	edge := startEdge(t, upstream.addr)
	v := follow(t, edge.addr)
	upstream.trigger(t)
	v.await(t, testMessage)
	within(t, time.Minute, "its snapshot is 16 s old", func() bool { return *edge.debug(t).Age >= 16 })
	for _, a := range v.stop() {
		if strings.Contains(a.data, "stale") {
			t.Errorf("it showed %s", a.data)
		}
	}
}

// startEdge starts a server and the forwarder that feeds it from another's stream.
func startEdge(t testing.TB, upstream string, args ...string) *process {
	t.Helper()
	args = append([]string{"-edge", "-origins", "https://dashboard.example.com"}, args...)
	edge := startServer(t, args...)
	cmd := exec.Command(clientProgram, "-url", "http://"+upstream+"/dashboard/stream",
		"-forward", "http://"+edge.addr+"/dashboard/snapshot")
	startLogged(t, cmd, "the forwarder to "+edge.addr)
	return edge
}
