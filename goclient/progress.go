package main

import (
	"fmt"
	"io"
	"os"
	"syscall"
	"time"
	"unsafe"
)

// progress prints how the run goes until done: a line each every, or on a terminal one line that
// is written anew twice a second.
func (m *meter) progress(w io.Writer, every time.Duration, done <-chan struct{}) {
	onTerminal := isTerminal(w)
	if onTerminal {
		every = time.Second / 2
	}
	tick := time.NewTicker(every)
	defer tick.Stop()

	start := time.Now()
	var before int64
	for {
		select {
		case <-done:
			if onTerminal {
				io.WriteString(w, eraseLine)
			}
			return
		case <-tick.C:
		}

		m.mu.Lock()
		t := m.total
		m.mu.Unlock()
		rate := float64(t.Events-before) / every.Seconds()
		before = t.Events
		text := progressText(time.Since(start), &t, rate)
		if onTerminal {
			fmt.Fprint(w, eraseLine, cut(text, columns(w)-1))
		} else {
			fmt.Fprintln(w, text)
		}
	}
}

const eraseLine = "\r\x1b[K"

// progressText begins with what matters most: a narrow terminal shows the begin only.
func progressText(elapsed time.Duration, t *totals, rate float64) string {
	return fmt.Sprintf("%v: %d streams open, %d events (%.0f/s), %d errors, %d heartbeats",
		elapsed.Truncate(time.Second), t.Open, t.Events, rate, t.Errors, t.Heartbeats)
}

// cut gives the first n characters of a text without wide ones.
func cut(text string, n int) string {
	return text[:max(0, min(n, len(text)))]
}

// columns gives the width of a terminal; 80 where it is not known.
func columns(w io.Writer) int {
	f, ok := w.(*os.File)
	if !ok {
		return 80
	}
	var size struct{ rows, columns, width, height uint16 }
	_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, f.Fd(), syscall.TIOCGWINSZ,
		uintptr(unsafe.Pointer(&size)))
	if errno != 0 || size.columns == 0 {
		return 80
	}
	return int(size.columns)
}
