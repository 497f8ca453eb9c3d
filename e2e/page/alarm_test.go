package page

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func TestAlarmSinceIsTheServers(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "500ms", "-probe", failing(t))
	newest := s.follow(t)
	p := open(t, s.url+"/")
	p.waitForLevel("#response_time", "2")
	alarms := s.history(t).Alarms
	if len(alarms) != 1 {
		t.Fatalf("the alarms are %+v", alarms)
	}
	want := "Critical since " + time.UnixMilli(alarms[0].Since).Format(time.TimeOnly)
	p.waitForText("#response_time .word", want)
	p.waitForText("#message", newest().Status.Message)
	if got := eval[string](p, `document.querySelector(".state").dataset.level`); got != "2" {
		t.Errorf("the banner has the level %q", got)
	}
	follower := p.another(s.url + "/")
	follower.waitForText("#response_time .word", want)
}

// toggled is the URL of a health check that fails while the switch is on.
func toggled(t *testing.T) (string, *atomic.Bool) {
	fails := &atomic.Bool{}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if fails.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	t.Cleanup(s.Close)
	return s.URL, fails
}

func TestAlarmEndsWithItsCause(t *testing.T) {
	t.Parallel()
	probe, fails := toggled(t)
	fails.Store(true)
	p := open(t, startServer(t, "-interval", "500ms", "-probe", probe).url+"/")
	p.waitFor(`document.querySelector("#response_time").dataset.level > 0`)
	fails.Store(false)
	p.waitForLevel("#response_time", "0")
	p.waitForText("#response_time .word", "")
	p.waitFor(`!document.querySelector("#response_time .curve.alarmed").getAttribute("d")`)
	p.waitFor(`document.title.startsWith("Online · CPU ")`)
}

func TestAlarmOutlivesTenActivities(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "500ms", "-probe", failing(t))
	eventually(t, "the alarm is critical", func() bool {
		alarms := s.history(t).Alarms
		return len(alarms) == 1 && alarms[0].Level == "critical"
	})
	for i := range 12 {
		body := fmt.Sprintf(`{"message":"Deployed v%d","level":"success"}`, i)
		url := s.url + "/dashboard/activities"
		resp, err := http.Post(url, "application/json", strings.NewReader(body))
		if err != nil || resp.StatusCode > 299 {
			t.Fatal(resp, err)
		}
		resp.Body.Close()
	}
	p := open(t, s.url+"/")
	p.waitFor(`document.querySelectorAll("#activities li").length === 10`)
	p.waitForStart("#response_time .word", "Critical since ")
	p.waitForStart("#message", "Health probe answers 500, since ")
	p.waitFor(`document.title.startsWith("Critical · Response time N/A · ")`)
}

func TestAlarmColoursItsLineFromItsStart(t *testing.T) {
	t.Parallel()
	f := startFake(t)
	f.tell(func(h *history) {
		h.Samples = samplesOf(time.Now(), repeat(97, 200)...)
		h.Alarms = []alarm{{"cpu", "critical", time.Now().Add(-2 * time.Minute).UnixMilli()}}
	})
	p := open(t, f.url+"/")
	s := madeUp("97%")
	s.Status.Status, s.Status.Message = "critical", "CPU at 97% over the last minute, since 15:04:05"
	f.send(t, time.Now(), s.json())
	p.waitFor(`document.querySelector("#cpu .curve.alarmed")?.getAttribute("d")`)
	const edges = `((selector) => {
		const chart = document.querySelector("#cpu .line").getBoundingClientRect();
		const path = document.querySelector(selector).getBoundingClientRect();
		return [path.left, path.right].map((x) => (x - chart.left) / chart.width);
	})`
	alarmed := eval[[]float64](p, edges+`("#cpu .curve.alarmed")`)
	if alarmed[0] < .77 || alarmed[0] > .83 || alarmed[1] < .97 {
		t.Errorf("the line is coloured from %v to %v, want .8 to 1", alarmed[0], alarmed[1])
	}
	whole := eval[[]float64](p, edges+`("#cpu .curve:not(.alarmed)")`)
	if whole[0] < .3 || whole[0] > .37 {
		t.Errorf("the line begins at %v of the chart, want a third", whole[0])
	}
	colours := eval[[]string](p, `["#cpu .curve.alarmed", "#cpu .curve:not(.alarmed)",
		"#memory .curve:not(.alarmed)"].map((s) => getComputedStyle(document.querySelector(s)).stroke)`)
	if colours[0] == colours[1] || colours[1] != colours[2] {
		t.Errorf("the lines are coloured %q", colours)
	}
	for _, id := range tiles[1:] {
		if got := p.attribute("#"+id+" .curve.alarmed", "d"); got != "" && got != "none" {
			t.Errorf("%s is coloured: %s", id, got)
		}
	}
}

