package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// Each case is two readings, two seconds apart, of another kind of machine.
func TestFiguresOfRecordedMachines(t *testing.T) {
	for _, c := range []struct {
		machine, sys, cpu, memory, network, uptime string
	}{
		// busy 60+10+30 of 200 ticks; 3,000,000+500,000+250,000 bytes in 2 s, no docker, no veth
		{"bare", "host", "50%", "50%", "15 Mbps", "2 days, 14 hours"},
		// idle; 75,000 bytes of eth0, which is virtual there, but not of the tunnel
		{"container", "container", "0%", "50%", "0.3 Mbps", "1 hour, 3 minutes"},
		// busy 80+40+80 of 400: steal is busy, iowait is idle
		{"steal", "host", "50%", "75%", "125 Mbps", "1 day, 1 hour"},
		// eight columns only
		{"no-memavailable", "host", "50%", "N/A", "0.0 Mbps", "1 minute"},
		// guest's 90 ticks are among user's 100
		{"guest", "host", "50%", "50%", "0.0 Mbps", "2 days"},
		// 2,475,000 bytes are 9.9 Mbps
		{"no-space", "host", "20%", "50%", "9.9 Mbps", "1 day, 1 hour"},
		// busy 40 of 100, iowait's -100 count nothing; only eth1 has two readings in order
		{"step-back", "host", "40%", "50%", "1.0 Mbps", "2 minutes"},
	} {
		h := testSampler(t)
		h.sys = "testdata/sys-" + c.sys
		now := time.Now()
		h.proc = filepath.Join("testdata", c.machine, "before")
		if f, _ := h.sample(now); !math.IsNaN(f.cpu) || !math.IsNaN(f.network) {
			t.Errorf("%s: one reading gives cpu %v, network %v", c.machine, f.cpu, f.network)
		}
		h.proc = filepath.Join("testdata", c.machine, "after")
		f, _ := h.sample(now.Add(2 * time.Second))
		got := snapshotOf(t, f)
		want := metrics{c.cpu, c.memory, "N/A", c.network, "N/A"}
		if got.Metrics != want || got.SystemStatus.Uptime != c.uptime {
			t.Errorf("%s: got %+v, up %q; want %+v, %q", c.machine, got.Metrics,
				got.SystemStatus.Uptime, want, c.uptime)
		}
	}
}

func TestWhatCannotBeReadIsNA(t *testing.T) {
	h := testSampler(t)
	h.proc, h.disk = t.TempDir(), "/nowhere"
	h.readDisk(time.Now())
	f, _ := h.sample(time.Now())
	got := snapshotOf(t, f)
	if want := (metrics{"N/A", "N/A", "N/A", "N/A", "N/A"}); got.Metrics != want ||
		got.SystemStatus.Uptime != "N/A" {
		t.Errorf("got %+v, up %q", got.Metrics, got.SystemStatus.Uptime)
	}
}

func TestCPUKeepsItsLastValueWhenNoTickHasPassed(t *testing.T) {
	h := testSampler(t)
	now := time.Now()
	h.proc = "testdata/bare/before"
	h.sample(now)
	h.proc = "testdata/bare/after"
	h.sample(now.Add(2 * time.Second))
	if f, _ := h.sample(now.Add(4 * time.Second)); f.cpu != 50 {
		t.Errorf("cpu is %v, want the last 50", f.cpu)
	}
}

func TestRateAfterALongGapIsOverTheRealGap(t *testing.T) {
	h := testSampler(t)
	h.sys = "testdata/sys-host"
	now := time.Now()
	h.proc = "testdata/bare/before"
	h.sample(now)
	h.proc = "testdata/bare/after"
	f, _ := h.sample(now.Add(200 * time.Second))
	if math.Abs(f.network-0.15) > 1e-9 {
		t.Errorf("3,750,000 bytes in 200 s are %v Mbps, want 0.15", f.network)
	}
}

