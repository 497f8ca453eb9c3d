package page

import (
	"fmt"
	"testing"
	"time"
)

func TestFirefoxIsLiveWithoutCookies(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "500ms")
	d := startFirefox(t, `user_pref("network.cookie.cookieBehavior", 2);`)
	d.navigate(s.url + "/")
	d.waitForState("live")
	first := d.text("#checked")
	d.waitFor(fmt.Sprintf(`document.querySelector("#checked").textContent !== %q`, first))

	// Each tab reads a stream of its own then, while it is seen.
	tab := d.handle()
	d.newTab(s.url + "/")
	d.waitForState("live")
	s.waitForStreams(t, 1)
	d.switchTo(tab)
	d.waitForState("live")
}

// A tab behind another one is really hidden here.
func TestFirefoxPausesAHiddenTab(t *testing.T) {
	t.Parallel()
	s := startServerOn(t, otherHost(t)+":0", "-interval", "500ms")
	d := startFirefox(t)
	d.navigate(s.url + "/")
	d.waitForState("live")
	first := d.handle()
	if value[bool](d, "isSecureContext") {
		t.Fatal("the browser trusts " + s.url)
	}
	d.newTab("about:blank")
	s.waitForStreams(t, 0)
	time.Sleep(11 * time.Second) // it said "Stale" after ten

	d.command("WebDriver:SwitchToWindow", map[string]any{"handle": first, "focus": false})
	if !value[bool](d, "document.hidden") {
		t.Fatal("the tab is not hidden")
	}
	d.waitForState("paused")
	d.switchTo(first)
	d.waitForState("live")
	s.waitForStreams(t, 1)
}

func TestFirefoxShowsThePeaks(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "100ms")
	d := startFirefox(t)
	d.navigate(s.url + "/")
	d.waitForState("live")
	for range 3 {
		burn()
		time.Sleep(1300 * time.Millisecond) // so that not each slot is alike
	}
	eventually(t, "the highest CPU is that of the history", func() bool {
		return isHighest(d.text("#cpu .highest"), s.history(t).highest())
	})
	d.navigate(s.url + "/")
	d.waitFor(`document.querySelector("#cpu .band").getAttribute("d")`)
}
