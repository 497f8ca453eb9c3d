package main

import (
	"math"
	"math/bits"
	"time"
)

// A histogram counts durations in buckets 1.6 % wide. However much is added, it does not grow.
type histogram struct {
	counts [3776]uint64 // 64 buckets for each power of two nanoseconds
	n      uint64
	max    time.Duration
}

func (h *histogram) add(d time.Duration) {
	if d < 0 {
		d = 0
	}
	shift := 0
	if l := bits.Len64(uint64(d)); l > 7 {
		shift = l - 7
	}
	h.counts[shift*64+int(d>>shift)]++
	h.n++
	if d > h.max {
		h.max = d
	}
}

// quantile gives the smallest value that the part q of all values does not exceed. Neither the rank
// nor the value is rounded down. The value is the end of its bucket.
func (h *histogram) quantile(q float64) time.Duration {
	rank := uint64(math.Ceil(q * float64(h.n)))
	var seen uint64
	for i, n := range h.counts {
		seen += n
		if seen >= rank && n > 0 {
			return min(bucketEnd(i), h.max)
		}
	}
	return h.max
}

// bucketEnd gives the largest duration of a bucket.
func bucketEnd(i int) time.Duration {
	shift := 0
	if i >= 128 {
		shift = i/64 - 1
	}
	return time.Duration(i-shift*64+1)<<shift - 1
}

// A quantiles is a histogram as the summary shows it.
type quantiles struct {
	P50 float64 `json:"p50"`
	P90 float64 `json:"p90"`
	P99 float64 `json:"p99"`
	Max float64 `json:"max"`
}

// ms gives the quantiles in milliseconds, and nil where nothing was measured.
func (h *histogram) ms() *quantiles {
	if h.n == 0 {
		return nil
	}
	return &quantiles{
		P50: millis(h.quantile(.5)),
		P90: millis(h.quantile(.9)),
		P99: millis(h.quantile(.99)),
		Max: millis(h.max),
	}
}

// millis gives d in milliseconds, to the microsecond.
func millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