func TestDiskIsRoundedUpAsDfDoes(t *testing.T) {
	for _, c := range []struct{ blocks, free, available, want float64 }{
		{1000, 500, 500, 50},
		{1000, 499, 499, 51}, // 50.1
		{1000, 500, 450, 53}, // 500/950: what is reserved for root counts as neither
		{1000, 1000, 1000, 0},
		{1000, 0, 0, 100},
	} {
		if got := usedPercent(c.blocks, c.free, c.available); got != c.want {
			t.Errorf("%v blocks, %v free, %v available: %v%%, want %v", c.blocks, c.free, c.available, got, c.want)
		}
	}
	if got := formatFigure(usedPercent(0, 0, 0), "%"); got != "N/A" {
		t.Errorf("a file system without blocks is %s full", got)
	}
}

func TestDiskThatAnswersNoMoreIsNA(t *testing.T) {
	h := testSampler(t)
	now := time.Now()
	h.readDisk(now)
	if f, _ := h.sample(now.Add(diskPatience - time.Second)); math.IsNaN(f.disk) {
		t.Error("a reading of nine seconds ago is not shown")
	}
	if f, _ := h.sample(now.Add(diskPatience)); !math.IsNaN(f.disk) {
		t.Errorf("a reading of ten seconds ago is shown as %v", f.disk)
	}
}

func TestUptimeShowsTheTwoLargestUnits(t *testing.T) {
	const day, h, m = 24 * time.Hour, time.Hour, time.Minute
	for d, want := range map[time.Duration]string{
		-1:                           "N/A",
		0:                            "less than a minute",
		59 * time.Second:             "less than a minute",
		m:                            "1 minute",
		5*m + 59*time.Second:         "5 minutes",
		h:                            "1 hour",
		h + 3*m:                      "1 hour, 3 minutes",
		2*h + m:                      "2 hours, 1 minute",
		day:                          "1 day",
		2*day + 5*m:                  "2 days",
		2*day + 14*h + 59*m:          "2 days, 14 hours",
		100*day + h:                  "100 days, 1 hour",
		day + 23*h + 59*m + 59*1e9:   "1 day, 23 hours",
		1000*day + 23*h + 59*m + 1e9: "1000 days, 23 hours",
	} {
		if got := formatUptime(d); got != want {
			t.Errorf("%v is shown as %q, want %q", d, got, want)
		}
	}
}

func TestNetworkIsRoundedFirstThenShown(t *testing.T) {
	for mbps, want := range map[float64]string{
		0: "0.0 Mbps", 0.04: "0.0 Mbps", 0.05: "0.1 Mbps", 0.3: "0.3 Mbps", 9.94: "9.9 Mbps",
		9.96: "10 Mbps", 10.4: "10 Mbps", 10.5: "11 Mbps", 125: "125 Mbps", math.NaN(): "N/A",
	} {
		if got := formatFigure(mbps, " Mbps"); got != want {
			t.Errorf("%v is shown as %q, want %q", mbps, got, want)
		}
	}
}

func TestPercentIsRoundedToTheNearest(t *testing.T) {
	for v, want := range map[float64]string{0: "0%", 0.49: "0%", 0.5: "1%", 44.6: "45%", 99.5: "100%"} {
		if got := formatFigure(v, "%"); got != want {
			t.Errorf("%v is shown as %q, want %q", v, got, want)
		}
	}
}

