package main

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
)

// clockTick is the step in which Linux counts CPU time, in seconds. It is the same everywhere.
const clockTick = 0.01

// fewStreams is how many streams at least make a stream's share of the memory worth a number.
const fewStreams = 1000

// usage is what a process and its children hold and have used so far.
type usage struct {
	rss int64   // bytes
	cpu float64 // seconds
}

// processUsage reads it from /proc; ok is false where that has no such process.
func processUsage(pid int) (u usage, ok bool) {
	pids := []int{pid}
	for i := 0; i < len(pids); i++ {
		dir := fmt.Sprintf("/proc/%d", pids[i])
		statm, err := os.ReadFile(dir + "/statm")
		stat, err2 := os.ReadFile(dir + "/stat")
		mem := strings.Fields(string(statm))
		cpu := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if err != nil || err2 != nil || len(mem) < 2 || len(cpu) < 13 {
			continue
		}
		ok = true
		pages, _ := strconv.ParseInt(mem[1], 10, 64)
		user, _ := strconv.ParseFloat(cpu[11], 64)
		system, _ := strconv.ParseFloat(cpu[12], 64)
		u.rss += pages * int64(os.Getpagesize())
		u.cpu += (user + system) * clockTick
		tasks, _ := os.ReadDir(dir + "/task")
		for _, task := range tasks {
			children, _ := os.ReadFile(dir + "/task/" + task.Name() + "/children")
			for _, f := range strings.Fields(string(children)) {
				child, _ := strconv.Atoi(f)
				pids = append(pids, child)
			}
		}
	}
	return u, ok && runtime.GOOS == "linux"
}

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
