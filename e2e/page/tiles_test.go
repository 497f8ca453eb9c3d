package page

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/accessibility"
	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/chromedp"
)

// keys are those of the tiles, in order.
func (p *tab) keys() []string {
	p.Helper()
	return eval[[]string](p, `[...document.querySelectorAll(".tile")].map((e) => e.dataset.metric)`)
}

func (p *tab) waitForTiles(want []string) {
	p.Helper()
	eventually(p.T, fmt.Sprintf("tiles of %q", want), func() bool { return slices.Equal(p.keys(), want) })
}

func TestTilesAreThoseOfTheSnapshot(t *testing.T) {
	t.Parallel()
	f := startFake(t)
	p := open(t, f.url+"/")
	if got := p.keys(); !slices.Equal(got, tiles) {
		t.Errorf("before the first snapshot there are tiles of %q", got)
	}
	at := time.Now()
	for _, c := range []struct {
		metrics map[string]string
		want    []string
	}{
		{map[string]string{"cpu": "45%", "queue": "7 jobs"}, []string{"cpu", "queue"}},
		{map[string]string{"queue": "8 jobs"}, []string{"queue"}},
		{map[string]string{}, tiles},
		{map[string]string{"disk": "23%", "cpu": "45%"}, []string{"cpu", "disk"}},
		{madeUp("45%").Metrics, tiles},
	} {
		s := madeUp("")
		s.Metrics = c.metrics
		at = at.Add(100 * time.Millisecond)
		f.send(t, at, s.json())
		p.waitForTiles(c.want)
	}

	mixed := `{"system_status":{"status":"online"},"metrics":{"queue":"9 jobs","load":0.5,"cpu":"45%"}}`
	f.send(t, at.Add(time.Second), mixed)
	p.waitForText("[data-metric=load] .value", "0.5")
	if got := p.text("[data-metric=queue] .value"); got != "9 jobs" {
		t.Errorf("the queue is %q", got)
	}
	if got := p.text("[data-metric=queue] h2"); !strings.EqualFold(got, "queue") {
		t.Errorf("the queue is named %q", got)
	}
	for _, part := range []string{".chart", ".bar", ".highest"} {
		if p.isShown("[data-metric=queue] "+part) || !p.isShown("#cpu "+part) {
			t.Errorf("the queue has a %s, or the CPU has none", part)
		}
	}
	f.send(t, at.Add(2*time.Second), `{"system_status":{"status":"online"}}`)
	p.waitForTiles(tiles)
	if got := p.text("#cpu .value"); got != "N/A" {
		t.Errorf("the CPU is %q", got)
	}
}

func TestTilesKeepTheFocus(t *testing.T) {
	t.Parallel()
	f := startFake(t)
	p := open(t, f.url+"/")
	at := time.Now()
	s := madeUp("45%")
	f.send(t, at, s.json())
	p.waitForCPU("45%")
	eval[bool](p, `document.querySelector("#memory .line").focus(), true`)
	for i, change := range []func(){
		func() { s.Metrics["queue"] = "7 jobs" },
		func() { delete(s.Metrics, "cpu") },
		func() { s.Metrics["cpu"] = "46%" },
	} {
		change()
		f.send(t, at.Add(time.Duration(i+1)*time.Second), s.json())
		eventually(t, "a tile for each metric", func() bool { return len(p.keys()) == len(s.Metrics) })
		id := eval[string](p, `document.activeElement.closest(".tile")?.id ?? "nothing"`)
		if id != "memory" {
			t.Errorf("after change %d the focus is on %s", i, id)
		}
	}
}

