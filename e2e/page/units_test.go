package page

import (
	"fmt"
	"testing"
	"time"
)

// null stands for a text that is no number of the metric.
const null = -1

func TestUnitsAreReadOrLeftAlone(t *testing.T) {
	t.Parallel()
	p := open(t, startServer(t).url+"/")
	p.waitForState("live")
	for _, c := range []struct {
		key, text string
		want      float64
	}{
		{"cpu", "45%", 45},
		{"cpu", "45.2 %", 45.2},
		{"cpu", "0%", 0},
		{"cpu", "N/A", null},
		{"cpu", "", null},
		{"cpu", "%", null},
		{"cpu", "about 45%", null},
		{"cpu", "45% of 8", null},
		{"cpu", "45%%", null},
		{"cpu", "45ms", null},
		{"cpu", "1.2.3%", null},
		{"cpu", "Infinity%", null},
		{"cpu", "NaN%", null},
		{"cpu", "0x10%", null},
		{"memory", "12.3 GiB", null},
		{"memory", "12.3 GiB of 16 GiB", null},
		{"memory", "67%", 67},
		{"network", "125 Mbps", 125},
		{"network", "125Mbps", 125},
		{"network", "0.3 Mbps", 0.3},
		{"network", "1.2 Gbps", 1200},
		{"network", "800 kbps", 0.8},
		{"network", "45%", null},
		{"network", "12 GiB", null},
		{"response_time", "87ms", 87},
		{"response_time", "87 ms", 87},
		{"response_time", "1.4 s", 1400},
		{"response_time", "1.4s", 1400},
		{"response_time", "250 µs", 0.25},
		{"response_time", "5 Mbps", null},
		{"response_time", "timeout after 5s", null},
	} {
		got := eval[float64](p, fmt.Sprintf("parseMetric(%q, %q) ?? -1", c.key, c.text))
		if got < c.want-1e-9 || got > c.want+1e-9 {
			t.Errorf("%s of %q is %v, want %v", c.key, c.text, got, c.want)
		}
	}
	for _, value := range []string{"undefined", "null", "{}", "[45]", "true", "NaN", "Infinity"} {
		if got := eval[float64](p, fmt.Sprintf(`parseMetric("cpu", %s) ?? -1`, value)); got != null {
			t.Errorf("%s is read as %v", value, got)
		}
	}
}

// A comma may stand for a point, but a number must not become ten times as large.
func TestUnitsWithACommaAreNotMultiplied(t *testing.T) {
	t.Parallel()
	p := open(t, startServer(t).url+"/")
	p.waitForState("live")
	for text, want := range map[string]float64{"45,7%": 45.7, "3,25%": 3.25, "1,5%": 1.5} {
		got := eval[float64](p, fmt.Sprintf(`parseMetric("cpu", %q) ?? -1`, text))
		if got != want && got != null {
			t.Errorf("%q is read as %v", text, got)
		}
	}
}

func TestUnitsOfAnotherKindDrawNoLine(t *testing.T) {
	t.Parallel()
	f := startFake(t)
	p := open(t, f.url+"/")
	s := madeUp("45%")
	s.Metrics["memory"] = "12.3 GiB"
	s.Metrics["network"] = "1.2 Gbps"
	s.Metrics["response_time"] = "1.4 s"
	f.send(t, time.Now(), s.json())
	p.waitForCPU("45%")
	for key, want := range s.Metrics {
		if got := p.text("#" + key + " .value"); got != want {
			t.Errorf("%s is shown as %q, want %q", key, got, want)
		}
	}
	p.waitFor(`document.querySelector("#network .curve").getAttribute("d")`)
	if got := eval[string](p, `document.querySelector("#memory .curve").getAttribute("d") ?? ""`); got != "" {
		t.Errorf("12.3 GiB are drawn as %q", got)
	}
	if got := eval[float64](p, `document.querySelector("#memory .fill").getBoundingClientRect().width`); got > 0 {
		t.Errorf("12.3 GiB are a bar of %v px", got)
	}
	slot := p.slots()[0]
	if slot.Memory != nil || slot.Network.Mean != 1200 || slot.ResponseTime.Mean != 1400 {
		t.Errorf("the slot has memory %v, network %v, response time %v",
			slot.Memory, slot.Network, slot.ResponseTime)
	}
}