func repeat(value float64, n int) []float64 {
	all := make([]float64, n)
	for i := range all {
		all[i] = value
	}
	return all
}

func TestAlarmOfAnotherDayHasItsDate(t *testing.T) {
	t.Parallel()
	f := startFake(t)
	const zone = 20700e3 // Kathmandu's, in ms
	since := time.Now().Add(-26 * time.Hour)
	f.tell(func(h *history) {
		h.Zone = zone
		h.Alarms = []alarm{{"memory", "warning", since.UnixMilli()}}
	})
	p := open(t, f.url+"/")
	s := madeUp("45%")
	s.Status.Status, s.Status.Message = "degraded", "Memory at 91%, since long ago"
	f.send(t, time.Now(), s.json())
	at := since.UTC().Add(zone * time.Millisecond).Format(time.DateTime)
	p.waitForText("#memory .word", "Warning since "+at)
	p.waitFor(`document.title.startsWith("Degraded · Memory 67% · ")`)
}

// Marks and levels are those of this server's thresholds, and nobody knows the ones of others.
func TestAlarmMarksNoExternalSnapshot(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-edge")
	put := external()
	put.Status.Status = "critical"
	put.Status.Message = "CPU at 97% over the last minute, since 15:04:05; Memory at 91%"
	put.Metrics["cpu"], put.Metrics["memory"] = "97%", "91%"
	s.put(t, put.json())
	p := open(t, s.url+"/")
	p.waitForCPU("97%")
	p.waitFor(`dashboard.source?.kind === "external"`)
	p.waitForLevel(".state", "2")
	p.waitForLevel("link[rel=icon]", "2")
	if got := p.text("#message"); got != put.Status.Message {
		t.Errorf("the message is %q", got)
	}
	levels := eval[[]string](p, `[...document.querySelectorAll(".tile")].map((e) =>
		e.dataset.level + e.querySelector(".word").textContent)`)
	if got := strings.Join(levels, ""); got != "00000" {
		t.Errorf("the tiles are marked %q", levels)
	}
	for _, selector := range []string{"#cpu .mark", "#cpu .marks", "#memory .marks"} {
		if p.isShown(selector) {
			t.Errorf("%s is shown", selector)
		}
	}
}

func TestAlarmsGoWithTheSource(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "500ms", "-probe", failing(t))
	p := open(t, s.url+"/")
	p.waitForLevel("#response_time", "2")
	s.put(t, external().json())
	p.waitForSource("external")
	p.waitForLevel("#response_time", "0")
	p.waitForText("#response_time .word", "")
	s.remove(t)
	p.waitForLevel("#response_time", "2")
}

func TestStatusUnknownIsAProblem(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-edge")
	p := open(t, s.url+"/")
	for _, c := range []struct{ status, level, icon string }{
		{"online", "0", "0"},
		{"degraded", "1", "1"},
		{"critical", "2", "2"},
		{"maintenance", "1", "1"},
		{"ONLINE", "0", "0"},
		{"constructor", "1", "1"},
		{"__proto__", "1", "1"},
		{"online", "0", "0"},
	} {
		put := external()
		put.Status.Status = c.status
		put.Status.Message = "The status is " + c.status
		s.put(t, put.json())
		p.waitForText("#message", put.Status.Message)
		levels := eval[[]string](p, `[document.querySelector(".state").dataset.level,
			document.querySelector("link[rel=icon]").dataset.level]`)
		if levels[0] != c.level || levels[1] != c.icon {
			t.Errorf("%q has the level %q, and the icon %q", c.status, levels[0], levels[1])
		}
		if got := p.text("#status"); !strings.EqualFold(got, c.status) {
			t.Errorf("%q is shown as %q", c.status, got)
		}
	}
}

