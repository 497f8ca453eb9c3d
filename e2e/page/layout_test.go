package page

import (
	"bytes"
	"compress/zlib"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	pages "github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"
)

// alarmedFake is a fake whose host is in trouble and has much to say. It returns a page of it.
func alarmedFake(t *testing.T, path string) (*fake, *tab) {
	t.Helper()
	f := startFake(t)
	at := time.Now()
	f.tell(func(h *history) {
		h.Samples = samplesOf(at, repeat(96, 250)...)
		h.Alarms = []alarm{
			{"cpu", "critical", at.Add(-4 * time.Minute).UnixMilli()},
			{"response_time", "warning", at.Add(-30 * time.Hour).UnixMilli()},
		}
	})
	var list []activity
	for i := range 10 {
		list = append(list, activity{fmt.Sprintf("15:04:%02d", 59-i), "CPU at 96% over the last minute",
			"error", "activity-error"})
	}
	s := madeUp("96%", list...)
	s.Status.Status = "critical"
	s.Status.Message = "Critical: CPU at 96% over the last minute, since 15:04:05; " +
		"Warning: Health probe answers 503, since 2026-11-24 23:58:02"
	s.Metrics["response_time"] = "N/A"
	p := open(t, f.url+path)
	f.send(t, at, s.json())
	p.waitForLevel("#cpu", "2")
	p.waitFor(`document.querySelectorAll("#activities li").length === 10`)
	return f, p
}

// box is the place of an element in the window, and of its content.
type box struct{ Left, Top, Right, Bottom float64 }

func (p *tab) boxes(selector string) []box {
	p.Helper()
	return eval[[]box](p, fmt.Sprintf(`[...document.querySelectorAll(%q)].map((e) => {
		const {left, top, right, bottom} = e.getBoundingClientRect();
		return {Left: left, Top: top, Right: right, Bottom: bottom};
	})`, selector))
}

func TestLayoutHasActivitiesInSight(t *testing.T) {
	t.Parallel()
	_, p := alarmedFake(t, "/")
	for _, size := range [][2]int64{{1280, 800}, {1366, 768}, {1920, 1080}} {
		p.do(chromedp.EmulateViewport(size[0], size[1]))
		items := p.boxes("#activities li")
		for i, b := range items[:3] {
			if b.Bottom > float64(size[1]) || b.Right > float64(size[0]) || b.Bottom-b.Top < 10 {
				t.Errorf("at %v activity %d is at %+v", size, i, b)
			}
		}
	}
}

func TestLayoutOfAPhoneHasAllMetrics(t *testing.T) {
	t.Parallel()
	_, alarmed := alarmedFake(t, "/")
	well := open(t, startServer(t).url+"/")
	well.waitForState("live")
	for name, p := range map[string]*tab{"well": well, "alarmed": alarmed} {
		p.do(chromedp.EmulateViewport(375, 812, chromedp.EmulateMobile))
		for i, b := range p.boxes(".tile") {
			if b.Bottom > 812 || b.Right > 375 || b.Bottom-b.Top < 40 {
				t.Errorf("%s: tile %d is at %+v", name, i, b)
			}
		}
		for i, b := range p.boxes(".line") {
			if b.Bottom-b.Top < 20 || b.Right-b.Left < 80 {
				t.Errorf("%s: line %d is at %+v", name, i, b)
			}
		}
	}
}

func TestLayoutPutsTheRangeOnTheAxis(t *testing.T) {
	t.Parallel()
	_, p := alarmedFake(t, "/")
	for _, width := range []int64{375, 1280} {
		p.do(chromedp.EmulateViewport(width, 800))
		line, top, zero := p.boxes("#cpu .line")[0], p.boxes("#cpu .top")[0], p.boxes("#cpu .zero")[0]
		if top.Top > line.Top+12 || zero.Bottom < line.Bottom-12 {
			t.Errorf("at %d px the line is at %+v, 100%% at %+v and 0 at %+v", width, line, top, zero)
		}
		if top.Right > line.Left+1 && top.Left < line.Right-1 {
			t.Errorf("at %d px the range stands on the line", width)
		}
	}
	if got := p.text("#cpu .top") + " " + p.text("#cpu .zero"); got != "100% 0" && got != "100% 0%" {
		t.Errorf("the range is %q", got)
	}
	if got := p.text("#network .top"); !strings.HasSuffix(got, " Mbps") {
		t.Errorf("the top of the network's line is %q", got)
	}
}

