package main

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// metricOf has the metric that each source makes.
var metricOf = map[string]string{
	"stat":    "cpu",
	"meminfo": "memory",
	"uptime":  "uptime",
	"net/dev": "network",
	"disk":    "disk",
}

// shown are the metrics of the sources as viewers see them.
func shown(t testing.TB, m metrics) map[string]string {
	t.Helper()
	s := snapshotOf(t, m)
	return map[string]string{
		"cpu":     s.Metrics.CPU,
		"memory":  s.Metrics.Memory,
		"uptime":  s.SystemStatus.Uptime,
		"network": s.Metrics.Network,
		"disk":    s.Metrics.Disk,
	}
}

// bareMetrics are those of testdata/bare.
var bareMetrics = map[string]string{
	"cpu":     "50%",
	"memory":  "50%",
	"uptime":  "2 days, 14 hours",
	"network": "15 Mbps",
	"disk":    "23%",
}

// without are the metrics of testdata/bare if that of one source is missing.
func without(source string) map[string]string {
	metrics := maps.Clone(bareMetrics)
	metrics[metricOf[source]] = "N/A"
	return metrics
}

// bareRead puts the next reading of testdata/bare in place, two seconds after the one before. A
// source that is broken stays so.
func (h *testHost) bareRead(t testing.TB, when, broken string) {
	t.Helper()
	for _, name := range []string{"stat", "meminfo", "uptime", "net/dev"} {
		if name != broken {
			write(t, h.proc+"/"+name, bare(t, when, name))
		}
	}
	h.clock.advance(2 * time.Second)
}

func bare(t testing.TB, when, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata/bare", when, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// A pipe is a named pipe in place of a file. Opening it hangs until its other end is opened.
type pipe struct {
	path string // of a second name, which stays
}

func newPipe(t testing.TB, path string) *pipe {
	t.Helper()
	p := &pipe{path: filepath.Join(t.TempDir(), "pipe")}
	err := syscall.Mkfifo(p.path, 0o600)
	if err == nil {
		err = os.Link(p.path, path+".new")
	}
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		t.Fatal(err)
	}

	t.Cleanup(func() { // nobody shall hang longer
		w, err := p.tryOpen()
		if err == nil {
			w.Close()
		}
	})
	return p
}

// tryOpen fails if nobody has it open to read, or hangs in doing so.
func (p *pipe) tryOpen() (*os.File, error) {
	return os.OpenFile(p.path, os.O_WRONLY|syscall.O_NONBLOCK, 0)
}

func (p *pipe) open(t testing.TB) *os.File {
	t.Helper()
	var w *os.File
	eventually(t, "the pipe is read", func() bool {
		var err error
		w, err = p.tryOpen()
		return err == nil
	})
	t.Cleanup(func() { w.Close() })
	return w
}

// hang makes the reads of a source hang. release ends that, and waits for the one that hangs.
func (h *testHost) hang(t testing.TB, source string) (release func()) {
	t.Helper()
	if source == "disk" {
		ended := make(chan struct{})
		reader := h.disk.reader
		h.disk.reader = func() (diskUse, error) {
			<-ended
			return reader()
		}
		return func() { close(ended) }
	}

	p := newPipe(t, h.proc+"/"+source)
	return func() {
		t.Helper()
		w := p.open(t)
		write(t, h.proc+"/"+source, bare(t, "after", source))
		_, err := w.WriteString(bare(t, "after", source))
		if err != nil {
			t.Fatal(err)
		}
		w.Close()
		h.waitFor(t, source)
	}
}

// checkLog fails unless the log says once that a source is missing, and nothing else.
func (h *testHost) checkLog(t testing.TB, source, what, err string) {
	t.Helper()
	lines := h.lines.take()
	want := fmt.Sprintf(`msg="metric %s" source=%s`, what, source)
	if source == "disk" {
		want = fmt.Sprintf(`msg="metric %s" source="disk /"`, what)
	}
	if len(lines) != 1 || !strings.Contains(lines[0], want) || !strings.Contains(lines[0], err) {
		t.Errorf("%s: the log has %q, want %s %s", source, lines, want, err)
	}
}

func TestSourceThatHangsAtStartIsNAAlone(t *testing.T) {
	t.Parallel()
	for source := range metricOf {
		h := newTestHost(t)
		h.recordSys(t, "sys-host")
		release := h.hang(t, source)

		start := time.Now()
		h.bareRead(t, "before", source)
		h.readCounters()
		if took := time.Since(start); took > 2*time.Second {
			t.Errorf("%s: the first reading took %v", source, took)
		}
		h.measure(t, source)
		h.bareRead(t, "after", source)
		got := shown(t, h.measure(t, source))
		if want := without(source); !maps.Equal(got, want) {
			t.Errorf("%s hangs: got %v, want %v", source, got, want)
		}
		h.measure(t, source)
		h.checkLog(t, source, "missing", `err="the read hangs"`)

		release()
		h.bareRead(t, "before", "")
		h.measure(t)
		h.bareRead(t, "after", "")
		if got := shown(t, h.measure(t)); !maps.Equal(got, bareMetrics) {
			t.Errorf("%s no longer hangs: got %v, want %v", source, got, bareMetrics)
		}
		h.checkLog(t, source, "back", "level=INFO")
	}
}

