package main

import (
	"context"
	"io"
	"runtime/debug"
	"sync"
	"time"
)

// runMeasure opens the streams, measures until the end, and prints the summary.
func runMeasure(ctx context.Context, o *options, stdout, stderr io.Writer) int {
	ctx, stop := withDuration(ctx, o.duration)
	defer stop()

	m := newMeter(newChecker(o.check), o.heartbeat, o.clients)
	viewers := newViewers(m, o, stdout, stderr)
	begin := time.Now()
	start := m.moment(o.pid)

	var settled, end moment
	var wg sync.WaitGroup
	wg.Add(2)
	go func() {
		defer wg.Done()
		defer stop()
		settled, end = measurePhases(ctx, m, o)
	}()
	go func() {
		defer wg.Done()
		defer stop() // when all have ended
		openAll(ctx, o, viewers)
	}()

	if o.debug {
		stderr = io.Discard
	}
	m.progress(stderr, 5*time.Second, ctx.Done())
	now := time.Now()
	wg.Wait()
	m.finish(viewers, now)
	if o.publish != "" {
		m.judgeRounds(o.rounds)
	}

	s := m.summary(now.Sub(begin))
	s.URL, s.Streams, s.Stalled, s.Slow = o.url, o.clients, o.stalled, o.slow
	s.use(o.pid, start, settled, end)
	if o.json {
		printJSON(stdout, s)
	} else {
		s.write(stdout)
	}
	return exitStatus(len(s.Wrong) > 0)
}

// measurePhases waits until all streams are open, and publishes if that is asked for. It returns
// the moments at which the streams had settled and at which it ended.
func measurePhases(ctx context.Context, m *meter, o *options) (settled, end moment) {
	select {
	case <-ctx.Done():
		return
	case <-m.settled:
	}

	debug.FreeOSMemory() // opening leaves garbage behind
	if !sleep(ctx, settleTime) {
		return
	}

	settled = m.moment(o.pid)
	if o.publish != "" {
		m.rounds(ctx, newPublisher(o), o.gap, o.rounds)
	} else {
		<-ctx.Done()
	}
	return settled, m.moment(o.pid)
}

// newViewers returns the streams' observers. The debug output leaves stdout to -json.
func newViewers(m *meter, o *options, stdout, stderr io.Writer) []*viewer {
	viewers := make([]*viewer, o.clients)
	for i := range viewers {
		viewers[i] = &viewer{
			m:      m,
			n:      i,
			unread: i >= o.clients-o.stalled-o.slow,
			ending: o.ending(),
		}
	}
	if o.debug {
		viewers[0].debug = stdout
		if o.json {
			viewers[0].debug = stderr
		}
	}
	return viewers
}

// openAll opens the streams, -rate a second, and waits until all have ended.
func openAll(ctx context.Context, o *options, viewers []*viewer) {
	start := time.Now()
	var wg sync.WaitGroup
	defer wg.Wait()

	for i, v := range viewers {
		due := start.Add(time.Duration(i) * time.Second / time.Duration(o.rate))
		if !sleep(ctx, time.Until(due)) {
			return
		}

		v := v
		wg.Add(1)
		go func() {
			defer wg.Done()
			openOne(ctx, o, v)
		}()
	}
}

// openOne keeps one stream open. The last of all streams are the stalled ones, those before them
// the slow ones.
func openOne(ctx context.Context, o *options, v *viewer) {
	s := newStream(o.target, v)
	s.ending = v.ending
	s.renewed = v.renewed
	s.p.limit = o.maxEventBytes
	if v.debug != nil {
		s.trace = v.printf
	}

	switch {
	case v.n >= o.clients-o.stalled:
		s.hold(ctx, 0)
	case v.n >= o.clients-o.stalled-o.slow:
		s.hold(ctx, slowBytes)
	default:
		s.keepOpen(ctx)
	}
}