// The names of metrics are the sender's.
func TestTilesOfAnyNameAreHarmless(t *testing.T) {
	t.Parallel()
	f := startFake(t)
	p := open(t, f.url+"/")
	names := []string{"<img src=x onerror='globalThis.hacked = 1'>", "__proto__", "constructor",
		"toString", "status", "message", "test", "activities", "tiles", "log", "", " ", `"]`,
		"unbreakable" + strings.Repeat("-x", 60), "hasOwnProperty", "valueOf", "tile", "0"}
	values := map[string]string{"cpu": "45%"}
	for i, name := range names {
		values[name] = fmt.Sprintf("%d things", i)
	}
	s := madeUp("")
	s.Metrics = values
	f.send(t, time.Now(), s.json())
	p.waitForCPU("45%")
	got := eval[map[string]string](p, `Object.fromEntries([...document.querySelectorAll(".tile")]
		.map((e) => ["x" + e.dataset.metric, e.querySelector(".value").textContent]))`)
	for name, want := range values {
		if got["x"+name] != want {
			t.Errorf("%q is shown as %q, want %q", name, got["x"+name], want)
		}
	}
	if eval[bool](p, `!!globalThis.hacked || document.querySelectorAll("img").length > 0`) {
		t.Error("a name became HTML")
	}
	if got := p.text("#status"); got != "Online" {
		t.Errorf("the status is %q", got)
	}
	doubles := eval[[]string](p, `[...document.querySelectorAll("[id]")].map((e) => e.id)
		.filter((id, i, all) => all.indexOf(id) < i)`)
	if len(doubles) > 0 {
		t.Errorf("these ids are there twice: %q", doubles)
	}
	for _, width := range []int64{375, 1280} {
		p.do(chromedp.EmulateViewport(width, 800))
		if d := eval[int](p, "document.scrollingElement.scrollWidth - innerWidth"); d > 0 {
			t.Errorf("at %d px the page is %d px too wide", width, d)
		}
	}

	// Hundreds of them, and then none.
	for i := range 500 {
		values[fmt.Sprintf("metric_%d", i)] = "1"
	}
	f.send(t, time.Now().Add(time.Second), s.json())
	p.waitFor(`document.querySelectorAll(".tile").length >= 40`)
	f.send(t, time.Now().Add(2*time.Second), madeUp("46%").json())
	p.waitForCPU("46%")
	p.waitForTiles(tiles)
}

func TestButtonIsOnlyWhereItHasAnEffect(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "500ms")
	edge := startServer(t, "-edge")
	p := open(t, s.url+"/")
	p.waitForState("live")
	shown := func(what, want string) {
		t.Helper()
		eventually(t, "the button is "+want+", "+what, func() bool {
			return p.isShown("#test") == (want == "shown")
		})
	}
	shown("of the host", "shown")
	s.put(t, external().json())
	p.waitForSource("external")
	shown("of an external snapshot", "hidden")
	s.remove(t)
	p.waitForSource("host")
	shown("of the host again", "shown")

	for address, live := range map[string]string{
		s.url + "/?kiosk":                    "live",
		s.url + "/?stream=/dashboard/stream": "live",
		edge.url + "/":                       "waiting",
	} {
		p.do(chromedp.Navigate(address))
		p.waitForState(live)
		time.Sleep(200 * time.Millisecond)
		shown("at "+strings.TrimPrefix(address, s.url), "hidden")
	}
	edge.put(t, external().json())
	p.waitForSource("external")
	shown("of an edge", "hidden")
}