// colours counts the pixels of each colour of an element.
func (p *tab) colours(selector string) map[color.Color]int {
	p.Helper()
	const scroll = `document.querySelector(%q).scrollIntoView({block: "center"}), true`
	eval[bool](p, fmt.Sprintf(scroll, selector))
	b := p.boxes(selector)[0]
	shot, err := chromedp.Run(p.ctx, chromedp.CaptureScreenshot())
	if err != nil {
		p.Fatal(err)
	}
	picture, err := png.Decode(bytes.NewReader(shot))
	if err != nil {
		p.Fatal(err)
	}
	count := map[color.Color]int{}
	area := image.Rect(int(b.Left)+1, int(b.Top)-3, int(b.Right)-1, int(b.Bottom)+3)
	for y := area.Min.Y; y < area.Max.Y; y++ {
		for x := area.Min.X; x < area.Max.X; x++ {
			count[picture.At(x, y)]++
		}
	}
	return count
}

// mustHaveBar checks that the bar of memory, at 67%, and its marks can be told apart.
func (p *tab) mustHaveBar() {
	p.Helper()
	p.waitFor(`document.querySelector("#memory .fill").getBoundingClientRect().width > 50`)
	all := p.colours("#memory .bar")
	p.setVisibility("#memory .mark", "hidden")
	unmarked := p.colours("#memory .bar")
	p.setVisibility("#memory .fill", "hidden")
	empty := p.colours("#memory .bar")
	if d := difference(all, unmarked); d < 8 {
		p.Errorf("the marks are %d pixels", d)
	}
	if d := difference(unmarked, empty); d < 200 {
		p.Errorf("the bar is %d pixels", d)
	}
}

func (p *tab) setVisibility(selector, visibility string) {
	p.Helper()
	const all = `document.querySelectorAll(%q).forEach((e) => e.style.visibility = %q), true`
	eval[bool](p, fmt.Sprintf(all, selector, visibility))
}

// difference tells how many pixels two counts of colours differ by.
func difference(a, b map[color.Color]int) (n int) {
	for c, count := range a {
		n += max(0, count-b[c])
	}
	return n
}

func TestForcedColoursKeepBarsAndMarks(t *testing.T) {
	t.Parallel()
	for _, scheme := range []string{"light", "dark"} {
		_, p := alarmedFake(t, "/")
		p.prefer("forced-colors", "active", "prefers-color-scheme", scheme,
			"prefers-reduced-motion", "reduce")
		p.mustHaveBar()
		line := p.colours("#cpu .line")
		p.setVisibility("#cpu .curve", "hidden")
		if d := difference(line, p.colours("#cpu .line")); d < 50 {
			t.Errorf("the line is %d pixels", d)
		}
	}
}

// fills tells how many shapes a printed page fills with another colour than white. Where a browser
// is to print no backgrounds, it prints white ones.
func (p *tab) fills() (n int) {
	p.Helper()
	printed := call(p, pages.PrintToPDF, pages.PrintToPDFParams{})
	for _, stream := range bytes.Split(printed.Data, []byte("stream\n")) {
		reader, err := zlib.NewReader(bytes.NewReader(stream))
		if err != nil {
			continue
		}
		text, _ := io.ReadAll(reader) // what follows the stream is no part of it
		n += colouredFills(string(text))
	}
	return n
}

// colouredFills reads the drawing operators of a PDF: rg sets the colour, f fills, q and Q keep the
// colour and take it back.
func colouredFills(operators string) (n int) {
	colour := "0 0 0"
	var kept []string
	for _, line := range strings.Split(operators, "\n") {
		switch {
		case line == "q":
			kept = append(kept, colour)
		case line == "Q" && len(kept) > 0:
			colour = kept[len(kept)-1]
			kept = kept[:len(kept)-1]
		case strings.HasSuffix(line, " rg"):
			fields := strings.Fields(line)
			colour = strings.Join(fields[len(fields)-4:len(fields)-1], " ")
		case line == "f" && colour != "1 1 1":
			n++
		}
	}
	return n
}

