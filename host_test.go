package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func TestHostPercentRoundsToNearest(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		value float64
		want  string
	}{
		{0, "0%"},
		{0.49, "0%"},
		{0.5, "1%"},
		{44.6, "45%"},
		{99.5, "100%"},
		{math.NaN(), "N/A"},
	} {
		got := formatRounded(c.value, "%")
		if got != c.want {
			t.Errorf("%v is shown as %q, want %q", c.value, got, c.want)
		}
	}
}

func TestHostNetworkIsRoundedThenShown(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		mbps float64
		want string
	}{
		{0, "0.0 Mbps"},
		{0.04, "0.0 Mbps"},
		{0.05, "0.1 Mbps"},
		{0.3, "0.3 Mbps"},
		{9.94, "9.9 Mbps"},
		{9.96, "10 Mbps"},
		{10.4, "10 Mbps"},
		{10.5, "11 Mbps"},
		{125, "125 Mbps"},
		{math.NaN(), "N/A"},
	} {
		got := formatNetwork(c.mbps)
		if got != c.want {
			t.Errorf("%v is shown as %q, want %q", c.mbps, got, c.want)
		}
	}
}

func TestHostUptimeShowsTwoLargestUnits(t *testing.T) {
	t.Parallel()
	const day = 24 * time.Hour
	for _, c := range []struct {
		uptime time.Duration
		want   string
	}{
		{-1, "N/A"},
		{0, "less than a minute"},
		{59 * time.Second, "less than a minute"},
		{time.Minute, "1 minute"},
		{5*time.Minute + 59*time.Second, "5 minutes"},
		{time.Hour, "1 hour"},
		{time.Hour + 3*time.Minute, "1 hour, 3 minutes"},
		{2*time.Hour + time.Minute, "2 hours, 1 minute"},
		{day, "1 day"},
		{2*day + 5*time.Minute, "2 days"},
		{2*day + 14*time.Hour + 59*time.Minute, "2 days, 14 hours"},
		{100*day + time.Hour, "100 days, 1 hour"},
		{day + 23*time.Hour + 59*time.Minute + 59*time.Second, "1 day, 23 hours"},
		{1000*day + 23*time.Hour + 59*time.Minute + time.Second, "1000 days, 23 hours"},
	} {
		got := formatUptime(c.uptime)
		if got != c.want {
			t.Errorf("%v is shown as %q, want %q", c.uptime, got, c.want)
		}
	}
}

// Each case is two readings, two seconds apart, of another kind of machine.
func TestHostMetricsOfRecordedMachines(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		machine, sys                 string
		cpu, memory, network, uptime string
	}{
		// Busy 60+10+30 of 200 ticks; 3,000,000+500,000+250,000 bytes in 2 s, no docker, no veth.
		{"bare", "host", "50%", "50%", "15 Mbps", "2 days, 14 hours"},
		// Idle; 75,000 bytes of eth0, which is virtual there, but not of the tunnel.
		{"container", "container", "0%", "50%", "0.3 Mbps", "1 hour, 3 minutes"},
		// Busy 80+40+80 of 400: steal is busy, iowait is idle.
		{"steal", "host", "50%", "75%", "125 Mbps", "1 day, 1 hour"},
		// Eight columns only.
		{"no-memavailable", "host", "50%", "N/A", "0.0 Mbps", "1 minute"},
		// The 90 ticks of guest are among the 100 of user.
		{"guest", "host", "50%", "50%", "0.0 Mbps", "2 days"},
		// 2,475,000 bytes are 9.9 Mbps.
		{"no-space", "host", "20%", "50%", "9.9 Mbps", "1 day, 1 hour"},
		// Busy 40 of 100, the -100 of iowait count nothing; only eth1 has two readings in order.
		{"step-back", "host", "40%", "50%", "1.0 Mbps", "2 minutes"},
	} {
		h := testSampler(t)
		h.sysRoot = "testdata/sys-" + c.sys
		now := time.Now()
		h.procRoot = filepath.Join("testdata", c.machine, "before")
		m, _ := h.sample(now)
		if !math.IsNaN(m.cpu) || !math.IsNaN(m.network) {
			t.Errorf("%s: one reading gives cpu %v, network %v", c.machine, m.cpu, m.network)
		}

		h.procRoot = filepath.Join("testdata", c.machine, "after")
		m, _ = h.sample(now.Add(2 * time.Second))
		s := snapshotOf(t, m)
		want := snapshotMetrics{
			CPU:          c.cpu,
			Memory:       c.memory,
			Disk:         "N/A",
			Network:      c.network,
			ResponseTime: "N/A",
		}
		if s.Metrics != want || s.SystemStatus.Uptime != c.uptime {
			t.Errorf("%s: got %+v, up %q; want %+v, %q", c.machine, s.Metrics,
				s.SystemStatus.Uptime, want, c.uptime)
		}
	}
}