func TestAccessibilityTreeNamesEverything(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "500ms", "-probe", failing(t))
	p := open(t, s.url+"/")
	p.waitFor(`document.querySelectorAll("#activities li").length >= 2 && lines.slots.length > 0`)
	p.waitFor(`!document.querySelector("#test").hidden`)
	call(p, accessibility.Enable, cdp.Empty{})
	count := map[string]int{}
	for _, n := range call(p, accessibility.GetFullAXTree, accessibility.GetFullAXTreeParams{}).Nodes {
		if n.Ignored {
			continue
		}
		var role, name string
		json.Unmarshal(n.Role.Value, &role)
		if n.Name != nil {
			json.Unmarshal(n.Name.Value, &name)
		}
		count[role]++
		switch role {
		case "button", "graphics-document", "image", "img", "Canvas", "region", "log", "meter",
			"progressbar", "slider", "heading", "article", "RootWebArea":
			if strings.TrimSpace(name) == "" {
				t.Errorf("a %s has no name", role)
			}
		}
	}
	count["h1"] = eval[int](p, `document.querySelectorAll("h1").length`)
	for role, want := range map[string]int{"main": 1, "log": 1, "button": 1, "h1": 1, "slider": 5} {
		if count[role] != want {
			t.Errorf("there are %d of %s, want %d", count[role], role, want)
		}
	}
	if got := eval[string](p, "document.documentElement.lang"); got == "" {
		t.Error("the document has no language")
	}
}

// The heading is "Dashboard" and the place, with a space between.
func TestAccessibilityHeadingIsWords(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	p := open(t, s.url+"/")
	p.waitForState("live")
	want := "Dashboard " + strings.TrimPrefix(s.url, "http://")
	if got := strings.Join(strings.Fields(p.text("h1")), " "); got != want {
		t.Errorf("the heading is %q, want %q", got, want)
	}
}

// watchRegions is a script that notes what regions would say. A region speaks when it changes.
const watchRegions = `globalThis.spoken = [];
globalThis.regions = "[aria-live], [role=status], [role=alert], [role=log], [role=timer], output";
addEventListener("DOMContentLoaded", () => new MutationObserver((changes) => {
	for (const {target} of changes) {
		const element = target.nodeType === 1 ? target : target.parentElement;
		const region = element?.closest(regions);
		const live = region?.getAttribute("aria-live") ?? (region ? "polite" : "off");
		const text = region?.textContent.trim();
		if (live !== "off" && text) spoken.push(region.id + ": " + text);
	}
}).observe(document, {subtree: true, childList: true, characterData: true}));`

func TestAccessibilityOneRegionSpeaks(t *testing.T) {
	t.Parallel()
	f := startFake(t)
	p := open(t, f.url+"/", watchRegions)
	regions := eval[[]string](p, `[...document.querySelectorAll(regions)]
		.filter((e) => e.getAttribute("aria-live") !== "off").map((e) => e.id)`)
	if !slices.Equal(regions, []string{"announcer"}) {
		t.Errorf("these may speak: %q", regions)
	}
	at := time.Now()
	list := []activity{}
	status := "online"
	send := func(messages ...string) {
		at = at.Add(time.Second)
		for _, message := range messages {
			added := activity{at.Format(time.TimeOnly), message, "success", "activity-success"}
			list = slices.Insert(list, 0, added)
		}
		s := madeUp("45%", list...)
		s.Status.Status = status
		f.send(t, at, s.json())
	}
	heard := func(want string) {
		t.Helper()
		p.waitFor(fmt.Sprintf(`spoken.some((text) => text.includes(%q))`, want))
	}
	send()
	p.waitForState("live")
	p.takeSpoken()
	send("Deployed v42")
	heard("Deployed v42")
	if got := p.takeSpoken(); len(got) != 1 {
		t.Errorf("one activity is said as %q", got)
	}
	send("Deployed v43", "Deployed v44")
	heard("Deployed v44")
	if got := p.takeSpoken(); len(got) != 1 {
		t.Errorf("two activities are said as %q", got)
	}
	for range 2 { // the same words are said again
		send("Deployed v44")
		heard("Deployed v44")
		p.takeSpoken()
	}
	status = "degraded"
	send()
	heard("egraded")
	p.takeSpoken()
	send()
	p.waitFor(fmt.Sprintf("dashboard.id === %d", at.UnixMilli()))
	if got := p.takeSpoken(); len(got) > 0 {
		t.Errorf("a snapshot without news is said as %q", got)
	}
}

func (p *tab) takeSpoken() []string {
	p.Helper()
	return eval[[]string](p, "spoken.splice(0)")
}