func TestSourceThatHangsLaterIsNAAfterTenSeconds(t *testing.T) {
	t.Parallel()
	for source := range metricOf {
		h := newTestHost(t)
		h.recordSys(t, "sys-host")
		h.bareRead(t, "before", "")
		h.measure(t)
		h.bareRead(t, "after", "")
		h.measure(t)
		release := h.hang(t, source)

		// The others are read anew, but say the same.
		check := func(when string, want map[string]string) {
			t.Helper()
			m := h.measure(t, source)
			got := shown(t, m)
			if source != "net/dev" {
				want["network"] = got["network"] // 0 by now
			}
			if !maps.Equal(got, want) || m.status != "online" {
				t.Errorf("%s hangs %s: got %v, %s, want %v", source, when, got, m.status, want)
			}
		}
		check("from now on", maps.Clone(bareMetrics))
		h.clock.advance(9999 * time.Millisecond)
		check("for 9.999 s", maps.Clone(bareMetrics))
		if lines := h.lines.take(); len(lines) > 0 {
			t.Errorf("%s: the log has %q", source, lines)
		}
		h.clock.advance(time.Millisecond)
		check("for 10 s", without(source))
		h.clock.advance(time.Hour)
		check("for an hour", without(source))
		h.checkLog(t, source, "missing", `err="the read hangs"`)

		release()
		h.measure(t)
		h.clock.advance(2 * time.Second)
		got := shown(t, h.measure(t))
		want := maps.Clone(bareMetrics)
		want["network"] = "0.0 Mbps"
		if !maps.Equal(got, want) {
			t.Errorf("%s is over: got %v, want %v", source, got, want)
		}
		h.checkLog(t, source, "back", "level=INFO")
	}
}

func TestSourceThatHangsIsAwaitedOnce(t *testing.T) {
	t.Parallel()
	h := newTestHost(t)
	for source := range metricOf {
		release := h.hang(t, source)
		if source == "disk" {
			defer release()
		}
	}
	h.read()

	fastest := time.Hour
	for i := 0; i < 20; i++ {
		start := time.Now()
		h.read()
		h.sample()
		fastest = min(fastest, time.Since(start))
	}
	if fastest > 50*time.Millisecond {
		t.Errorf("while all sources hang, a reading takes %v", fastest)
	}
}

func TestSourceIsNotReadAgainWhileItHangs(t *testing.T) {
	t.Parallel()
	var reads atomic.Int64
	answers := make(chan int) // as many as reads
	src := newSource("test", noLog(), newClock().now, func() (int, error) {
		reads.Add(1)
		return <-answers, nil
	})
	first := src.begin()
	for i := 0; i < 100; i++ {
		<-src.begin() // at once
	}
	answers <- 1
	<-first
	if got := reads.Load(); got != 1 {
		t.Errorf("there were %d reads, want 1", got)
	}

	second := src.begin()
	answers <- 2
	<-second
	value, _, ok := src.latest(src.now())
	if got := reads.Load(); got != 2 || value != 2 || !ok {
		t.Errorf("after %d reads the value is %d, %v", got, value, ok)
	}
}

func TestSourceThatIsBrokenIsNAAlone(t *testing.T) {
	t.Parallel()
	const size = 4 << 20
	for _, c := range []struct {
		name, err string
		text      func(good string) string // nil: there is no file
	}{
		{"missing", "no such file", nil},
		{"empty", "parsing", func(string) string { return "" }},
		{"blank", "parsing", func(string) string { return "\n" }},
		{"garbled", "parsing", func(string) string { return "\x00\xff\xfe: what\n\n:::\n7" }},
		{"huge", "more than 4194304 bytes",
			func(good string) string { return good + strings.Repeat("\n", size) }},
	} {
		for source := range metricOf {
			if source == "disk" {
				continue
			}
			h := newTestHost(t)
			h.recordSys(t, "sys-host")
			path := h.proc + "/" + source
			breakSource := func(when string) {
				good := bare(t, when, source)
				h.bareRead(t, when, source)
				if c.text == nil {
					os.Remove(path)
					return
				}
				write(t, path, c.text(good))
			}

			breakSource("before")
			h.measure(t)
			breakSource("after")
			m := h.measure(t)
			if got, want := shown(t, m), without(source); !maps.Equal(got, want) {
				t.Errorf("%s is %s: got %v, want %v", source, c.name, got, want)
			}
			if m.status != "online" {
				t.Errorf("%s is %s: %s, %q", source, c.name, m.status, m.message)
			}
			lines := slices.DeleteFunc(h.lines.take(), func(line string) bool {
				return strings.Contains(line, "interface left out")
			})
			isOne := len(lines) == 1 && strings.Contains(lines[0], c.err) && len(lines[0]) < 300
			if !isOne || !strings.Contains(lines[0], `msg="metric missing" source=`+source+" ") {
				t.Errorf("%s is %s: the log has %.300q, want %q", source, c.name, lines, c.err)
			}

			h.bareRead(t, "before", "")
			h.measure(t)
			h.bareRead(t, "after", "")
			if got := shown(t, h.measure(t)); !maps.Equal(got, bareMetrics) {
				t.Errorf("%s was %s: got %v, want %v", source, c.name, got, bareMetrics)
			}
			h.checkLog(t, source, "back", "level=INFO")
		}
	}
}