func TestHostMetricIsNAIfUnreadable(t *testing.T) {
	t.Parallel()
	h := testSampler(t)
	h.procRoot = t.TempDir()
	h.disk = "/nowhere"
	h.readDisk(time.Now())
	m, _ := h.sample(time.Now())
	s := snapshotOf(t, m)
	const na = "N/A"
	want := snapshotMetrics{CPU: na, Memory: na, Disk: na, Network: na, ResponseTime: na}
	if s.Metrics != want || s.SystemStatus.Uptime != "N/A" {
		t.Errorf("got %+v, up %q", s.Metrics, s.SystemStatus.Uptime)
	}
}

// This machine's metrics against those of awk, free and df.
func TestHostMetricsAgreeWithTools(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("only Linux has these metrics")
	}
	h := testSampler(t)
	h.readDisk(time.Now())
	var m metrics
	eventually(t, "ticks have passed", func() bool {
		m, _ = h.sample(time.Now())
		return !math.IsNaN(m.cpu)
	})
	if m.cpu < 0 || m.cpu > 100 || m.network < 0 {
		t.Errorf("cpu is %v%%, network %v Mbps", m.cpu, m.network)
	}

	for _, c := range []struct {
		name   string
		got    float64
		script string
		apart  float64
	}{
		{"uptime in s", m.uptime.Seconds(), "cut -d' ' -f1 /proc/uptime", 5},
		{"disk", m.disk, "df -P / | awk 'END {print $5+0}'", 1},
		{"memory", m.memory, "free | awk '/Mem/ {print 100*($2-$7)/$2}'", 5},
	} {
		output, err := exec.Command("sh", "-c", c.script).Output()
		if err != nil {
			t.Skipf("%s: %v", c.script, err)
		}
		want, err := strconv.ParseFloat(strings.TrimSpace(string(output)), 64)
		if err != nil {
			t.Skipf("%s: %v", c.script, err)
		}
		if math.Abs(c.got-want) > c.apart {
			t.Errorf("%s is %v, the tool says %v", c.name, c.got, want)
		}
	}
}

func TestHostDiskIsNATenSecondsAfterItsReading(t *testing.T) {
	t.Parallel()
	h := testSampler(t)
	now := time.Now()
	h.readDisk(now)
	m, _ := h.sample(now.Add(9 * time.Second))
	if math.IsNaN(m.disk) {
		t.Error("a reading of nine seconds ago is not shown")
	}
	m, _ = h.sample(now.Add(10 * time.Second))
	if !math.IsNaN(m.disk) {
		t.Errorf("a reading of ten seconds ago is shown as %v", m.disk)
	}
}

func TestHostCPUStaysIfNoTickHasPassed(t *testing.T) {
	t.Parallel()
	h := testSampler(t)
	now := time.Now()
	h.procRoot = "testdata/bare/before"
	h.sample(now)
	h.procRoot = "testdata/bare/after"
	h.sample(now.Add(2 * time.Second))
	m, _ := h.sample(now.Add(4 * time.Second))
	if m.cpu != 50 {
		t.Errorf("cpu is %v, want the last value, 50", m.cpu)
	}
}

func TestHostNetworkRateIsOverTheRealGap(t *testing.T) {
	t.Parallel()
	h := testSampler(t)
	h.sysRoot = "testdata/sys-host"
	now := time.Now()
	h.procRoot = "testdata/bare/before"
	h.sample(now)
	h.procRoot = "testdata/bare/after"
	m, _ := h.sample(now.Add(200 * time.Second))
	if math.Abs(m.network-0.15) > 1e-9 {
		t.Errorf("3,750,000 bytes in 200 s are %v Mbps, want 0.15", m.network)
	}
}

