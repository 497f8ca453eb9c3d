package page

import (
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/heapprofiler"
	"github.com/chromedp/cdproto/performance"
)

// memory is what the page uses after garbage was collected.
func (p *tab) memory() (nodes, heap float64) {
	p.Helper()
	p.waitFor(`!document.querySelector("#activities .new")`) // no timer holds what is gone
	call(p, heapprofiler.CollectGarbage, cdp.Empty{})
	for _, m := range call(p, performance.GetMetrics, cdp.Empty{}).Metrics {
		switch m.Name {
		case "Nodes":
			nodes = m.Value
		case "JSHeapUsedSize":
			heap = m.Value
		}
	}
	return nodes, heap
}

// An hour's snapshots, at an interval of 2 s, or down to 100 ms with SSE_PAGE_LONG. Each has another
// activity; now and then one does not continue the one before, and the page asks for the history.
func TestMemoryStaysFlatForAnHour(t *testing.T) {
	const rate = 200 // a second
	n := 1800
	if d, err := time.ParseDuration(os.Getenv("SSE_PAGE_LONG")); err == nil {
		n = max(n, int(d.Seconds()*rate))
	}
	interval := time.Hour / time.Duration(n)
	f := startFake(t)
	p := open(t, f.url+"/")
	p.waitFor("watched.streams === 1")
	call(p, performance.Enable, performance.EnableParams{})

	// Made-up time ends at about now, and the pause of the first measurement is in it.
	start := time.Now().Add(-time.Hour)
	var feed []activity
	var nodes, heap float64
	tick := time.NewTicker(time.Second / rate)
	defer tick.Stop()
	for i := 1; i <= n; i++ {
		at := start.Add(time.Duration(i) * interval)
		message := fmt.Sprintf("Activity %d", i)
		added := activity{at.Format(time.TimeOnly), message, "info", "activity-info"}
		feed = slices.Insert(feed, 0, added)
		feed = feed[:min(len(feed), 10)]
		made := madeUp(fmt.Sprintf("%d%%", i%101), feed...)
		made.Status.LastCheck = at.Format(time.TimeOnly)
		if i/300%2 > 0 && i != n/10 && i != n {
			made.Metrics["queue"] = fmt.Sprintf("%d jobs", i)
		}
		f.send(t, at, made.json())
		<-tick.C
		if i == n/10 {
			p.waitForActivity(message)
			nodes, heap = p.memory()
		}
	}
	p.waitForActivity(fmt.Sprintf("Activity %d", n))
	p.waitFor(`document.querySelectorAll(".tile").length === 5`)
	gotNodes, gotHeap := p.memory()
	t.Logf("%d snapshots, one each %v; nodes %.0f, then %.0f; heap %.2f MB, then %.2f MB",
		n, interval, nodes, gotNodes, heap/1e6, gotHeap/1e6)
	if gotNodes > 1.1*nodes+50 {
		t.Errorf("the document grew from %.0f nodes to %.0f", nodes, gotNodes)
	}
	if gotHeap > 1.5*heap+2e6 {
		t.Errorf("the heap grew from %.0f bytes to %.0f", heap, gotHeap)
	}
	if got := len(p.activities()); got != 100 {
		t.Errorf("%d activities are listed, want 100", got)
	}
	if got := len(p.slots()); got < 100 || got > 301 {
		t.Errorf("the lines have %d slots", got)
	}
}

func (p *tab) waitForActivity(message string) {
	p.Helper()
	p.waitForText("#activities li .message", message)
}