func TestLevelsHaveHysteresis(t *testing.T) {
	for i, c := range []struct{ values, levels []float64 }{
		{[]float64{0, 84.9, 85, 84, 75, 74.9, 95, 85, 84.9, 75, 74, 96, 0},
			[]float64{0, 0, 1, 1, 1, 0, 2, 2, 1, 1, 0, 2, 0}}, // cpu
		{[]float64{89, 90, 97.9, 98, 90, 89.9, 80, 79.9}, []float64{0, 1, 1, 2, 2, 1, 1, 0}}, // memory
		{[]float64{89, 90, 97.9, 98, 90, 89.9, 80, 79.9}, []float64{0, 1, 1, 2, 2, 1, 1, 0}}, // disk
		{[]float64{0, 1, 2, 3, 4, 0, 1, 0}, []float64{0, 1, 1, 2, 2, 0, 1, 0}},               // probe
	} {
		a := &testSampler(t).alarms[i]
		level := 0
		for j, v := range c.values {
			changed := a.judge(v)
			if float64(a.level) != c.levels[j] || changed != (a.level != level) {
				t.Errorf("%s at %v after %v: level %d, changed %v", a.name, v, c.values[:j], a.level, changed)
			}
			level = a.level
			if a.judge(math.NaN()) || a.level != level {
				t.Errorf("%s: no figure changes the level", a.name)
			}
		}
	}
}

func TestChangeOfLevelIsOneActivityAndNamesItsCause(t *testing.T) {
	h := testSampler(t)
	h.proc = t.TempDir()
	ticks, idle := 0, 0
	var messages []string
	read := func(now time.Time, busy int) figures {
		ticks, idle = ticks+2*busy, idle+2*(100-busy)
		write(t, h.proc+"/stat", fmt.Sprintf("cpu  %d 0 0 %d 0 0 0 0 0 0\n", 1+ticks, idle))
		f, changes := h.sample(now)
		for _, a := range changes {
			messages = append(messages, a.Level+" "+a.CSSClass+" "+a.Message)
		}
		return f
	}
	now := time.Now()
	minute := func(busy int) (f figures) {
		for i := 0; i < 31; i++ {
			f = read(now, busy)
			now = now.Add(2 * time.Second)
		}
		return f
	}
	if f := read(now, 100); f.status != "online" || f.message != "System running normally" {
		t.Errorf("before a minute has passed: %s, %q", f.status, f.message)
	}
	now = now.Add(2 * time.Second)
	if f := minute(97); f.status != "critical" || f.message != "CPU at 97% over the last minute" {
		t.Errorf("at 97%%: %s, %q", f.status, f.message)
	}
	if f := minute(80); f.status != "degraded" || f.message != "CPU at 80% over the last minute" {
		t.Errorf("at 80%%: %s, %q", f.status, f.message)
	}
	h.failures = 3
	if f := minute(81); f.status != "critical" ||
		f.message != "CPU at 81% over the last minute; Health probe failed (3 in a row)" {
		t.Errorf("with a dead probe: %s, %q", f.status, f.message)
	}
	h.failures = 0
	if f := minute(10); f.status != "online" || f.message != "System running normally" {
		t.Errorf("at 10%%: %s, %q", f.status, f.message)
	}
	want := []string{
		"error activity-error CPU at 97% over the last minute",
		"warning activity-warning CPU at 85% over the last minute",
		"error activity-error Health probe failed (3 in a row)",
		"info activity-info Health probe back to normal",
		"info activity-info CPU back to normal",
	}
	if !reflect.DeepEqual(messages, want) {
		t.Errorf("activities:\n%s", strings.Join(messages, "\n"))
	}
}

func TestProbeDecidesResponseTimeAndStatus(t *testing.T) {
	t.Parallel()
	var mode atomic.Int64
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch mode.Load() {
		case 1:
			http.Error(w, "broken", 500)
		case 2:
			http.Redirect(w, r, "/elsewhere", 302)
		default:
			time.Sleep(20 * time.Millisecond)
			io.WriteString(w, "fine")
		}
	}))
	defer app.Close()
	h := testSampler(t, "-probe", app.URL)
	probe := func() figures {
		h.readProbe(context.Background())
		f, _ := h.sample(time.Now())
		return f
	}
	if f := probe(); f.response < 20 || f.response > 1000 || f.status != "online" {
		t.Errorf("a probe of 20 ms: %v ms, %s", f.response, f.status)
	}
	mode.Store(1)
	for i, want := range []string{"degraded", "degraded", "critical"} {
		f := probe()
		if f.status != want || !math.IsNaN(f.response) || f.message != fmt.Sprintf("Health probe failed (%d in a row)", i+1) {
			t.Errorf("failure %d: %s, %q, %v ms", i+1, f.status, f.message, f.response)
		}
	}
	mode.Store(2)
	if f := probe(); f.status != "online" || f.response < 1 {
		t.Errorf("after a redirect, which is an answer: %s, %v ms", f.status, f.response)
	}
	app.Close()
	if f := probe(); f.status != "degraded" {
		t.Errorf("with the application down: %s", f.status)
	}
}