func TestHostNetworkNeverCountsLo(t *testing.T) {
	t.Parallel()
	h := testSampler(t)
	h.procRoot = t.TempDir()
	h.sysRoot = "/nowhere"
	err := os.Mkdir(h.procRoot+"/net", 0o755)
	if err != nil {
		t.Fatal(err)
	}
	count := func(lo, eth0 int) {
		const format = "    lo: %d 0 0 0 0 0 0 0 0\n  eth0: %d 0 0 0 0 0 0 0 0\n"
		write(t, h.procRoot+"/net/dev", fmt.Sprintf(format, lo, eth0))
	}

	now := time.Now()
	count(0, 0)
	h.readNetwork(now)
	count(1e9, 125000)
	mbps := h.readNetwork(now.Add(time.Second))
	if mbps != 1 {
		t.Errorf("125,000 bytes of eth0 and many of lo in a second are %v Mbps", mbps)
	}
}

func TestHostProbeDecidesResponseTimeAndStatus(t *testing.T) {
	t.Parallel()
	const fine, broken, elsewhere = 0, 1, 2
	var mode atomic.Int64
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch mode.Load() {
		case fine:
			time.Sleep(20 * time.Millisecond)
			io.WriteString(w, "fine")
		case broken:
			http.Error(w, "broken", 500)
		case elsewhere:
			http.Redirect(w, r, "/elsewhere", 302)
		}
	}))
	defer app.Close()
	h := testSampler(t, "-probe", app.URL)
	probe := func() metrics {
		h.readProbe(context.Background())
		m, _ := h.sample(time.Now())
		return m
	}

	m := probe()
	if m.responseTime < 20 || m.responseTime > 1000 || m.status != "online" {
		t.Errorf("a probe of 20 ms: %v ms, %s", m.responseTime, m.status)
	}
	mode.Store(broken)
	for i, want := range []string{"degraded", "degraded", "critical"} {
		m = probe()
		message := fmt.Sprintf("Health probe failed (%d in a row)", i+1)
		if m.status != want || m.message != message || !math.IsNaN(m.responseTime) {
			t.Errorf("failure %d: %s, %q, %v ms", i+1, m.status, m.message, m.responseTime)
		}
	}
	mode.Store(elsewhere)
	m = probe()
	if m.status != "online" || m.responseTime < 1 {
		t.Errorf("after a redirect, which is an answer: %s, %v ms", m.status, m.responseTime)
	}
	app.Close()
	m = probe()
	if m.status != "degraded" {
		t.Errorf("with the application down: %s", m.status)
	}
}

func TestHostProbeThatHangsDelaysNothing(t *testing.T) {
	t.Parallel()
	probes := make(chan bool, 100) // more than come
	hang := make(chan bool)
	app := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		probes <- true
		<-hang
	}))
	defer app.Close()
	defer close(hang)

	s := startServer(t, "-interval", "50ms", "-probe", app.URL)
	c := s.stream(t)
	first := c.event(t)
	for i := 0; i < 5; i++ {
		c.event(t)
	}
	e := c.event(t)
	responseTime := e.snapshot(t).Metrics.ResponseTime
	if e.id-first.id > 1500 || responseTime != "N/A" {
		t.Errorf("six events took %d ms, response_time %s", e.id-first.id, responseTime)
	}

	<-probes
	for e.snapshot(t).SystemStatus.Status != "degraded" {
		e = c.event(t)
		if e.id-first.id > 5000 {
			t.Fatal("a probe that hangs is no failure after five seconds")
		}
	}
	<-probes // the next one hangs by now
	start := time.Now()
	s.stop()
	d := time.Since(start)
	if d > time.Second {
		t.Errorf("a probe that hangs delays the shutdown by %v", d)
	}
}

func TestHostSourceIsLoggedWhenItFailsAndIsBack(t *testing.T) {
	t.Parallel()
	var log strings.Builder
	h := testSampler(t)
	h.log = slog.New(slog.NewTextHandler(&log, nil))
	for i, text := range []string{"fine", "one", "another", "fine", "one", "fine", "fine"} {
		var err error
		if text != "fine" {
			err = fmt.Errorf("%s %d", text, i)
		}
		h.noteSource("meminfo", err)
	}

	for _, c := range []struct {
		part string
		want int
	}{
		{`msg="metric missing"`, 2},
		{`msg="metric back"`, 2},
		{"source=meminfo", 4},
		{`err="one 1"`, 1},
	} {
		got := strings.Count(log.String(), c.part)
		if got != c.want {
			t.Errorf("%s is logged %d times, want %d:\n%s", c.part, got, c.want, log.String())
		}
	}
}

