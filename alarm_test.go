package main

import (
	"context"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

func TestProbeDecidesResponseTimeAndStatus(t *testing.T) {
	t.Parallel()
	const fine, broken, missing, elsewhere = 0, 1, 2, 3
	var mode atomic.Int64
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch mode.Load() {
		case fine:
			time.Sleep(20 * time.Millisecond)
			io.WriteString(w, "fine")
		case broken:
			http.Error(w, "broken", 500)
		case missing:
			http.NotFound(w, r)
		case elsewhere:
			http.Redirect(w, r, "/elsewhere", 302)
		}
	}))
	defer app.Close()
	h := newTestHost(t, "-probe", app.URL)
	log, lines := testLog("text")
	h.probe.log = log
	since := ""
	probe := func(when, status, problem string) metrics {
		t.Helper()
		h.clock.advance(2 * time.Second)
		h.probe.measure(context.Background())
		m, changes := h.sample()
		for _, a := range changes {
			since = a.Time
		}
		message := "System running normally"
		if problem != "" {
			message = "Health probe " + problem + ", since " + since
		}
		isMissing := math.IsNaN(m.responseTime)
		if m.status != status || m.message != message || isMissing != (problem != "") {
			t.Errorf("%s: %s, %q, %v ms, want %s, %q",
				when, m.status, m.message, m.responseTime, status, message)
		}
		return m
	}
	h.measure(t) // the other metrics
	h.lines.take()

	m := probe("fine", "online", "")
	if m.responseTime < 20 || m.responseTime > 1000 || m.responseTime != math.Trunc(m.responseTime) {
		t.Errorf("a probe of 20 ms: %v ms", m.responseTime)
	}
	mode.Store(broken)
	probe("first failure", "degraded", "answers 500")
	mode.Store(missing)
	probe("second failure", "degraded", "answers 404")
	probe("third failure", "critical", "answers 404")
	probe("fourth failure", "critical", "answers 404")
	mode.Store(elsewhere)
	m = probe("a redirect is an answer", "online", "")
	if m.responseTime < 1 {
		t.Errorf("after a redirect: %v ms", m.responseTime)
	}
	app.Close()
	probe("the application is down", "degraded", "does not answer")

	want := []string{
		`level=WARN msg="metric missing" source=probe err="answers 500"`,
		`level=INFO msg="metric back" source=probe`,
		`level=WARN msg="metric missing" source=probe err=`,
	}
	got := lines.take()
	isWanted := func(line, want string) bool { return strings.Contains(line, want) }
	if !slices.EqualFunc(got, want, isWanted) {
		t.Errorf("the log has %q, want %q", got, want)
	}
}

func TestProbeThatHangsDelaysNothing(t *testing.T) {
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
	message := e.snapshot(t).SystemStatus.Message
	if !strings.HasPrefix(message, "Health probe does not answer, since ") {
		t.Errorf("the message is %q", message)
	}
	<-probes // the next one hangs by now
	start := time.Now()
	s.stop()
	d := time.Since(start)
	if d > time.Second {
		t.Errorf("a probe that hangs delays the shutdown by %v", d)
	}
}

func TestProbeComesEveryTwoSeconds(t *testing.T) {
	t.Parallel()
	var probes atomic.Int64
	app := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		probes.Add(1)
	}))
	defer app.Close()
	start := time.Now()
	s := startServer(t, "-interval", "50ms", "-probe", app.URL)
	c := s.stream(t)
	for i := 0; i < 20; i++ {
		c.event(t)
	}
	s.stop()
	most := int64(time.Since(start)/(2*time.Second)) + 1
	if got := probes.Load(); got < 1 || got > most {
		t.Errorf("in %v there were %d probes, want 1 to %d", time.Since(start), got, most)
	}
}