func TestProbeThatHangsHoldsNoSnapshotUp(t *testing.T) {
	t.Parallel()
	hang := make(chan bool)
	app := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-hang }))
	defer app.Close()
	defer close(hang)
	s := startServer(t, "-interval", "100ms", "-probe", app.URL)
	c := s.stream(t)
	first := c.event(t)
	for i := 0; i < 5; i++ {
		c.event(t)
	}
	if e := c.event(t); e.id-first.id > 1500 || e.snapshot(t).Metrics.ResponseTime != "N/A" {
		t.Errorf("six snapshots took %d ms, response_time %s", e.id-first.id,
			e.snapshot(t).Metrics.ResponseTime)
	}
	for e := c.event(t); e.snapshot(t).SystemStatus.Status != "degraded"; e = c.event(t) {
		if e.id-first.id > 5000 {
			t.Fatal("a probe that hangs is no failure after five seconds")
		}
	}
	time.Sleep(200 * time.Millisecond) // the next probe hangs by now
	start := time.Now()
	s.stop()
	if d := time.Since(start); d > time.Second {
		t.Errorf("a probe that hangs delays shutdown by %v", d)
	}
}

func TestAMissingFigureIsLoggedWhenItBeginsAndWhenItIsBack(t *testing.T) {
	var log strings.Builder
	h := testSampler(t)
	h.log = slog.New(slog.NewTextHandler(&log, nil))
	for i, text := range []string{"fine", "one", "another text", "fine", "one", "fine", "fine"} {
		var err error
		if text != "fine" {
			err = fmt.Errorf("%s %d", text, i)
		}
		h.complain("meminfo", err)
	}
	for part, want := range map[string]int{"is missing": 2, "is back": 2, "source=meminfo": 4} {
		if n := strings.Count(log.String(), part); n != want {
			t.Errorf("%q is logged %d times, want %d:\n%s", part, n, want, log.String())
		}
	}
}

func TestLoIsNeverCountedNotEvenWithoutSys(t *testing.T) {
	h := testSampler(t)
	h.proc, h.sys = t.TempDir(), "/nowhere"
	os.Mkdir(h.proc+"/net", 0o755)
	dev := func(lo, eth0 int) {
		write(t, h.proc+"/net/dev", fmt.Sprintf("    lo: %d 0 0 0 0 0 0 0 0\n  eth0: %d 0 0 0 0 0 0 0 0\n", lo, eth0))
	}
	now := time.Now()
	dev(0, 0)
	h.readNetwork(now)
	dev(1e9, 125000)
	if mbps := h.readNetwork(now.Add(time.Second)); mbps != 1 {
		t.Errorf("125,000 bytes of eth0 and a lot of lo in a second are %v Mbps", mbps)
	}
}

func TestFigureThatIsGoneIsNoCauseAnyMore(t *testing.T) {
	h := testSampler(t)
	h.proc = t.TempDir() // no other figure
	now := time.Now()
	h.used, h.usedAt = 99, now
	if f, _ := h.sample(now); f.status != "critical" || !strings.Contains(f.message, "Disk at 99%") {
		t.Errorf("%s, %q", f.status, f.message)
	}
	f, changes := h.sample(now.Add(time.Minute))
	if f.status != "critical" || f.message != "Disk cannot be measured any more" || len(changes) != 0 {
		t.Errorf("%s, %q, %v", f.status, f.message, changes)
	}
}