func TestHostAlarmHasHysteresis(t *testing.T) {
	t.Parallel()
	h := testSampler(t)
	space := []float64{89, 90, 97.9, 98, 90, 89.9, 80, 79.9}
	spaceLevels := []alarmLevel{0, 1, 1, 2, 2, 1, 1, 0}
	for _, c := range []struct {
		alarm  *alarm
		values []float64
		want   []alarmLevel
	}{
		{&h.cpuAlarm, []float64{0, 84.9, 85, 84, 75, 74.9, 95, 85, 84.9, 75, 74, 96, 0},
			[]alarmLevel{0, 0, 1, 1, 1, 0, 2, 2, 1, 1, 0, 2, 0}},
		{&h.memAlarm, space, spaceLevels},
		{&h.diskAlarm, space, spaceLevels},
		{&h.probeAlarm, []float64{0, 1, 2, 3, 4, 0, 1, 0}, []alarmLevel{0, 1, 1, 2, 2, 0, 1, 0}},
	} {
		a := c.alarm
		before := levelOK
		for i, value := range c.values {
			a.judge(value)
			if a.level != c.want[i] || a.isChanged != (a.level != before) {
				t.Errorf("%s at %v after %v: level %d, changed %v, want level %d",
					a.name, value, c.values[:i], a.level, a.isChanged, c.want[i])
			}
			before = a.level
			a.judge(math.NaN())
			if a.level != before || a.isChanged {
				t.Errorf("%s: a missing value changes the level", a.name)
			}
		}
	}
}

func TestHostAlarmIsOneActivityAndNamesItsCause(t *testing.T) {
	t.Parallel()
	h := testSampler(t)
	h.procRoot = t.TempDir()
	now := time.Now()
	busyTicks, idleTicks := 0, 0
	var activities []string
	read := func(busy int) metrics { // two seconds later
		now = now.Add(2 * time.Second)
		busyTicks += 2 * busy
		idleTicks += 2 * (100 - busy)
		text := fmt.Sprintf("cpu  %d 0 0 %d 0 0 0 0 0 0\n", 1+busyTicks, idleTicks)
		write(t, h.procRoot+"/stat", text)
		m, changes := h.sample(now)
		for _, a := range changes {
			activities = append(activities, a.Level+" "+a.CSSClass+" "+a.Message)
		}
		return m
	}

	m := read(100)
	if m.status != "online" || m.message != "System running normally" {
		t.Errorf("before a minute has passed: %s, %q", m.status, m.message)
	}
	for _, c := range []struct {
		busy            int // percent, for a minute
		probeFailures   float64
		status, message string
	}{
		{97, 0, "critical", "CPU at 97% over the last minute"},
		{80, 0, "degraded", "CPU at 80% over the last minute"},
		{81, 3, "critical", "CPU at 81% over the last minute; Health probe failed (3 in a row)"},
		{10, 0, "online", "System running normally"},
	} {
		h.probeFailures = c.probeFailures
		for i := 0; i < 31; i++ {
			m = read(c.busy)
		}
		if m.status != c.status || m.message != c.message {
			t.Errorf("at %d%%: %s, %q, want %s, %q", c.busy, m.status, m.message, c.status, c.message)
		}
	}

	want := []string{
		"error activity-error CPU at 97% over the last minute",
		"warning activity-warning CPU at 85% over the last minute",
		"error activity-error Health probe failed (3 in a row)",
		"info activity-info Health probe back to normal",
		"info activity-info CPU back to normal",
	}
	if !slices.Equal(activities, want) {
		t.Errorf("the activities are\n%s", strings.Join(activities, "\n"))
	}
}

