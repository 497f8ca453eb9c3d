package main

import (
	"fmt"
	"os"
)

// fewStreams is how many streams at least make a stream's share of the memory worth a number.
const fewStreams = 1000

// A moment is what was used and had come when one phase of a run ended.
type moment struct {
	server, client usage
	events, bytes  int64
}

// moment reads the server's usage, too, unless pid is 0.
func (m *meter) moment(pid int) (x moment) {
	x.server, _ = processUsage(pid)
	x.client, _ = processUsage(os.Getpid())
	m.mu.Lock()
	defer m.mu.Unlock()
	x.events, x.bytes = m.total.Events, m.total.Bytes
	return x
}

// use adds what was used from start until all streams had settled, and from then to the end. The
// moments are zero where the run did not come so far.
func (s *summary) use(pid int, start, settled, end moment) {
	n := float64(s.OpenedOnce)
	if n == 0 || settled.client.rss == 0 {
		return
	}
	per := func(x, by float64) *float64 { x = round3(x / by); return &x }
	s.ClientRSS = per(float64(settled.client.rss-start.client.rss), 1024*n)
	if pid != 0 {
		s.RSSBefore = per(float64(start.server.rss), 1<<20)
		s.RSSAfter = per(float64(settled.server.rss), 1<<20)
		s.RSSPerStream = per(float64(settled.server.rss-start.server.rss), 1024*n)
		s.ConnectCPU = per((settled.server.cpu-start.server.cpu)*1e6, n)
		s.ConnectStep = per(clockTick*1e6, n)
	}
	if s.OpenedOnce < fewStreams && (pid != 0 || s.Streams >= 100) {
		s.Notes = append(s.Notes, fmt.Sprintf("memory: with under %d streams, what else a process "+
			"needs hides what a stream needs", fewStreams))
	}
	events := float64(end.events - settled.events)
	if events <= 0 {
		return
	}
	s.BytesPer = per(float64(end.bytes-settled.bytes), events)
	s.CPUStep = per(clockTick*1e6, events)
	s.ClientCPU = per((end.client.cpu-settled.client.cpu)*1e6, events)
	if pid != 0 {
		s.DeliveryCPU = per((end.server.cpu-settled.server.cpu)*1e6, events)
	}
}