func TestPrintKeepsBarsAndMarks(t *testing.T) {
	t.Parallel()
	_, p := alarmedFake(t, "/")
	p.prefer("prefers-color-scheme", "dark")
	for selector, number := range map[string]int{".fill": 3, ".mark": 6} {
		// Other shapes come and go meanwhile, such as the colour of what is new.
		eventually(t, selector+" is printed", func() bool {
			with := p.fills()
			p.setVisibility(selector, "hidden")
			without := p.fills()
			p.setVisibility(selector, "")
			return with-without >= number
		})
	}
	call(p, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
		Media:    "print",
		Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: "dark"}},
	})
	for _, selector := range []string{"#status", "#cpu .value", "#message", "#activities .message"} {
		if c := eval[float64](p, fmt.Sprintf(luminance, selector)); c > .45 {
			t.Errorf("%s is printed in a light colour, %v", selector, c)
		}
	}
}

// luminance is about that of an element's text, from 0, which is black, to 1.
const luminance = `(([r, g, b]) => (.3 * r + .6 * g + .1 * b) / 255)
	(getComputedStyle(document.querySelector(%q)).color.match(/\d+/g).map(Number))`

func TestKioskHasNoHeaderAndNoButton(t *testing.T) {
	t.Parallel()
	f, p := alarmedFake(t, "/?kiosk")
	p.do(chromedp.EmulateViewport(1920, 1080))
	for _, selector := range []string{"h1", "button", "#test", "#live"} {
		b := p.boxes(selector)[0]
		if p.isShown(selector) && (b.Right-b.Left > 1 || b.Bottom-b.Top > 1) { // but for screen readers
			t.Errorf("%s is shown", selector)
		}
	}
	if d := eval[int](p, "document.scrollingElement.scrollHeight - innerHeight"); d > 0 {
		t.Errorf("the page is %d px higher than the screen", d)
	}
	for i, b := range append(p.boxes(".tile"), p.boxes("#activities li")[:2]...) {
		if b.Bottom > 1080 || b.Right > 1920 {
			t.Errorf("tile or activity %d is at %+v", i, b)
		}
	}
	kiosk := p.fontSizes()
	p.do(chromedp.Navigate(f.url + "/"))
	deployed := activity{"15:04:05", "Deployed v42", "info", "activity-info"}
	f.send(t, time.Now(), madeUp("96%", deployed).json())
	p.waitForState("live")
	desk := p.fontSizes()
	for selector, size := range desk {
		if kiosk[selector] <= size {
			t.Errorf("%s has %v px on a wall, and %v px on a desk", selector, kiosk[selector], size)
		}
	}
}

func (p *tab) fontSizes() map[string]float64 {
	p.Helper()
	const selectors = `["#status", "#message", ".value", "#activities .message"]`
	return eval[map[string]float64](p, `Object.fromEntries(`+selectors+`.map((selector) =>
		[selector, parseFloat(getComputedStyle(document.querySelector(selector)).fontSize)]))`)
}

func TestKioskShowsStaleAndDisconnected(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "500ms")
	p := open(t, s.url+"/?kiosk")
	p.do(chromedp.EmulateViewport(1920, 1080))
	p.waitForState("live")
	p.waitFor("dashboard.counted > 0")
	p.mayFail()
	s.stop()
	p.waitForState("stale")
	if !p.isShown("#live") || !strings.HasPrefix(p.text("#live"), "stale since ") {
		t.Errorf("stale: %q, shown: %v", p.text("#live"), p.isShown("#live"))
	}
	if !eval[bool](p, isGrey) {
		t.Error("stale metrics are not grey")
	}
	s.kill()
	p.waitForState("disconnected")
	if !p.isShown("#live") || !strings.HasPrefix(p.text("#live"), "disconnected since ") {
		t.Errorf("disconnected: %q, shown: %v", p.text("#live"), p.isShown("#live"))
	}
	if b := p.boxes("#live")[0]; b.Bottom > 1080 || b.Bottom-b.Top < 20 {
		t.Errorf("it is at %+v", b)
	}
}