func TestProbeReadsOneMiBOfTheAnswer(t *testing.T) {
	t.Parallel()
	const limit = 1 << 20
	ended := make(chan struct{}, 3) // one of each case
	for _, c := range []struct {
		name   string
		size   int // then nothing comes; -1: it never ends
		isFine bool
	}{
		{"it never ends", -1, true},
		{"1 MiB and no end", limit, true},
		{"almost 1 MiB and no end", limit - 1, false},
	} {
		app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			defer func() { ended <- struct{}{} }()
			if c.size >= 0 {
				w.Write(make([]byte, c.size))
				w.(http.Flusher).Flush()
				<-r.Context().Done()
				return
			}
			for {
				_, err := w.Write(make([]byte, 32<<10))
				if err != nil {
					return
				}
			}
		}))
		defer app.Close()
		p := newProbe(app.URL, noLog())
		p.measure(context.Background())
		<-ended // the connection is closed
		got := p.latest()
		if math.IsNaN(got.responseTime) == c.isFine || (got.failures == 0) != c.isFine {
			t.Errorf("%s: %+v", c.name, got)
		}
		if !c.isFine && got.problem != "does not answer" {
			t.Errorf("%s: the problem is %q", c.name, got.problem)
		}
	}
}

// A process of its own has no descriptor to spare.
func TestAlarmNeedsMoreThanAFullTableOfFiles(t *testing.T) {
	const variable = "SSE_TEST_FULL_TABLE"
	if os.Getenv(variable) == "" {
		t.Parallel()
		cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.count=1")
		cmd.Env = append(os.Environ(), variable+"=1")
		output, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("%v\n%s", err, output)
		}
		return
	}

	app := httptest.NewServer(http.NotFoundHandler())
	defer app.Close()
	url := app.URL
	h := newTestHost(t, "-probe", url)
	byName := newTestHost(t, "-probe", strings.Replace(url, "127.0.0.1", "localhost", 1))
	h.measure(t)
	byName.measure(t)
	fillTable(t)

	_, err := get(context.Background(), url)
	t.Logf("by address: %v", err)
	_, err = get(context.Background(), byName.probe.url)
	t.Logf("by name: %v", err)
	for name, h := range map[string]*testHost{"by address": h, "by name": byName} {
		for i := 0; i < 5; i++ {
			h.clock.advance(20 * time.Second)
			h.probe.measure(context.Background())
			m := h.measure(t)
			if m.status != "online" || len(m.alarms) > 0 || !math.IsNaN(m.memory) {
				t.Errorf("%s: %s, %q, memory %v", name, m.status, m.message, m.memory)
			}
		}
	}
}

// fillTable opens files until there is no descriptor left, and keeps them open until the end.
func fillTable(t testing.TB) {
	t.Helper()
	var limit syscall.Rlimit
	err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit)
	if err == nil {
		limit.Cur = 64
		err = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit)
	}
	if err != nil {
		t.Fatal(err)
	}
	for {
		fd, err := syscall.Open("/dev/null", syscall.O_RDONLY, 0)
		if err != nil {
			return
		}
		t.Cleanup(func() { syscall.Close(fd) })
	}
}

func TestAlarmHasHysteresis(t *testing.T) {
	t.Parallel()
	h := newTestHost(t)
	space := []float64{89, 90, 97.9, 98, 90, 89.9, 80, 79.9}
	spaceLevels := []alarmLevel{0, 1, 1, 2, 2, 1, 1, 0}
	now := time.Now()
	for _, c := range []struct {
		alarm  *alarm
		values []float64
		want   []alarmLevel
	}{
		{&h.cpuAlarm, []float64{0, 84.9, 85, 84, 75, 74.9, 95, 85, 84.9, 75, 74, 96, 0},
			[]alarmLevel{0, 0, 1, 1, 1, 0, 2, 2, 1, 1, 0, 2, 0}},
		{&h.memoryAlarm, space, spaceLevels},
		{&h.diskAlarm, space, spaceLevels},
		{&h.probeAlarm, []float64{0, 1, 2, 3, 4, 0, 1, 0}, []alarmLevel{0, 1, 1, 2, 2, 0, 1, 0}},
	} {
		a := c.alarm
		before, since := levelOK, time.Time{}
		for i, value := range c.values {
			now = now.Add(2 * time.Second)
			a.judge(value, "text", now)
			if c.want[i] != before {
				since = now
			}
			if a.level != c.want[i] || a.isChanged != (a.level != before) || !a.since.Equal(since) {
				t.Errorf("%s at %v after %v: level %d, changed %v, since %v, want level %d since %v",
					a.name, value, c.values[:i], a.level, a.isChanged, a.since, c.want[i], since)
			}
			before = a.level
			a.judge(math.NaN(), "text", now.Add(time.Second))
			if a.level != before || a.isChanged || !a.since.Equal(since) {
				t.Errorf("%s: a missing value changes the level", a.name)
			}
		}
	}
}