// A look at this machine with other eyes: awk, free and df.
func TestLiveFiguresAgreeWithTheSystemsTools(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("figures are Linux's")
	}
	h := testSampler(t)
	h.readDisk(time.Now())
	h.sample(time.Now())
	time.Sleep(200 * time.Millisecond)
	f, _ := h.sample(time.Now())
	if !(f.cpu >= 0 && f.cpu <= 100) || !(f.network >= 0 || math.IsNaN(f.network)) {
		t.Errorf("cpu %v%%, network %v Mbps", f.cpu, f.network)
	}
	tool := func(script string) float64 {
		out, err := exec.Command("sh", "-c", script).Output()
		v, err2 := strconv.ParseFloat(strings.TrimSpace(string(out)), 64)
		if err != nil || err2 != nil {
			t.Skipf("%s: %v %v", script, err, err2)
		}
		return v
	}
	for _, c := range []struct {
		name             string
		got, want, apart float64
	}{
		{"uptime in s", f.uptime.Seconds(), tool("cut -d' ' -f1 /proc/uptime"), 5},
		{"disk", f.disk, tool("df -P / | awk 'END {print $5+0}'"), 1},
		{"memory", f.memory, tool("free | awk '/Mem/ {print 100*($2-$7)/$2}'"), 5},
	} {
		if math.Abs(c.got-c.want) > c.apart {
			t.Errorf("%s is %v, the tool says %v", c.name, c.got, c.want)
		}
	}
}

func FuzzParseStat(f *testing.F) {
	seed(f, "stat")
	f.Fuzz(func(t *testing.T, text string) {
		v, err := parseStat(text)
		if p := v.since(cpuTimes{}); p < 0 || p > 100.001 || err != nil && v != (cpuTimes{}) {
			t.Errorf("%v%% busy, %v", p, err)
		}
	})
}

func FuzzParseMeminfo(f *testing.F) {
	seed(f, "meminfo")
	f.Fuzz(func(t *testing.T, text string) {
		p, err := parseMeminfo(text)
		if err == nil && !(p >= 0 && p <= 100) || err != nil && !math.IsNaN(p) {
			t.Errorf("%v%% in use, %v", p, err)
		}
	})
}

func FuzzParseNetDev(f *testing.F) {
	seed(f, "net/dev")
	f.Fuzz(func(t *testing.T, text string) {
		if v, err := parseNetDev(text); err != nil && v != nil {
			t.Errorf("%v with %v", v, err)
		}
	})
}

func FuzzParseUptime(f *testing.F) {
	seed(f, "uptime")
	f.Fuzz(func(t *testing.T, text string) {
		d, err := parseUptime(text)
		if (err == nil) != (d >= 0) || formatUptime(d) == "" {
			t.Errorf("%v, %v", d, err)
		}
	})
}

func FuzzParseSettings(f *testing.F) {
	for _, s := range []string{"-addr :0 -interval 1s", "-origins http://a,https://b:1", "-probe http://[::1]/"} {
		f.Add(s, "SSE_HEARTBEAT=1s")
	}
	f.Fuzz(func(t *testing.T, args, variable string) {
		if strings.Contains(args, "-h") {
			return // prints the help
		}
		s, err := parseSettings(strings.Fields(args), env(variable))
		if err == nil && (s.heartbeat < 200*time.Millisecond || s.maxStreams < 1 || s.disk == "") {
			t.Errorf("%q %q gives %+v", args, variable, s)
		}
	})
}

// seed adds each recorded file of that name, and each with its first half only.
func seed(f *testing.F, name string) {
	files, err := filepath.Glob("testdata/*/*/" + name)
	if err != nil || len(files) == 0 {
		f.Fatal("no recorded ", name, err)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(b))
		f.Add(string(b[:len(b)/2]))
	}
}

func snapshotOf(t testing.TB, f figures) snapshot {
	t.Helper()
	return event{data: []byte(formatSnapshot(f, nil, time.Now()))}.snapshot(t)
}

func testSampler(t testing.TB, args ...string) *sampler {
	t.Helper()
	return testServer(t, args...).host
}

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
