package main

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"time"
)

func TestPageIsServedWithAPolicyThatAllowsWhatIsWrittenInItOnly(t *testing.T) {
	s := startServer(t)
	status, head, body := s.request(t, "GET", "/")
	if status != 200 || head.Get("Content-Type") != "text/html; charset=utf-8" || body != page {
		t.Errorf("status %d, %v", status, head)
	}
	if head.Get("X-Content-Type-Options") != "nosniff" || head.Get("Referrer-Policy") != "no-referrer" {
		t.Errorf("the head is %v", head)
	}
	policy := strings.Split(head.Get("Content-Security-Policy"), "; ")
	for _, element := range []string{"script", "style"} {
		parts := regexp.MustCompile("(?s)<"+element+">(.*?)</"+element+">").FindAllStringSubmatch(body, -1)
		if len(parts) != 1 {
			t.Fatalf("the page has %d %s elements, want one without attributes", len(parts), element)
		}
		sum := sha256.Sum256([]byte(parts[0][1]))
		want := element + "-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
		if !strings.Contains(strings.Join(policy, "\n")+"\n", want+"\n") {
			t.Errorf("the policy %q lacks %q", policy, want)
		}
	}
	for _, want := range []string{"default-src 'none'", "connect-src 'self'", "base-uri 'none'"} {
		if !strings.Contains(strings.Join(policy, "\n"), want) {
			t.Errorf("the policy %q lacks %q", policy, want)
		}
	}
	if status, _, body := s.request(t, "HEAD", "/"); status != 200 || body != "" {
		t.Errorf("HEAD: status %d, body %q", status, body)
	}
	if status, _, body := s.request(t, "GET", "/index.html"); status != 404 || !strings.Contains(body, "the page is /,") {
		t.Errorf("another path: status %d, body %q", status, body)
	}
}

func TestPageIsSmallAndAsksNobodyElse(t *testing.T) {
	if len(page) > 30<<10 {
		t.Errorf("the page has %d bytes, want 30 KB at the most", len(page))
	}
	for _, never := range []string{`(?i)https?://[^"' ]*`, `(?i)<[^>]* (on\w+|style)=`, `(?i)innerHTML|outerHTML|insertAdjacentHTML|document\.write`,
		`(?i)(src|href|action)="/`} {
		for _, found := range regexp.MustCompile(never).FindAllString(page, -1) {
			if found != "http://www.w3.org/2000/svg" { // a name, not a place
				t.Errorf("the page holds %q", found)
			}
		}
	}
}

type historyReply struct {
	Now      int64
	Interval float64
	Streams  int
	Samples  []struct {
		Time         int64
		CPU          *float64
		Memory       *float64
		Disk         *float64
		Network      *float64
		ResponseTime *float64 `json:"response_time"`
	}
}

func (s *SSEServer) historyReply(t testing.TB) (h historyReply) {
	t.Helper()
	w := httptest.NewRecorder()
	s.ServeHTTP(w, httptest.NewRequest("GET", "http://localhost/dashboard/history", nil))
	d := json.NewDecoder(w.Body)
	d.DisallowUnknownFields()
	if err := d.Decode(&h); err != nil || w.Header().Get("Content-Type") != "application/json" {
		t.Fatalf("%v in %q, %v", err, w.Body, w.Header())
	}
	return h
}

func TestHistoryGivesTheLastTenMinutes(t *testing.T) {
	for _, c := range []struct {
		interval    string
		least, most int
	}{
		{"2s", 301, 301}, {"1s", 300, 301}, {"100ms", 301, 316}, {"3s", 201, 201}, {"10m", 2, 2},
	} {
		s := testServer(t, "-interval", c.interval)
		if h := s.historyReply(t); len(h.Samples) != 0 {
			t.Errorf("before the first reading there are %d samples", len(h.Samples))
		}
		s.host.proc, s.host.sys = "testdata/bare/before", "testdata/sys-host"
		now := time.Now()
		for end := now.Add(25 * time.Minute); now.Before(end); now = now.Add(s.interval) {
			s.sample(now)
			s.host.proc = "testdata/bare/after"
		}
		h := s.historyReply(t)
		if n := len(h.Samples); n < c.least || n > c.most {
			t.Fatalf("at %s there are %d samples", c.interval, n)
		}
		if h.Interval != s.interval.Seconds() {
			t.Errorf("the interval is %v", h.Interval)
		}
		newest := h.Samples[len(h.Samples)-1]
		if age := now.UnixMilli() - newest.Time; age < 0 || age > s.interval.Milliseconds()+2000 {
			t.Errorf("at %s the newest sample is %d ms old", c.interval, age)
		}
		for i, v := range h.Samples[1:] {
			if d := v.Time - h.Samples[i].Time; d < 1900 {
				t.Errorf("at %s two samples are %d ms apart", c.interval, d)
			}
		}
	}
}

// The first reading has no rates, and is none of the samples.
func TestHistoryHasNumbersAndNullWhereNothingWasMeasured(t *testing.T) {
	s := testServer(t)
	s.host.proc, s.host.sys = "testdata/bare/before", "testdata/sys-host"
	now := time.Now()
	s.sample(now)
	s.host.proc = "testdata/bare/after"
	s.sample(now.Add(2 * time.Second))
	h := s.historyReply(t)
	if len(h.Samples) != 1 {
		t.Fatalf("the samples are %+v", h.Samples)
	}
	got := h.Samples[0]
	if got.CPU == nil || *got.CPU != 50 || got.Network == nil || *got.Network != 15 || got.Memory == nil ||
		got.Disk != nil || got.ResponseTime != nil || got.Time != now.Add(2*time.Second).UnixMilli() {
		t.Errorf("the sample is %+v", got)
	}
	if d := time.Now().UnixMilli() - h.Now; d < 0 || d > 60_000 {
		t.Errorf("the server's time is %d, %d ms ago", h.Now, d)
	}
}

func TestHistoryOfARunningServerEndsWithWhatTheStreamShows(t *testing.T) {
	s := startServer(t, "-interval", "2s")
	c := s.stream(t)
	var e event
	for i := 0; i < 3; i++ {
		e = c.event(t)
	}
	h := s.historyReply(t)
	newest := h.Samples[len(h.Samples)-1]
	if newest.Time < e.id-1000 {
		t.Skip("the newest reading came too soon after the one before for a sample")
	}
	m := e.snapshot(t).Metrics
	if got := fmt.Sprintf("%.0f%%", *newest.CPU); m.CPU != got && m.CPU != fmt.Sprintf("%.0f%%", *newest.CPU+0.01) {
		t.Errorf("the history ends with cpu %s, the stream has %s", got, m.CPU)
	}
	if newest.ResponseTime == nil || fmt.Sprintf("%.0fms", *newest.ResponseTime) != m.ResponseTime ||
		newest.Disk == nil || fmt.Sprintf("%.0f%%", *newest.Disk) != m.Disk {
		t.Errorf("the history ends with %+v, the stream has %+v", newest, m)
	}
	if h.Streams != 1 {
		t.Errorf("there are %d streams, want 1", h.Streams)
	}
}
