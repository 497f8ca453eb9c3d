package main

import (
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"
)

func (s *server) metrics(t testing.TB) (values map[string]float64, text string) {
	t.Helper()
	code, head, text := s.request(t, "GET", "/metrics")
	if code != 200 || head.Get("Content-Type") != "text/plain; version=0.0.4" {
		t.Fatalf("/metrics answers %d, %v", code, head)
	}
	values = map[string]float64{}
	described := map[string]bool{}
	for _, line := range strings.Split(strings.TrimSuffix(text, "\n"), "\n") {
		if m := regexp.MustCompile(`^# (HELP|TYPE) ([a-z_]+) (.+)$`).FindStringSubmatch(line); m != nil {
			described[m[1]+m[2]] = true
			continue
		}
		m := regexp.MustCompile(`^([a-z_]+)(\{[a-z_]+="[^"]*"(?:,[a-z_]+="[^"]*")*\})? ([-+.e0-9]+)$`).FindStringSubmatch(line)
		if m == nil {
			t.Fatalf("a line is %q", line)
		}
		family := strings.TrimSuffix(strings.TrimSuffix(m[1], "_sum"), "_count")
		if !described["HELP"+family] || !described["TYPE"+family] {
			t.Errorf("%s has no HELP or TYPE before it", m[1])
		}
		if _, twice := values[m[1]+m[2]]; twice {
			t.Errorf("%s is there twice", m[1]+m[2])
		}
		values[m[1]+m[2]], _ = strconv.ParseFloat(m[3], 64)
	}
	return values, text
}

func TestMetricsCountWhatHappened(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "100ms", "-max-streams", "2")
	c := s.stream(t)
	c.event(t)
	gone := s.stream(t)
	gone.event(t)
	s.request(t, "GET", "/dashboard/stream") // one too many
	gone.Close()
	eventually(t, "the closed stream is counted", func() bool { return s.debug(t).Closed["client"] == 1 })
	s.trigger(t)
	c.event(t)
	m, _ := s.metrics(t)
	for name, want := range map[string]float64{
		"sse_streams_open": 1, "sse_streams_opened_total": 2, "sse_streams_rejected_total": 1,
		`sse_streams_closed_total{reason="client"}`: 1, `sse_streams_closed_total{reason="stalled"}`: 0,
		`sse_streams_closed_total{reason="shutdown"}`: 0, `sse_streams_closed_total{reason="error"}`: 0,
		"sse_frames_skipped_total": 0, `sse_build_info{version="dev",goversion="` + runtime.Version() + `"}`: 1,
	} {
		if got, ok := m[name]; !ok || got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
	for _, name := range []string{"sse_frames_sent_total", "sse_bytes_sent_total", "sse_broadcast_duration_seconds_sum",
		"sse_broadcast_duration_seconds_count", "sse_host_memory_ratio", "sse_host_disk_ratio", "sse_probe_duration_seconds",
		"process_resident_memory_bytes", "process_cpu_seconds_total", "process_open_fds", "go_goroutines"} {
		if m[name] <= 0 {
			t.Errorf("%s is %v", name, m[name])
		}
	}
	for _, name := range []string{"sse_host_cpu_ratio", "sse_host_memory_ratio", "sse_host_disk_ratio"} {
		if m[name] < 0 || m[name] > 1 {
			t.Errorf("%s is %v", name, m[name])
		}
	}
	if n := float64(s.debug(t).Broadcasts); m["sse_broadcast_duration_seconds_count"] > n || m["sse_broadcast_duration_seconds_count"] < n-10 {
		t.Errorf("there were %v broadcasts, the metrics have %v", n, m["sse_broadcast_duration_seconds_count"])
	}
}

func TestMetricThatCannotBeMeasuredIsLeftOut(t *testing.T) {
	s := startServer(t, "-interval", "1h", "-disk", "/nowhere")
	s.waitForSnapshot(t)
	m, _ := s.metrics(t)
	if v, ok := m["sse_host_disk_ratio"]; ok {
		t.Errorf("the disk of nowhere is %v full", v)
	}
}
