package page

import (
	"net"
	"slices"
	"strings"
	"testing"
)

const noLocks = `delete Navigator.prototype.locks;`

// hide and seek are scripts that let the page believe that it is hidden, and seen again.
const (
	hide = `Object.defineProperty(document, "hidden", {get: () => true, configurable: true}),
		Object.defineProperty(document, "visibilityState", {get: () => "hidden", configurable: true}),
		document.dispatchEvent(new Event("visibilitychange"))`
	seek = `delete document.hidden, delete document.visibilityState,
		document.dispatchEvent(new Event("visibilitychange"))`
)

func TestHiddenTabWithoutLocksIsPaused(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "500ms")
	first := open(t, s.url+"/", noLocks, ownClock)
	second := first.another(s.url+"/", noLocks, ownClock)
	first.waitForState("live")
	second.waitForState("live")
	s.waitForStreams(t, 2)
	eval[bool](second, hide)
	second.waitForState("paused")
	s.waitForStreams(t, 1)
	if got := second.text("#live"); !strings.EqualFold(got, "paused") {
		t.Errorf("beside the dot stands %q", got)
	}
	if got := eval[string](second, "document.title"); !strings.HasPrefix(got, "Paused · ") {
		t.Errorf("the title is %q", got)
	}
	eval[bool](second, "watchStates(), true")
	second.advance()
	if got := second.seen(); !slices.Equal(got, []string{"paused"}) {
		t.Errorf("within an hour the page was %q", got)
	}
	s.waitForStreams(t, 1)

	eval[bool](second, "ahead = 0, true")
	eval[bool](second, seek)
	s.waitForStreams(t, 2)
	second.waitForState("live")
	first.waitForState("live")
	eval[bool](second, `dispatchEvent(new PageTransitionEvent("pagehide", {persisted: true}))`)
	s.waitForStreams(t, 1)
	eval[bool](second, `dispatchEvent(new PageTransitionEvent("pageshow", {persisted: true}))`)
	s.waitForStreams(t, 2)
}

// A tab that tries nothing does not say that it tries again.
func TestHiddenTabWithoutServerIsPaused(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "500ms")
	p := open(t, s.url+"/", noLocks)
	p.waitForState("live")
	p.mayFail()
	s.kill()
	p.waitForState("disconnected")
	eval[bool](p, hide)
	p.waitForState("paused")
	s.restart(t)
	eval[bool](p, seek)
	p.waitForState("live")
}

func TestHiddenTabFromTheStartIsPaused(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "500ms")
	p := open(t, s.url+"/", noLocks, strings.Split(hide, ",\n\t\tdocument.dispatch")[0])
	p.waitForState("paused")
	if got := p.text("#status") + p.text("#message"); strings.Contains(got, "first snapshot") {
		t.Errorf("the page says %q", got)
	}
	eval[bool](p, seek)
	p.waitForState("live")
}

// otherHost is an address of this machine that browsers do not trust as they trust localhost.
func otherHost(t *testing.T) string {
	t.Helper()
	addresses, _ := net.InterfaceAddrs()
	for _, a := range addresses {
		network, ok := a.(*net.IPNet)
		if ok && network.IP.To4() != nil && !network.IP.IsLoopback() {
			return network.IP.String()
		}
	}
	t.Skip("this machine has no address but localhost")
	return ""
}

func TestHiddenTabOfAnotherHostIsPaused(t *testing.T) {
	t.Parallel()
	s := startServerOn(t, otherHost(t)+":0", "-interval", "500ms")
	p := open(t, s.url+"/")
	p.waitForState("live")
	if eval[bool](p, "isSecureContext || !!navigator.locks") {
		t.Fatal("the browser trusts " + s.url)
	}
	eval[bool](p, hide)
	p.waitForState("paused")
	s.waitForStreams(t, 0)
	eval[bool](p, seek)
	p.waitForState("live")
}