// A snapshot without a status is no problem, and is not well either.
func TestStatusMissingIsGrey(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-edge")
	p := open(t, s.url+"/")
	var fields map[string]any
	json.Unmarshal([]byte(external().json()), &fields)
	fields["system_status"] = map[string]any{"message": "No status"}
	body, _ := json.Marshal(fields)
	s.put(t, string(body))
	p.waitForText("#message", "No status")
	icon := p.attribute("link[rel=icon]", "data-level")
	if got := p.attribute(".state", "data-level"); got != "none" || icon != "none" {
		t.Errorf("the level is %q, and that of the icon %q", got, icon)
	}
}

func TestIconAndTitleTellTheState(t *testing.T) {
	t.Parallel()
	f := startFake(t)
	host := strings.TrimPrefix(f.url, "http://")
	p := open(t, f.url+"/")
	p.waitFor("dashboard.counted > 0")
	at := time.Now()
	icons := map[string]string{}
	warning, critical := alarm{"memory", "warning", 1}, alarm{"disk", "critical", 1}
	for _, c := range []struct {
		status string
		alarms []alarm
		level  string
		title  string
	}{
		{"online", nil, "0", "Online · CPU 45%"},
		{"degraded", []alarm{warning}, "1", "Degraded · Memory 67%"},
		{"critical", []alarm{warning, critical}, "2", "Critical · Disk 23%"},
		{"online", nil, "0", "Online · CPU 45%"},
	} {
		f.tell(func(h *history) { h.Alarms = append([]alarm{}, c.alarms...) })
		s := madeUp("45%")
		s.Status.Status = c.status
		at = at.Add(100 * time.Millisecond)
		f.send(t, at, s.json())
		p.waitFor(fmt.Sprintf(`document.title === %q`, c.title+" · "+host))
		p.waitFor(fmt.Sprintf(`document.querySelector("link[rel=icon]").dataset.level === %q`, c.level))
		icons[c.level] = p.attribute("link[rel=icon]", "href")
	}
	if icons["0"] == icons["1"] || icons["1"] == icons["2"] || icons["0"] == icons["2"] {
		t.Errorf("the icons are alike: %q", icons)
	}
}

func TestIconAndTitleTellDisconnected(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "500ms")
	p := open(t, s.url+"/")
	p.waitForState("live")
	p.mayFail()
	s.kill()
	p.waitForState("disconnected")
	p.waitFor(`document.title.startsWith("Disconnected · ")`)
	p.waitForLevel("link[rel=icon]", "none")
}

// The text is the newest reading, and the bar is what the mark judges.
func TestMinuteOfTheCPUIsWhatItsMarkJudges(t *testing.T) {
	t.Parallel()
	f := startFake(t)
	f.tell(func(h *history) {
		h.Samples = samplesOf(time.Now(), append(repeat(99, 60), repeat(50, 35)...)...)
	})
	p := open(t, f.url+"/")
	f.send(t, time.Now(), madeUp("99%").json())
	p.waitForCPU("99%")
	p.waitForStart("#cpu .marks", "Warning 85%, critical 95% (last minute)")
	p.waitFor(`/last minute 5[0-4]%/.test(document.querySelector("#cpu").textContent)`)
	const width = `((selector) => document.querySelector(selector).getBoundingClientRect().width)`
	p.waitFor("Math.abs(" + width + `("#cpu .fill") / ` + width + `("#cpu .bar") - .52) < .03`)
	p.waitFor(`Math.abs(Number(document.querySelector("#cpu .bar").ariaValueNow) - 52) <= 3`)
	if got := p.attribute("#cpu", "data-level"); got != "0" {
		t.Errorf("the level is %q", got)
	}
	if got := p.text("#memory .marks"); got != "Warning 90%, critical 98%" {
		t.Errorf("the marks of memory are %q", got)
	}
}

