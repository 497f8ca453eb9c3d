package main

import (
	"context"
	"math/rand"
	"time"
)

// backoff doubles d with each failure in a row after the first, up to a limit, and adds up to half
// as much, drawn at random.
func backoff(d, limit time.Duration, fails int) time.Duration {
	for ; fails > 1 && d < limit; fails-- {
		d *= 2
	}
	d = min(d, limit)
	return d + time.Duration(rand.Int63n(int64(d/2)+1))
}

// sleep waits for d and says whether ctx still goes on.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return ctx.Err() == nil
	}
}

// withDuration returns a context that ends after d, or with ctx where d is 0. It has no deadline,
// which a dial would take for its own.
func withDuration(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	ctx, end := context.WithCancel(ctx)
	if d == 0 {
		return ctx, end
	}
	timer := time.AfterFunc(d, end)
	return ctx, func() {
		timer.Stop()
		end()
	}
}
