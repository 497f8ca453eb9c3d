package page

import (
	"fmt"
	"regexp"
	"slices"
	"testing"
	"time"

	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

// tips are the texts of the tips that are visible.
const tips = `[...document.querySelectorAll(".tip")].filter((e) => e.getClientRects().length > 0
	&& e.checkVisibility({visibilityProperty: true, opacityProperty: true}))
	.map((e) => e.textContent.trim())`

// drawn becomes true when all that was to be drawn is.
const drawn = `new Promise((done) =>
	requestAnimationFrame(() => requestAnimationFrame(() => done(true))))`

var timeOfDay = regexp.MustCompile(`\d\d:\d\d:\d\d`)

// mustTip checks that each line shows a tip, all for the same moment, and returns that.
func (p *tab) mustTip(how string) string {
	p.Helper()
	p.waitFor(tips + ".length > 0")
	all := eval[[]string](p, tips)
	times := map[string]bool{}
	for _, tip := range all {
		times[timeOfDay.FindString(tip)] = true
	}
	at := timeOfDay.FindString(all[0])
	if len(all) != 5 || len(times) != 1 || at == "" {
		p.Errorf("%s a line shows %q, want five of one time", how, all)
	}
	return at
}

// middle is the middle of an element, which it brings into sight.
func (p *tab) middle(selector string) (x, y float64) {
	p.Helper()
	at := eval[[]float64](p, fmt.Sprintf(`(() => {
		const element = document.querySelector(%q);
		element.scrollIntoView();
		const r = element.getBoundingClientRect();
		return [r.x + r.width / 2, r.y + r.height / 2];
	})()`, selector))
	return at[0], at[1]
}

func TestTooltipShowsWhatThePointerIsAt(t *testing.T) {
	t.Parallel()
	p := open(t, startServer(t, "-interval", "500ms").url+"/")
	p.waitFor("lines.slots.length >= 2")
	x, y := p.middle("#memory .line")
	p.do(chromedp.MouseEvent(input.DispatchMouseEventTypeMouseMoved, x, y))
	p.mustTip("pointing at")
	p.do(chromedp.MouseEvent(input.DispatchMouseEventTypeMouseMoved, 1, 1))
	p.waitFor(tips + ".length === 0")
	call(p, input.DispatchTouchEvent, input.DispatchTouchEventParams{
		Type:        input.DispatchTouchEventTypeTouchStart,
		TouchPoints: []*input.TouchPoint{{X: x, Y: y}},
	})
	p.mustTip("touching")
}

func TestTooltipStaysAtItsTime(t *testing.T) {
	t.Parallel()
	f := startFake(t)
	var cpu []float64
	for i := range 250 {
		cpu = append(cpu, float64(i%100))
	}
	at := time.Now()
	f.tell(func(h *history) {
		h.Samples = samplesOf(at, cpu...)
		h.Samples[125].Max = map[string]float64{"cpu": 99.4}
	})
	p := open(t, f.url+"/")
	f.send(t, at, madeUp("45%").json())
	p.waitFor("lines.slots.length >= 240")
	x, y := p.middle("#memory .line")
	p.do(chromedp.MouseEvent(input.DispatchMouseEventTypeMouseMoved, x, y))
	picked := p.mustTip("pointing at")
	cpuTip := p.text("#cpu .tip")
	for i := range 3 {
		at = at.Add(2 * time.Second)
		f.send(t, at, madeUp(fmt.Sprintf("%d%%", 50+i)).json())
		p.waitForCPU(fmt.Sprintf("%d%%", 50+i))
		eval[bool](p, drawn)
		if got := p.mustTip("pointing at"); got != picked {
			t.Errorf("the tip moved from %s to %s", picked, got)
		}
		if got := p.text("#cpu .tip"); got != cpuTip {
			t.Errorf("the tip changed from %q to %q", cpuTip, got)
		}
	}

	// The value is that of the slot.
	slots := p.slots()
	i := slices.IndexFunc(slots, func(s slot) bool {
		return time.UnixMilli(s.Time).Format(time.TimeOnly) == picked
	})
	if i < 0 {
		t.Fatalf("there is no slot of %s", picked)
	}
	want := fmt.Sprintf("%.0f%%", slots[i].CPU.Mean)
	if got := regexp.MustCompile(`\d+%`).FindString(cpuTip); got != want {
		t.Errorf("the tip of %s is %q, want %s", picked, cpuTip, want)
	}
}

func TestKeyboardReachesEverything(t *testing.T) {
	t.Parallel()
	p := open(t, startServer(t, "-interval", "500ms").url+"/")
	p.waitFor("lines.slots.length >= 3")
	p.waitFor(`!document.querySelector("#test").hidden`)
	reached := map[string]bool{}
	for range 15 {
		p.do(chromedp.KeyEvent(kb.Tab))
		id := eval[string](p, `(document.activeElement.closest(".tile, #test, #activities")
			?? document.activeElement).id`)
		reached[id] = true
		if id == "cpu" || id == "memory" {
			p.do(chromedp.KeyEvent(kb.ArrowLeft))
			p.mustTip("an arrow key on")
		}
	}
	for _, id := range append([]string{"test", "activities"}, tiles...) {
		if !reached[id] {
			t.Errorf("Tab does not reach #%s: only %v", id, reached)
		}
	}
	p.waitFor(tips + ".length === 0")
	eval[bool](p, `document.querySelector("#test").focus(), true`)
	p.do(chromedp.KeyEvent(kb.Enter))
	p.waitFor(`/broadcast/i.test(document.querySelector("#answer").textContent)`)
}

// A screen reader says the value of a slider whenever it changes.
func TestKeyboardWalksAlongALine(t *testing.T) {
	t.Parallel()
	f := startFake(t)
	at := time.Now()
	f.tell(func(h *history) { h.Samples = samplesOf(at, 11, 12, 13, 14, 15) })
	p := open(t, f.url+"/")
	s := madeUp("15%")
	f.send(t, at, s.json())
	p.waitFor("lines.slots.length === 5")
	eval[bool](p, `document.querySelector("#cpu .line").focus(), true`)
	says := func(key, want string) {
		t.Helper()
		p.do(chromedp.KeyEvent(key))
		const says = `document.querySelector("#cpu .line").ariaValueText.startsWith(%q)`
		p.waitFor(fmt.Sprintf(says, want))
	}
	says(kb.Home, "11% at ")
	says(kb.ArrowRight, "12% at ")
	says(kb.ArrowRight, "13% at ")
	says(kb.ArrowLeft, "12% at ")
	says(kb.ArrowLeft, "11% at ")
	says(kb.ArrowLeft, "11% at ")
	says(kb.End, "15% at ")
	says(kb.ArrowRight, "15% at ")
	says(kb.ArrowLeft, "14% at ")
	p.mustTip("a key on")
	p.do(chromedp.KeyEvent(kb.Escape))
	p.waitFor(tips + ".length === 0")
}

func TestTooltipStaysOnTheScreen(t *testing.T) {
	t.Parallel()
	f := startFake(t)
	at := time.Now()
	f.tell(func(h *history) {
		h.Samples = samplesOf(at, repeat(50, 280)...)
		for i := range h.Samples {
			h.Samples[i].Max = map[string]float64{"cpu": 100, "network": 1250, "response_time": 1400}
		}
	})
	p := open(t, f.url+"/")
	f.send(t, at, madeUp("50%").json())
	p.waitFor("lines.slots.length >= 270")
	for _, width := range []int64{320, 375, 768, 1280, 1920} {
		p.do(chromedp.EmulateViewport(width, 800))
		eval[bool](p, `document.querySelector("#cpu .line").focus(), true`)
		for _, key := range []string{kb.Home, kb.End} {
			p.do(chromedp.KeyEvent(key))
			p.mustTip("a key on")
			eval[bool](p, drawn)
			for i, b := range p.boxes(".tip") {
				if b.Left < 0 || b.Right > float64(width) {
					t.Errorf("at %d px tip %d is at %+v", width, i, b)
				}
			}
			if d := eval[int](p, "document.scrollingElement.scrollWidth - innerWidth"); d > 0 {
				t.Errorf("at %d px tips make the page %d px too wide", width, d)
			}
		}
	}
}