func TestOutageIsDrawnAsOne(t *testing.T) {
	t.Parallel()
	probe, fails := toggled(t)
	s := startServer(t, "-interval", "500ms", "-probe", probe)
	p := open(t, s.url+"/")
	p.waitFor("lines.slots.some(({response_time}) => response_time)")
	fails.Store(true)
	eventually(t, "two slots without a response time", func() bool {
		samples := s.history(t).Samples
		last := samples[len(samples)-1]
		return last.ResponseTime == nil && samples[len(samples)-2].ResponseTime == nil
	})
	p.waitFor(`document.querySelector("#response_time .outage").getAttribute("d")`)
	fails.Store(false)
	p.waitFor("lines.slots.at(-1).response_time")
	eval[int](p, "connection.historyAt = 0")
	p.waitFor("connection.historyAt > 0")
	p.waitFor(`document.querySelector("#response_time .outage").getAttribute("d")`)
	if got := p.attribute("#memory .outage", "d"); got != "" && got != "none" {
		t.Errorf("memory has an outage: %s", got)
	}
	later := open(t, s.url+"/")
	later.waitFor("dashboard.counted > 0")
	later.waitFor(`document.querySelector("#response_time .outage").getAttribute("d")`)
}

// Where there are no slots, nothing was measured and nothing failed.
func TestOutageIsNoGapInTheData(t *testing.T) {
	t.Parallel()
	f := startFake(t)
	f.tell(func(h *history) {
		h.Samples = samplesOf(time.Now(), repeat(50, 150)...)
		for i := 90; i < 120; i++ {
			h.Samples[i].ResponseTime = nil
		}
		h.Samples = append(h.Samples[:30:30], h.Samples[60:]...)
	})
	p := open(t, f.url+"/")
	f.send(t, time.Now(), madeUp("50%").json())
	p.waitForCPU("50%")
	p.waitFor(`document.querySelector("#response_time .outage").getAttribute("d")`)
	const parts = `((path) => document.querySelector(path).getAttribute("d").split("M").length - 1)`
	if got := eval[int](p, parts+`("#cpu .curve:not(.alarmed)")`); got != 2 {
		t.Errorf("the line of the CPU has %d parts, want 2", got)
	}
	if got := eval[int](p, parts+`("#response_time .curve:not(.alarmed)")`); got != 3 {
		t.Errorf("the line of the response time has %d parts, want 3", got)
	}
	if got := p.attribute("#cpu .outage", "d"); got != "" {
		t.Errorf("the gap is drawn as an outage: %s", got)
	}
	edges := eval[[]float64](p, `(() => {
		const chart = document.querySelector("#response_time .line").getBoundingClientRect();
		const path = document.querySelector("#response_time .outage").getBoundingClientRect();
		return [path.left, path.right].map((x) => (x - chart.left) / chart.width);
	})()`)
	if edges[0] < .77 || edges[0] > .83 || edges[1] < .87 || edges[1] > .93 {
		t.Errorf("the outage is drawn from %v to %v of the chart, want .8 to .9", edges[0], edges[1])
	}
}

// Nobody knows what was in the gap between two outages.
func TestOutageEndsAtAGap(t *testing.T) {
	t.Parallel()
	f := startFake(t)
	f.tell(func(h *history) {
		h.Samples = samplesOf(time.Now(), repeat(50, 150)...)
		for i := 60; i < 120; i++ {
			h.Samples[i].ResponseTime = nil
		}
		h.Samples = append(h.Samples[:75:75], h.Samples[105:]...)
	})
	p := open(t, f.url+"/")
	f.send(t, time.Now(), madeUp("50%").json())
	p.waitForCPU("50%")
	p.waitFor(`document.querySelector("#response_time .outage").getAttribute("d")`)
	d := p.attribute("#response_time .outage", "d")
	if got := strings.Count(d, "M"); got != 2 {
		t.Errorf("the outage has %d parts, want 2: %s", got, d)
	}
}
