package main

import (
	"fmt"
	"io"
	"sort"
	"time"
)

// A summary is what -json prints. Values that were not measured are left out.
type summary struct {
	URL     string  `json:"url"`
	Streams int     `json:"streams"`
	Stalled int     `json:"stalled"`
	Slow    int     `json:"slow"`
	Elapsed float64 `json:"elapsed_s"`
	totals
	EventsPerS   float64        `json:"events_per_s"`
	ErrorKinds   map[string]int `json:"error_kinds,omitempty"`
	Connect      *quantiles     `json:"connect_ms,omitempty"`
	Head         *quantiles     `json:"headers_ms,omitempty"`
	First        *quantiles     `json:"first_event_ms,omitempty"`
	Duration     *quantiles     `json:"stream_duration_ms,omitempty"`
	Spread       *quantiles     `json:"spread_ms,omitempty"`
	Gaps         *quantiles     `json:"event_gap_ms,omitempty"`
	Away         *quantiles     `json:"away_ms,omitempty"`
	Beats        *quantiles     `json:"heartbeat_gap_ms,omitempty"`
	Rounds       int            `json:"publish_rounds,omitempty"`
	Late         *int           `json:"publish_late,omitempty"`
	Mixed        *int           `json:"publish_rounds_mixed,omitempty"`
	Unfinished   *int           `json:"publish_unfinished,omitempty"`
	Missed       *int           `json:"missed,omitempty"`
	Delivery     *quantiles     `json:"delivery_ms,omitempty"`
	Last         *quantiles     `json:"last_delivery_ms,omitempty"`
	RSSBefore    *float64       `json:"rss_before_mib,omitempty"`
	RSSAfter     *float64       `json:"rss_after_mib,omitempty"`
	RSSPerStream *float64       `json:"rss_per_stream_kib,omitempty"`
	ConnectCPU   *float64       `json:"connect_cpu_us_per_stream,omitempty"`
	ConnectStep  *float64       `json:"connect_cpu_step_us_per_stream,omitempty"`
	DeliveryCPU  *float64       `json:"cpu_us_per_delivery,omitempty"`
	BytesPer     *float64       `json:"bytes_per_delivery,omitempty"`
	CPUStep      *float64       `json:"cpu_step_us_per_delivery,omitempty"`
	ClientRSS    *float64       `json:"client_rss_per_stream_kib,omitempty"`
	ClientCPU    *float64       `json:"client_cpu_us_per_delivery,omitempty"`
	Notes        []string       `json:"notes,omitempty"`
	Wrong        []*finding     `json:"wrong"`
}

// summary gives the meter's results; call it after finish.
func (m *meter) summary(elapsed time.Duration) *summary {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := &summary{
		Elapsed: round3(elapsed.Seconds()), totals: m.total, ErrorKinds: m.errors,
		EventsPerS: round3(float64(m.total.Events) / elapsed.Seconds()),
		Connect:    m.connect.ms(), Head: m.head.ms(), First: m.first.ms(),
		Duration: m.durations.ms(),
		Spread:   m.spread.ms(), Gaps: m.gaps.ms(), Away: m.away.ms(), Beats: m.beats.ms(),
		Wrong: []*finding{},
	}
	if p := &m.published; p.rounds > 0 {
		s.Rounds, s.Late, s.Mixed = p.rounds, &p.late, &p.mixed
		s.Unfinished, s.Missed = &p.unfinished, &p.missed
		s.Delivery, s.Last = p.delivery.ms(), p.last.ms()
	}
	for _, f := range m.wrong {
		s.Wrong = append(s.Wrong, f)
	}
	sort.Slice(s.Wrong, func(i, j int) bool { return s.Wrong[i].Problem < s.Wrong[j].Problem })
	return s
}

func round3(x float64) float64 { return float64(int64(x*1000+.5)) / 1000 }

// write prints the summary for people.
func (s *summary) write(w io.Writer) {
	line := func(name, format string, args ...any) {
		fmt.Fprintf(w, "  %-13s %s\n", name, fmt.Sprintf(format, args...))
	}
	times := func(name string, q *quantiles) {
		if q != nil {
			line(name, "p50 %s   p90 %s   p99 %s   max %s", inMS(q.P50), inMS(q.P90), inMS(q.P99),
				inMS(q.Max))
		}
	}
	fmt.Fprintf(w, "%s for %.1f s\n", s.URL, s.Elapsed)
	line("streams", "%d opened of %d, %d open at the end, %d reconnects, %d errors",
		s.OpenedOnce, s.Streams, s.Open, s.Reconnects, s.Errors)
	if s.Stalled+s.Slow > 0 {
		line("not read", "%d stalled, %d slow; the server closed %d", s.Stalled, s.Slow,
			s.UnreadEnded)
	}
	if s.Closes+s.EndedBy204 > 0 {
		line("closed", "%d by the server, %d of them uncleanly; %d ended for good (204)",
			s.Closes, s.Cut, s.EndedBy204)
	}
	if s.EndedWell > 0 {
		line("ended well", "%d", s.EndedWell)
	}
	line("received", "%d events (%.1f a second), %d heartbeats, %d bytes",
		s.Events, s.EventsPerS, s.Heartbeats, s.Bytes)
	times("connect", s.Connect)
	times("headers", s.Head)
	times("first event", s.First)
	times("duration", s.Duration)
	times("spread", s.Spread)
	times("event gap", s.Gaps)
	times("away", s.Away)
	times("heartbeat gap", s.Beats)
	if s.Rounds > 0 {
		line("published", "%d, %d of them late; left out: %d as another event came too, "+
			"%d broken off by the end; %d deliveries missed", s.Rounds, *s.Late, *s.Mixed,
			*s.Unfinished, *s.Missed)
	}
	times("delivery", s.Delivery)
	times("last reached", s.Last)
	s.writeUse(line)
	s.writeWrong(line)
}

// writeUse leaves the client's own use out where there are too few streams to divide it by.
func (s *summary) writeUse(line func(name, format string, args ...any)) {
	if s.ClientRSS != nil && s.Streams >= 100 {
		line("client", "%.1f KiB a stream", *s.ClientRSS)
	}
	if s.ClientCPU != nil && s.Streams >= 100 {
		line("client", "%.2f µs CPU a delivery, in steps of %.2f", *s.ClientCPU, *s.CPUStep)
	}
	if s.RSSPerStream != nil {
		line("server", "%.1f KiB a stream, %.1f µs CPU a stream opened, in steps of %.1f",
			*s.RSSPerStream, *s.ConnectCPU, *s.ConnectStep)
	}
	if s.DeliveryCPU != nil {
		line("server", "%.2f µs CPU a delivery, in steps of %.2f", *s.DeliveryCPU, *s.CPUStep)
	}
	for _, note := range s.Notes {
		line("note", "%s", note)
	}
}

func (s *summary) writeWrong(line func(name, format string, args ...any)) {
	for _, k := range sortedKeys(s.ErrorKinds) {
		line("error", "%d × %s", s.ErrorKinds[k], k)
	}
	for _, f := range s.Wrong {
		line("WRONG", "%d × %s; the first: %s", f.Count, f.Problem, f.Example)
	}
	if len(s.Wrong) == 0 {
		line("wrong", "nothing")
	}
}

func inMS(x float64) string {
	if x >= 100 {
		return fmt.Sprintf("%.0f ms", x)
	}
	return fmt.Sprintf("%.3g ms", x)
}
