package main

import (
	"context"
	"slices"
	"time"
)

const (
	pauseStep  = 5 * time.Millisecond
	pauseEvery = 2 * time.Second // a pause that is rarer makes few events late
)

// watchPauses measures until ctx ends how busy this machine is. It gives the longest time for
// which this process did not run, and the time that was reached once every pauseEvery.
func watchPauses(ctx context.Context) (longest, usual time.Duration) {
	tick := time.NewTicker(pauseStep)
	defer tick.Stop()

	var pauses []time.Duration
	begin := time.Now()
	last := begin
	for ctx.Err() == nil {
		<-tick.C
		now := time.Now()
		if pause := now.Sub(last) - pauseStep; pause > pauseStep {
			pauses = append(pauses, pause)
		}
		last = now
	}
	return rankPauses(pauses, last.Sub(begin))
}

func rankPauses(pauses []time.Duration, watched time.Duration) (longest, usual time.Duration) {
	if len(pauses) == 0 {
		return 0, 0
	}
	slices.Sort(pauses)
	slices.Reverse(pauses)
	rank := int(watched / pauseEvery)
	if rank < len(pauses) {
		usual = pauses[rank]
	}
	return pauses[0], usual
}
