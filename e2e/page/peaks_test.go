package page

import (
	"fmt"
	"math"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// burn keeps all processors busy for half a second.
func burn() {
	var all sync.WaitGroup
	end := time.Now().Add(500 * time.Millisecond)
	for range runtime.NumCPU() {
		all.Go(func() {
			for time.Now().Before(end) {
			}
		})
	}
	all.Wait()
}

// highest is the highest CPU of a history.
func (h history) highest() (most float64) {
	for _, s := range h.Samples {
		if s.CPU != nil {
			most = max(most, *s.CPU, s.Max["cpu"])
		}
	}
	return most
}

// isHighest tells whether a tile's text says that. The text may be of a snapshot, which is rounded.
func isHighest(text string, want float64) bool {
	got, err := strconv.ParseFloat(strings.TrimSuffix(text, "%"), 64)
	return err == nil && math.Abs(got-want) < .51
}

func TestPeaksAreThoseOfTheHistory(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "100ms")
	p := open(t, s.url+"/")
	p.waitForState("live")
	for range 4 {
		burn()
		time.Sleep(1300 * time.Millisecond) // so that not each slot is alike
	}
	eventually(t, "the highest CPU is that of the history", func() bool {
		return isHighest(p.text("#cpu .highest"), s.history(t).highest())
	})

	p.waitForHistory(s)
	p.waitFor(`document.querySelector("#cpu .band").getAttribute("d")`)
}

// boxes are the upper edges of a tile's line and band, in parts of the chart's height from its top.
const boxes = `((tile) => {
	const chart = document.querySelector(tile + " .line").getBoundingClientRect();
	return ["curve", "band"].map((name) => {
		const box = document.querySelector(tile + " ." + name).getBoundingClientRect();
		return (box.top - chart.top) / chart.height;
	});
})`

// Each of the snapshots counts, also where they have the same last check.
func TestPeakWithinASlotIsKept(t *testing.T) {
	t.Parallel()
	f := startFake(t)
	p := open(t, f.url+"/")
	begin := time.UnixMilli(time.Now().UnixMilli()/2000*2000 - 4000)
	for i, cpu := range []string{"10%", "90%", "20%", "", "30%"} {
		if cpu != "" {
			f.send(t, begin.Add(time.Duration(500*i)*time.Millisecond), madeUp(cpu).json())
		}
	}
	p.waitForCPU("30%")
	slots := p.slots()
	if len(slots) != 2 {
		t.Fatalf("there are %d slots, want 2: %+v", len(slots), slots)
	}
	if got := *slots[0].CPU; got != (slotValue{Mean: 40, Max: 90, Count: 3}) {
		t.Errorf("the first slot is %+v", got)
	}
	if got := *slots[1].CPU; got != (slotValue{Mean: 30, Max: 30, Count: 1}) {
		t.Errorf("the second slot is %+v", got)
	}
	p.waitForText("#cpu .highest", "90%")
	tops := eval[[]float64](p, boxes+`("#cpu")`)
	if d := tops[0] - tops[1]; d < .4 || d > .6 {
		t.Errorf("the band begins %v of the chart above the line, want half of it", d)
	}
	if got := eval[[]float64](p, boxes+`("#memory")`); got[0] < 0.2 {
		t.Errorf("the line of memory, at 67%%, begins at %v", got)
	}
}

func TestPeakWithoutASnapshotIsShown(t *testing.T) {
	t.Parallel()
	f := startFake(t)
	f.tell(func(h *history) {
		h.Samples = samplesOf(time.Now(), 20, 21, 22)
		h.Samples[1].Max = map[string]float64{"cpu": 97.4}
	})
	p := open(t, f.url+"/")
	f.send(t, time.Now(), madeUp("20%").json())
	p.waitForCPU("20%")
	p.waitForText("#cpu .highest", "97%")
}

func TestPeakIsGoneAfterTenMinutes(t *testing.T) {
	t.Parallel()
	f := startFake(t)
	f.tell(func(h *history) {
		h.Samples = append(samplesOf(time.Now().Add(-595*time.Second), 99),
			samplesOf(time.Now(), 20, 21)...)
	})
	p := open(t, f.url+"/")
	f.send(t, time.Now(), madeUp("20%").json())
	p.waitForText("#cpu .highest", "99%")
	p.waitForText("#cpu .highest", "21%")
}

func TestHistoryReplacesThePagesSlots(t *testing.T) {
	t.Parallel()
	f := startFake(t)
	p := open(t, f.url+"/")
	p.waitFor("dashboard.counted > 0")
	f.send(t, time.Now(), madeUp("20%").json())
	p.waitForCPU("20%")
	own := p.slots()
	f.tell(func(h *history) {
		h.Samples = samplesOf(time.UnixMilli(own[0].Time), 55)
		h.Samples[0].Max = map[string]float64{"cpu": 70}
	})
	eval[int](p, "connection.historyAt = 0")
	p.waitFor("lines.slots[0].cpu.mean === 55 && lines.slots[0].cpu.max === 70")
	if got := p.slots(); len(got) != 1 || got[0].Memory.Mean != 5 {
		t.Errorf("the slots are %+v", got)
	}
}

// It asks for what it lacks, once a minute.
func TestHistoryIsAskedForEachMinute(t *testing.T) {
	t.Parallel()
	f := startFake(t)
	f.tell(func(h *history) {
		h.Interval = 3600 // nothing is stale meanwhile
		h.Samples = samplesOf(time.Now(), 20, 21)
	})
	p := open(t, f.url+"/", ownClock)
	f.send(t, time.Now(), madeUp("20%").json())
	p.waitForCPU("20%")
	p.waitFor("lines.slots.length >= 2 && dashboard.counted > 0")
	if got := strings.Join(f.queries(), ","); got != "" {
		t.Errorf("at first it asks with %q", got)
	}
	newest := f.told.Samples[1].Time
	seconds := `(async () => { for (let i = 0; i < %d; i++) {
		ahead += 1e3;
		tick();
		await new Promise((resolve) => setTimeout(resolve, 10));
	} return true; })()`
	eval[bool](p, fmt.Sprintf(seconds, 50))
	if got := f.queries(); len(got) > 0 {
		t.Errorf("within 50 s it asks %d times again", len(got))
	}
	eval[bool](p, fmt.Sprintf(seconds, 15))
	eventually(t, "it asks for later samples", func() bool { return len(f.asks()) > 0 })
	got := f.queries()
	after, err := strconv.ParseInt(strings.TrimPrefix(got[0], "after="), 10, 64)
	if len(got) != 1 || err != nil || after < newest-2000 || after >= newest {
		t.Errorf("after a minute it asks with %q, want the samples from %d on", got, newest)
	}
}
