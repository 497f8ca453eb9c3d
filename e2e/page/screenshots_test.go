package page

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

// shoot writes a picture of the page. Where whole, the picture is as high as the page.
func (p *tab) shoot(name string, width, height int64, scale float64, whole bool) {
	p.Helper()
	p.do(chromedp.EmulateViewport(width, height, chromedp.EmulateScale(scale)))
	time.Sleep(3 * time.Second) // what is new stands out for a moment
	shot := chromedp.CaptureScreenshot()
	if whole {
		shot = chromedp.FullScreenshot(100)
	}
	png, err := chromedp.Run(p.ctx, shot)
	if err == nil {
		err = os.WriteFile(filepath.Join(os.Getenv("SSE_PAGE_SCREENSHOTS"), name+".png"), png, 0o644)
	}
	if err != nil {
		p.Error(err)
	}
}

// work keeps the processors busy in bursts, so that there is something to see.
func work(during time.Duration) {
	for end := time.Now().Add(during); time.Now().Before(end); time.Sleep(4 * time.Second) {
		burn()
	}
}

func TestScreenshots(t *testing.T) {
	t.Parallel()
	if os.Getenv("SSE_PAGE_SCREENSHOTS") == "" {
		t.Skip("SSE_PAGE_SCREENSHOTS names no directory")
	}
	wait, err := time.ParseDuration(os.Getenv("SSE_PAGE_SCREENSHOTS_AFTER"))
	if err != nil {
		wait = 20 * time.Second
	}
	probe, fails := toggled(t)
	s := startServer(t, "-interval", "500ms", "-probe", probe)
	alarmed := startServer(t, "-interval", "500ms", "-probe", failing(t))
	work(wait)

	p := open(t, s.url+"/")
	p.waitFor(`!document.querySelector("#test").hidden`)
	p.do(chromedp.Click(chromedp.CSS("#test")))
	p.shootLooks()
	fails.Store(true)
	work(7 * time.Second)
	fails.Store(false)
	p.waitForLevel("#response_time", "0")
	p.shoot("outage", 1280, 800, 2, false)
	p.do(chromedp.Focus(chromedp.CSS("#cpu .line")))
	p.do(chromedp.KeyEvent(kb.ArrowLeft))
	p.shoot("tooltip", 1280, 800, 2, false)

	p.do(chromedp.Navigate(alarmed.url + "/"))
	p.waitForState("live")
	p.shoot("alarmed", 1280, 800, 2, false)
	p.shoot("alarmed-phone", 375, 812, 2, true)
	p.do(chromedp.Navigate(alarmed.url + "/?kiosk"))
	p.waitForState("live")
	p.shoot("alarmed-tv", 1920, 1080, 1, false)
	p.mayFail()
	alarmed.kill()
	p.waitForState("disconnected")
	p.shoot("disconnected-tv", 1920, 1080, 1, false)

	paused := open(t, s.url+"/", noLocks)
	paused.waitForState("live")
	eval[bool](paused, hide)
	paused.waitForState("paused")
	paused.shoot("paused", 1280, 800, 2, false)
}

// shootLooks takes pictures of a live page on different screens and with different preferences.
func (p *tab) shootLooks() {
	p.shoot("light", 1280, 960, 2, false)
	p.shoot("1280x800", 1280, 800, 2, false)
	p.shoot("narrow", 320, 700, 2, true)
	p.shoot("phone", 375, 812, 2, true)
	p.shoot("wide", 2560, 1440, 1, false)
	p.prefer("prefers-color-scheme", "dark")
	p.shoot("dark", 1280, 960, 2, false)
	p.prefer("forced-colors", "active", "prefers-color-scheme", "dark")
	p.shoot("forced-colours", 1280, 800, 2, false)
	p.prefer("forced-colors", "active", "prefers-color-scheme", "light")
	p.shoot("forced-colours-light", 1280, 800, 2, false)
	call(p, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Media: "print"})
	p.shoot("print", 794, 1123, 2, true) // A4
	call(p, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{})
	here := eval[string](p, "location.href")
	p.do(chromedp.Navigate(here + "?kiosk"))
	p.waitForState("live")
	p.shoot("tv", 1920, 1080, 1, false)
	p.do(chromedp.Navigate(here))
	p.waitForState("live")
}

func TestScreenshotsOfOtherSources(t *testing.T) {
	t.Parallel()
	if os.Getenv("SSE_PAGE_SCREENSHOTS") == "" {
		t.Skip("SSE_PAGE_SCREENSHOTS names no directory")
	}
	s := startServer(t, "-edge")
	p := open(t, s.url+"/")
	p.waitForState("waiting")
	p.shoot("waiting", 1280, 800, 2, false)
	put := madeUp("45%", activity{"15:04:05", "Deployed v42", "success", "activity-success"})
	s.put(t, put.json())
	p.waitForCPU("45%")
	p.shoot("external", 1280, 800, 2, false)
	put.Metrics["memory"] = "12.3 GiB"
	put.Metrics["queue_length"] = "17 jobs"
	put.Metrics["database"] = "PostgreSQL 17, 42 connections"
	put.Status.Status, put.Status.Message = "maintenance", "Back at 16:00"
	s.put(t, put.json())
	p.waitFor(`document.querySelector("[data-metric=queue_length]")`)
	p.shoot("external-unknown", 1280, 800, 2, false)
	p.shoot("external-unknown-phone", 375, 812, 2, true)
	put.Status.Status, put.Status.Message = "stale", "No snapshot since 15:04:05"
	s.put(t, put.json())
	p.waitForText("#status", "Stale")
	p.shoot("external-stale", 1280, 800, 2, false)
	p.mayFail()
	s.kill()
	p.waitForState("disconnected")
	p.shoot("disconnected", 1280, 800, 2, false)
	s.restart(t)
	p.waitForState("waiting")
	p.shoot("waiting-again", 1280, 800, 2, false)

	failed := open(t, s.url+"/", `delete globalThis.EventSource`)
	failed.waitForState("failed")
	failed.shoot("failed", 1280, 800, 2, false)
	failed.takeProblems()
}
