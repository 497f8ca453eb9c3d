package main

import (
	"fmt"
	"io"
	"time"
)

// progress prints how the run goes until done: in place on a terminal, else a line each every.
func (m *meter) progress(w io.Writer, every time.Duration, done <-chan struct{}) {
	begin, end := "", "\n"
	if isTerminal(w) {
		every, begin, end = time.Second/2, "\r\x1b[K", ""
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	var before int64
	for {
		select {
		case <-done:
			fmt.Fprint(w, begin)
			return
		case <-tick.C:
		}
		m.mu.Lock()
		t := m.total
		m.mu.Unlock()
		fmt.Fprintf(w, "%s%d streams open, %d events, %d heartbeats, %d errors, "+
			"%.0f events a second%s", begin, t.Open, t.Events, t.Heartbeats, t.Errors,
			float64(t.Events-before)/every.Seconds(), end)
		before = t.Events
	}
}
