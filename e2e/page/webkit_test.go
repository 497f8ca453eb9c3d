package page

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestWebKitShowsThePageInTwoTabs(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "500ms")
	newest := s.follow(t)
	d := startWebKit(t)
	d.navigate(s.url + "/")
	d.waitForState("live")
	if got := s.compressed(t); got != 1 {
		t.Errorf("%d compressed streams are open, want 1", got)
	}
	for _, key := range tiles {
		unit := strings.TrimLeft(newest().Metrics[key], "0123456789.")
		const ends = `document.querySelector("#%s .value").textContent.endsWith(%q)`
		d.waitFor(fmt.Sprintf(ends, key, unit))
	}
	d.waitFor(`document.querySelector("#memory .curve").getAttribute("d")?.length > 10`)

	first := d.handle()
	d.newTab(s.url + "/")
	d.waitForState("live")
	before := d.text("#checked")
	d.waitFor(fmt.Sprintf(`document.querySelector("#checked").textContent !== %q`, before))
	s.waitForStreams(t, 2) // the one of follow, and one for both tabs
	d.switchTo(first)
	d.waitForState("live")

	var png []byte
	var text string
	json.Unmarshal(d.command("WebDriver:TakeScreenshot", nil), &text)
	png, err := base64.StdEncoding.DecodeString(text)
	if err != nil || len(png) < 10_000 {
		t.Errorf("a screenshot has %d bytes: %v", len(png), err)
	}
	if dir := os.Getenv("SSE_PAGE_SCREENSHOTS"); dir != "" {
		os.WriteFile(filepath.Join(dir, "webkit.png"), png, 0o644)
	}
}

// compressed tells how many of the open streams are compressed.
func (s *server) compressed(t *testing.T) (n int) {
	t.Helper()
	var state struct {
		Streams []struct{ Encoding, User_Agent string }
	}
	get(t, s.url+"/dashboard/debug", &state)
	for _, stream := range state.Streams {
		if stream.Encoding == "gzip" && strings.Contains(stream.User_Agent, "AppleWebKit") {
			n++
		}
	}
	return n
}