func TestSourceOf4MiBIsRead(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "stat")
	write(t, path, strings.Repeat("x", 4<<20))
	text, err := readFile(path)
	if err != nil || len(text) != 4<<20 {
		t.Errorf("there are %d bytes, %v", len(text), err)
	}
}

// A byte comes with each reading, and never the end.
func TestSourceThatDripsIsNAAlone(t *testing.T) {
	t.Parallel()
	for source := range metricOf {
		if source == "disk" {
			continue
		}
		h := newTestHost(t)
		h.recordSys(t, "sys-host")
		p := newPipe(t, h.proc+"/"+source)
		h.read()
		w := p.open(t)
		for _, b := range []byte("cpu  7") {
			_, err := w.Write([]byte{b})
			if err != nil {
				t.Fatal(err)
			}
			h.bareRead(t, "before", source)
			h.measure(t, source)
		}
		h.bareRead(t, "after", source)
		got := shown(t, h.measure(t, source))
		if want := without(source); !maps.Equal(got, want) {
			t.Errorf("%s drips: got %v, want %v", source, got, want)
		}
		h.checkLog(t, source, "missing", `err="the read hangs"`)
	}
}

func TestSourceIsLoggedWhenItIsMissingAndBack(t *testing.T) {
	t.Parallel()
	c := newClock()
	log, lines := testLog("text")
	var next error
	src := newSource("meminfo", log, c.now, func() (int, error) { return 1, next })
	for i, step := range []struct {
		text string
		gap  time.Duration
		want string // in the log
	}{
		{"fine", 0, ""},
		{"one", 9 * time.Second, ""},
		{"two", time.Second, `level=WARN msg="metric missing" source=meminfo err=two`},
		{"three", time.Hour, ""},
		{"fine", time.Second, `level=INFO msg="metric back" source=meminfo`},
		{"one", 9 * time.Second, ""},
		{"fine", 9 * time.Second, ""},
		{"four", 10 * time.Second, `level=WARN msg="metric missing" source=meminfo err=four`},
		{"fine", 0, `level=INFO msg="metric back" source=meminfo`},
	} {
		next = nil
		if step.text != "fine" {
			next = errors.New(step.text)
		}
		c.advance(step.gap)
		<-src.begin()
		src.latest(c.now())
		got := strings.Join(lines.take(), "\n")
		if !strings.HasSuffix(got, step.want) || step.want == "" && got != "" {
			t.Errorf("step %d, %s: the log has %q, want %q", i, step.text, got, step.want)
		}
	}
}

func TestServerAnswersAndEndsIfAllSourcesHang(t *testing.T) {
	t.Parallel()
	h := newTestHost(t)
	releaseDisk := h.hang(t, "disk")
	t.Cleanup(releaseDisk)
	for source := range metricOf {
		if source != "disk" {
			h.hang(t, source)
		}
	}
	idle := testServer(t, "-interval", "100ms")
	idle.sampler = newSamplerOf(idle.config, noLog(), h.proc, h.sys, time.Now)
	idle.sampler.disk = h.disk
	s := serve(t, idle)

	code, _, body := s.request(t, "GET", "/health")
	if code != 200 || body != "OK" {
		t.Errorf("before the first reading /health returns %d %q", code, body)
	}
	c := s.stream(t)
	c.event(t)
	c.event(t)
	e := c.event(t).snapshot(t)
	const na = "N/A"
	want := snapshotMetrics{CPU: na, Memory: na, Disk: na, Network: na,
		ResponseTime: e.Metrics.ResponseTime}
	if e.Metrics != want || e.SystemStatus.Uptime != na || e.SystemStatus.Status != "online" {
		t.Errorf("the stream has %+v", e)
	}
	if code, _, _ := s.request(t, "GET", "/dashboard/history"); code != 200 {
		t.Errorf("the history returns %d", code)
	}

	start := time.Now()
	s.stop()
	if took := time.Since(start); took > 2*time.Second {
		t.Errorf("the end took %v", took)
	}
}

func TestServerEndsDuringAFirstReadingThatHangs(t *testing.T) {
	t.Parallel()
	h := newTestHost(t)
	p := newPipe(t, h.proc+"/stat")
	idle := testServer(t)
	idle.sampler = newSamplerOf(idle.config, noLog(), h.proc, h.sys, time.Now)
	s := serve(t, idle)
	p.open(t) // now the read hangs in the pipe

	start := time.Now()
	s.stop()
	if took := time.Since(start); took > 2*time.Second {
		t.Errorf("the end took %v", took)
	}
}
