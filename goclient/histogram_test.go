package main

import (
	"reflect"
	"testing"
	"time"
)

func TestHistogramGivesQuantiles(t *testing.T) {
	var h histogram
	for i := 1; i <= 1000; i++ {
		h.add(time.Duration(i) * time.Millisecond)
	}
	near := func(got, want float64) bool { return got >= want && got < want*1.02 }
	if q := h.ms(); !near(q.P50, 500) || !near(q.P90, 900) || !near(q.P99, 990) || q.Max != 1000 {
		t.Errorf("got %+v, want 500, 900, 990 and 1000", *q)
	}
	for _, d := range []time.Duration{0, 1, 127, 128, 129, 1<<63 - 1, -5} {
		one := histogram{}
		one.add(d)
		want := max(d, 0)
		if got := one.quantile(.5); got != want {
			t.Errorf("of %d alone: got %d", d, got)
		}
	}
	if got := new(histogram).ms(); !reflect.DeepEqual(got, (*quantiles)(nil)) {
		t.Errorf("of nothing: got %v", got)
	}
}

// Neither the rank nor the value is rounded down.
func TestHistogramRoundsQuantilesUp(t *testing.T) {
	values := func(n int) *histogram {
		h := new(histogram)
		for i := 1; i <= n; i++ {
			h.add(time.Duration(i) * time.Second)
		}
		return h
	}
	for _, tt := range []struct {
		n        int
		q        float64
		least    time.Duration // of the values
		greatest time.Duration
	}{
		{20, .99, 20 * time.Second, 20 * time.Second},
		{20, .9, 18 * time.Second, 18300 * time.Millisecond},
		{20, .5, 10 * time.Second, 10200 * time.Millisecond},
		{99, .99, 99 * time.Second, 99 * time.Second},
		{3, .5, 2 * time.Second, 2100 * time.Millisecond},
		{2, .9, 2 * time.Second, 2 * time.Second},
		{1, .5, time.Second, time.Second},
	} {
		got := values(tt.n).quantile(tt.q)
		if got < tt.least || got > tt.greatest {
			t.Errorf("%v of %d values is %v, want %v to %v", tt.q, tt.n, got, tt.least, tt.greatest)
		}
	}
}