func TestAlarmMessageNamesCausesWorstFirst(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 25, 15, 10, 0, 0, time.Local)
	today := time.Date(2026, 11, 25, 15, 4, 5, 0, time.Local)
	yesterday := time.Date(2026, 11, 24, 23, 58, 2, 0, time.Local)
	const cpu, memory, disk, probe = 0, 1, 2, 3
	type cause struct {
		alarm int
		level alarmLevel
		text  string
		since time.Time
	}
	for _, c := range []struct {
		causes          []cause
		status, message string
	}{
		{nil, "online", "System running normally"},
		{[]cause{{memory, levelWarning, "Memory at 91%", today}},
			"degraded", "Memory at 91%, since 15:04:05"},
		{[]cause{{memory, levelCritical, "Memory at 99%", yesterday}},
			"critical", "Memory at 99%, since 2026-11-24 23:58:02"},
		{[]cause{{probe, levelWarning, "Health probe answers 404", today.AddDate(-1, 0, 0)}},
			"degraded", "Health probe answers 404, since 2025-11-25 15:04:05"},
		{[]cause{{cpu, levelCritical, "CPU at 97% over the last minute", today},
			{memory, levelWarning, "Memory at 91%", yesterday}},
			"critical", "Critical: CPU at 97% over the last minute, since 15:04:05; " +
				"Warning: Memory at 91%, since 2026-11-24 23:58:02"},
		{[]cause{{cpu, levelWarning, "CPU at 90% over the last minute", today},
			{disk, levelWarning, "Disk at 91%", today},
			{probe, levelCritical, "Health probe does not answer", today}},
			"critical", "Critical: Health probe does not answer, since 15:04:05; " +
				"Warning: CPU at 90% over the last minute, since 15:04:05; " +
				"Warning: Disk at 91%, since 15:04:05"},
		{[]cause{{memory, levelCritical, "Memory at 99%", today},
			{disk, levelCritical, "Disk at 99%", today}},
			"critical", "Critical: Memory at 99%, since 15:04:05; " +
				"Critical: Disk at 99%, since 15:04:05"},
	} {
		alarms := []*alarm{{}, {}, {}, {}}
		for _, cause := range c.causes {
			*alarms[cause.alarm] = alarm{level: cause.level, text: cause.text, since: cause.since}
		}
		status, message := summarize(alarms, now)
		if status != c.status || message != c.message {
			t.Errorf("got %s, %q, want %s, %q", status, message, c.status, c.message)
		}
	}
}

func TestAlarmIsOneActivityAndNamesItsCause(t *testing.T) {
	t.Parallel()
	h := newTestHost(t)
	busyTicks, idleTicks := 0, 0
	var activities []string
	since := map[string]string{} // when the last activity with a name was
	read := func(busy int) metrics {
		h.clock.advance(2 * time.Second)
		busyTicks += 2 * busy
		idleTicks += 2 * (100 - busy)
		write(t, h.proc+"/stat", busyStat(1+busyTicks, idleTicks))
		m, changes := h.measureChanges(t)
		for _, a := range changes {
			activities = append(activities, a.Level+" "+a.CSSClass+" "+a.Message)
			name, _, _ := strings.Cut(a.Message, " ")
			since[name] = a.Time
			if want := h.clock.now().Format(time.TimeOnly); a.Time != want {
				t.Errorf("%q is of %s, want %s", a.Message, a.Time, want)
			}
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
		{97, 0, "critical", "CPU at 97% over the last minute, since CPU"},
		{80, 0, "degraded", "CPU at 80% over the last minute, since CPU"},
		{81, 3, "critical", "Critical: Health probe answers 500, since Health; " +
			"Warning: CPU at 81% over the last minute, since CPU"},
		{10, 0, "online", "System running normally"},
	} {
		h.probe.last = probeResult{failures: c.probeFailures, problem: "answers 500"}
		for i := 0; i < 31; i++ {
			m = read(c.busy)
		}
		want := strings.Replace(c.message, "since CPU", "since "+since["CPU"], 1)
		want = strings.Replace(want, "since Health", "since "+since["Health"], 1)
		if m.status != c.status || m.message != want {
			t.Errorf("at %d%%: %s, %q, want %s, %q", c.busy, m.status, m.message, c.status, want)
		}
	}

	want := []string{
		"error activity-error CPU at 97% over the last minute",
		"warning activity-warning CPU at 85% over the last minute",
		"error activity-error Health probe answers 500",
		"success activity-success Health probe back to normal",
		"success activity-success CPU back to normal",
	}
	if !slices.Equal(activities, want) {
		t.Errorf("the activities are\n%s", strings.Join(activities, "\n"))
	}
}

func TestAlarmWithoutMetricIsNoLongerItsCause(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		source, name, before string
	}{
		{"disk", "Disk", "Disk at 99%"},
		{"meminfo", "Memory", "Memory at 99%"},
		{"stat", "CPU", "CPU at 100% over the last minute"},
	} {
		h := newTestHost(t)
		switch c.source {
		case "disk":
			h.disk.reader = func() (diskUse, error) { return diskUse{percent: 99}, nil }
		case "meminfo":
			write(t, h.proc+"/meminfo", "MemTotal: 100 kB\nMemAvailable: 1 kB\n")
		}
		var m metrics
		for i := 0; i < 31; i++ {
			if c.source == "stat" {
				write(t, h.proc+"/stat", busyStat(1000+200*i, 5000))
			}
			h.clock.advance(2 * time.Second)
			m = h.measure(t)
		}
		_, since, _ := strings.Cut(m.message, ", since ")
		if m.status != "critical" || m.message != c.before+", since "+since {
			t.Errorf("%s: %s, %q", c.source, m.status, m.message)
		}

		release := h.hang(t, c.source)
		h.clock.advance(time.Hour)
		m, changes := h.measureChanges(t, c.source)
		want := c.name + " cannot be measured any more, since " + since
		if m.status != "critical" || m.message != want || len(changes) != 0 {
			t.Errorf("%s: %s, %q, %v, want %q", c.source, m.status, m.message, changes, want)
		}
		release()
	}
}

