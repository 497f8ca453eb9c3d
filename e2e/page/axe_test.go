package page

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/chromedp/chromedp"
)

// axeScript is that of axe-core. It skips the test where npm cannot give it.
func axeScript(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	install := exec.Command("npm", "install", "--prefix", dir, "--no-save", "--silent",
		"--prefer-offline", "--fetch-retries=0", "--fetch-timeout=10000", "axe-core@4.14.1")
	out, err := install.CombinedOutput()
	script, readErr := os.ReadFile(filepath.Join(dir, "node_modules/axe-core/axe.min.js"))
	if err != nil || readErr != nil {
		t.Skipf("axe-core cannot be had: %v %s", err, out)
	}
	return string(script) + "; true"
}

const violations = `axe.run(document, {resultTypes: ["violations"]}).then(({violations}) =>
	violations.map(({id, help, nodes}) => [id + ": " + help,
		...nodes.map((n) => n.target + ": " + n.failureSummary)].join("\n")))`

// schemes are the media features of each look of the page.
var schemes = map[string][]string{
	"light":          {"prefers-color-scheme", "light", "forced-colors", "none"},
	"dark":           {"prefers-color-scheme", "dark", "forced-colors", "none"},
	"forced colours": {"prefers-color-scheme", "light", "forced-colors", "active"},
}

// axeFindsNothing runs axe in each look of the page.
func (p *tab) axeFindsNothing(script, state string) {
	p.Helper()
	p.waitForState(state)
	eval[bool](p, script)
	for look, features := range schemes {
		p.prefer(append(features, "prefers-reduced-motion", "reduce")...)
		eval[bool](p, drawn)
		for _, violation := range eval[[]string](p, violations) {
			p.Errorf("%s, %s: %s", state, look, violation)
		}
	}
}

func TestAxeFindsNothingOfAHost(t *testing.T) {
	t.Parallel()
	axe := axeScript(t)
	s := startServer(t, "-interval", "500ms")
	p := open(t, s.url+"/", noLocks)
	p.waitFor(`!document.querySelector("#test").hidden`)
	p.axeFindsNothing(axe, "live")
	p.do(chromedp.Focus(chromedp.CSS("#cpu .line")))
	p.waitFor(tips + ".length > 0")
	p.axeFindsNothing(axe, "live")
	eval[bool](p, hide)
	p.axeFindsNothing(axe, "paused")
	p.do(chromedp.Navigate(s.url + "/?kiosk"))
	p.axeFindsNothing(axe, "live")
	p.do(chromedp.Navigate(s.url + "/?stream=http://example.com"))
	p.axeFindsNothing(axe, "rejected")
}

func TestAxeFindsNothingOfAnAlarm(t *testing.T) {
	t.Parallel()
	axe := axeScript(t)
	s := startServer(t, "-interval", "500ms", "-probe", failing(t))
	p := open(t, s.url+"/")
	p.waitFor(`document.querySelectorAll("#activities li").length >= 2`)
	p.waitForLevel("#response_time", "2")
	p.axeFindsNothing(axe, "live")
	p.mayFail()
	s.stop()
	p.axeFindsNothing(axe, "stale")
	s.kill()
	p.axeFindsNothing(axe, "disconnected")
}

func TestAxeFindsNothingOfOtherSources(t *testing.T) {
	t.Parallel()
	axe := axeScript(t)
	s := startServer(t, "-edge")
	p := open(t, s.url+"/")
	p.axeFindsNothing(axe, "waiting")
	put := external()
	put.Status.Status = "maintenance"
	put.Metrics["queue"], put.Metrics["memory"] = "7 jobs", "12.3 GiB"
	s.put(t, put.json())
	p.waitForSource("external")
	p.axeFindsNothing(axe, "live")
	put.Status.Status = "stale"
	s.put(t, put.json())
	p.waitForText("#status", "Stale")
	p.axeFindsNothing(axe, "live")
	failed := open(t, s.url+"/", `delete globalThis.EventSource`)
	failed.axeFindsNothing(axe, "failed")
	failed.takeProblems()
}
