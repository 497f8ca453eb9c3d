package main

import (
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

// quantile gives the middle of the bucket in which the q-th part of all values ends.
func (h *histogram) quantile(q float64) time.Duration {
	rank, seen := uint64(q*float64(h.n-1)), uint64(0)
	for i, n := range h.counts {
		if seen += n; seen <= rank {
			continue
		}
		shift := 0
		if i >= 128 {
			shift = i/64 - 1
		}
		d := time.Duration(i-shift*64)<<shift + time.Duration(1)<<shift/2
		if d > h.max {
			break
		}
		return d
	}
	return h.max
}

// A quantiles is a histogram as the summary shows it.
type quantiles struct {
	P50 float64 `json:"p50"`
	P99 float64 `json:"p99"`
	Max float64 `json:"max"`
}

// ms gives the quantiles in milliseconds, and nil where nothing was measured.
func (h *histogram) ms() *quantiles {
	if h.n == 0 {
		return nil
	}
	return &quantiles{millis(h.quantile(.5)), millis(h.quantile(.99)), millis(h.max)}
}

// millis gives d in milliseconds, to the microsecond.
func millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