func TestAlarmsAreDescribed(t *testing.T) {
	t.Parallel()
	h := newTestHost(t)
	h.disk.reader = func() (diskUse, error) { return diskUse{percent: 99}, nil }
	h.probe.last = probeResult{failures: 1, problem: "answers 500"}
	m := h.measure(t)
	since := h.clock.now().UnixMilli()
	h.clock.advance(2 * time.Second)
	m = h.measure(t)
	want := []alarmReply{
		{Metric: "disk", Level: "critical", Since: since},
		{Metric: "response_time", Level: "warning", Since: since},
	}
	if !slices.Equal(m.alarms, want) {
		t.Errorf("the alarms are %v, want %v", m.alarms, want)
	}
}

func TestSampleIntervalFollowsBroadcasts(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		interval, want time.Duration
		isOne          bool // each sample is broadcast, and nothing else
	}{
		{0, 2 * time.Second, false},
		{50 * time.Millisecond, 500 * time.Millisecond, false},
		{499 * time.Millisecond, 500 * time.Millisecond, false},
		{500 * time.Millisecond, 500 * time.Millisecond, true},
		{700 * time.Millisecond, 700 * time.Millisecond, true},
		{time.Second, time.Second, true},
		{2 * time.Second, 2 * time.Second, true},
		{2001 * time.Millisecond, 2 * time.Second, false},
		{time.Hour, 2 * time.Second, false},
	} {
		s := testServer(t, "-interval", fmt.Sprint(c.interval))
		if got := s.sampler.interval; got != c.want {
			t.Errorf("at %v the host is read each %v, want %v", c.interval, got, c.want)
		}
		if got := s.broadcastsEachSample(); got != c.isOne {
			t.Errorf("at %v each sample is broadcast: %v, want %v", c.interval, got, c.isOne)
		}
	}
}

// A time-out takes as long as the interval, so a success can follow it at once.
func TestProbeFailureIsSeenInSpiteOfASuccess(t *testing.T) {
	t.Parallel()
	fails := true
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if fails {
			w.WriteHeader(http.StatusInternalServerError)
		}
	}))
	defer app.Close()
	p := newProbe(app.URL, noLog())
	p.measure(context.Background())
	fails = false
	p.measure(context.Background())

	if got := p.latest(); got.failures != 1 || got.problem != "answers 500" {
		t.Errorf("the first result is %+v", got)
	}
	if got := p.latest(); got.failures != 0 || math.IsNaN(got.responseTime) {
		t.Errorf("the second result is %+v", got)
	}
}