func TestHostAlarmWithoutMetricIsNoLongerItsCause(t *testing.T) {
	t.Parallel()
	h := testSampler(t)
	h.procRoot = t.TempDir() // no other metric
	now := time.Now()
	h.diskPercent = 99
	h.diskAt = now
	m, _ := h.sample(now)
	if m.status != "critical" || m.message != "Disk at 99%" {
		t.Errorf("%s, %q", m.status, m.message)
	}
	m, changes := h.sample(now.Add(time.Minute))
	if m.status != "critical" || m.message != "Disk cannot be measured any more" || len(changes) != 0 {
		t.Errorf("%s, %q, %v", m.status, m.message, changes)
	}
}

func TestHostDiskRoundsUpAsDf(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		blocks, free, available float64
		want                    string
	}{
		{1000, 500, 500, "50%"},
		{1000, 499, 499, "51%"}, // 50.1
		{1000, 500, 450, "53%"}, // 500/950: what is reserved for root counts as neither
		{1000, 1000, 1000, "0%"},
		{1000, 0, 0, "100%"},
		{0, 0, 0, "N/A"},
	} {
		got := formatRounded(usedPercent(c.blocks, c.free, c.available), "%")
		if got != c.want {
			t.Errorf("%v blocks, %v free, %v available: %s, want %s",
				c.blocks, c.free, c.available, got, c.want)
		}
	}
}

func FuzzParseStat(f *testing.F) {
	seed(f, "stat")
	f.Fuzz(func(t *testing.T, text string) {
		times, err := parseStat(text)
		if err != nil && times != (cpuTimes{}) {
			t.Errorf("%+v with %v", times, err)
		}
		busy := times.busySince(cpuTimes{}) // NaN if no tick has passed
		if busy < 0 || busy > 100.001 {
			t.Errorf("%v%% busy", busy)
		}
	})
}

func FuzzParseMeminfo(f *testing.F) {
	seed(f, "meminfo")
	f.Fuzz(func(t *testing.T, text string) {
		percent, err := parseMeminfo(text)
		isPercent := percent >= 0 && percent <= 100
		if !isPercent || err != nil && percent != 0 {
			t.Errorf("%v%% in use, %v", percent, err)
		}
	})
}

func FuzzParseNetDev(f *testing.F) {
	seed(f, "net/dev")
	f.Fuzz(func(t *testing.T, text string) {
		bytes, err := parseNetDev(text)
		if err != nil && bytes != nil {
			t.Errorf("%v with %v", bytes, err)
		}
	})
}

func FuzzParseUptime(f *testing.F) {
	seed(f, "uptime")
	f.Fuzz(func(t *testing.T, text string) {
		uptime, err := parseUptime(text)
		if uptime < 0 || err != nil && uptime != 0 || formatUptime(uptime) == "" {
			t.Errorf("%v, %v", uptime, err)
		}
	})
}

func FuzzParseConfig(f *testing.F) {
	for _, args := range []string{
		"-addr :0 -interval 1s",
		"-origins http://a,https://b:1",
		"-probe http://[::1]/",
	} {
		f.Add(args, "SSE_HEARTBEAT=1s")
	}
	f.Fuzz(func(t *testing.T, args, variable string) {
		cfg, err := parseConfig(strings.Fields(args), env(variable), io.Discard)
		if err != nil {
			return
		}
		if cfg.heartbeat < 200*time.Millisecond || cfg.maxStreams < 1 || cfg.disk == "" {
			t.Errorf("%q %q gives %+v", args, variable, cfg)
		}
	})
}

// seed adds each recorded file of that name, and the first half of each.
func seed(f *testing.F, name string) {
	f.Helper()
	files, err := filepath.Glob("testdata/*/*/" + name)
	if err != nil || len(files) == 0 {
		f.Fatalf("no %s is recorded, %v", name, err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(text))
		f.Add(string(text[:len(text)/2]))
	}
}

// snapshotOf shows metrics as the board does.
func snapshotOf(t testing.TB, m metrics) hostSnapshot {
	t.Helper()
	var s hostSnapshot
	err := json.Unmarshal(formatSnapshot(m, nil, time.Now()), &s)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func testSampler(t testing.TB, args ...string) *sampler {
	t.Helper()
	return newSampler(testConfig(t, args...), noLog())
}

func write(t testing.TB, path, text string) {
	t.Helper()
	err := os.WriteFile(path, []byte(text), 0o644)
	if err != nil {
		t.Fatal(err)
	}
}
