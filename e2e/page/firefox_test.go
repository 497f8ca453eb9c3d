package page

import (
	"fmt"
	"testing"
)

func TestFirefoxIsLiveWithoutCookies(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "500ms")
	d := startFirefox(t, `user_pref("network.cookie.cookieBehavior", 2);`)
	d.navigate(s.url + "/")
	d.waitForState("live")
	first := d.text("#checked")
	d.waitFor(fmt.Sprintf(`document.querySelector("#checked").textContent !== %q`, first))

	// Each tab reads a stream of its own then.
	d.newTab(s.url + "/")
	d.waitForState("live")
	s.waitForStreams(t, 2)
}
