package page

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
)

// As Firefox does where cookies are blocked.
const noChannel = `globalThis.BroadcastChannel = class {
	constructor() { throw new DOMException("The operation is insecure.", "SecurityError"); }
};`

func TestChannelRefusedLeavesThePageLive(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "500ms")
	first := open(t, s.url+"/", noChannel)
	second := first.another(s.url+"/", noChannel)
	for _, p := range []*tab{first, second} {
		p.waitForState("live")
		p.waitFor("tabs.isHolder && tabs.channel === null")
		p.waitFor("lines.slots.length > 0")
	}
	s.waitForStreams(t, 2)
	first.do(chromedp.Navigate("about:blank"))
	s.waitForStreams(t, 1)
	second.waitForState("live")
}

// Each is missing in some browser, or refused by its settings.
func TestScriptErrorEndsInASentence(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "500ms")
	const refuse = `globalThis.refuse = () => { throw new DOMException("refused", "SecurityError"); };`
	for name, script := range map[string]string{
		"no EventSource":        `delete globalThis.EventSource`,
		"EventSource refuses":   `globalThis.EventSource = class { constructor() { refuse(); } }`,
		"no URLSearchParams":    `delete globalThis.URLSearchParams`,
		"no template":           `delete HTMLTemplateElement.prototype.content`,
		"no BroadcastChannel":   `delete globalThis.BroadcastChannel`,
		"locks refuse at once":  `if (globalThis.LockManager) LockManager.prototype.request = refuse`,
		"locks cannot be read":  `Object.defineProperty(Navigator.prototype, "locks", {get: refuse})`,
		"channel refuses later": `BroadcastChannel.prototype.postMessage = refuse`,
	} {
		p := open(t, s.url+"/", refuse+script)
		p.waitFor(`["live", "failed"].includes(document.body.dataset.state)`)
		state := p.attribute("body", "data-state")
		status, message := p.text("#status"), p.text("#message")
		t.Logf("%s: %s, %s", name, state, message)
		if status == "Waiting" || strings.Contains(message, "first snapshot") {
			t.Errorf("%s: the page says %q", name, status+" "+message)
		}
		if state == "failed" && (len(message) < 20 || !p.isShown("#message")) {
			t.Errorf("%s: the page says %q", name, message)
		}
		p.takeProblems()
		if state == "failed" && name != "no URLSearchParams" { // without which nothing runs at all
			eval[bool](p, "tick(), true")
			if got := p.text("#message"); got != message {
				t.Errorf("%s: the page said %q, then %q", name, message, got)
			}
		}
		p.do(chromedp.Navigate("about:blank"))
	}
}

// The script does not run where it is disabled, cannot be read or was changed on the way.
func TestScriptMissingIsNoWaiting(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	p := open(t, "about:blank")
	disabled := emulation.SetScriptExecutionDisabledParams{Value: true}
	call(p, emulation.SetScriptExecutionDisabled, disabled)
	p.do(chromedp.Navigate(s.url + "/"))
	p.saysItDoesNotRun()
	call(p, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{})

	changed := s.inFront(t, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		answer := httptest.NewRecorder()
		next.ServeHTTP(answer, r)
		w.Header().Set("Content-Type", answer.Header().Get("Content-Type"))
		w.Header().Set("Content-Security-Policy", answer.Header().Get("Content-Security-Policy"))
		page, _ := io.ReadAll(answer.Body)
		w.Write(bytes.Replace(page, []byte("</script>"), []byte(" </script>"), 1))
	})
	p.do(chromedp.Navigate(changed.URL + "/"))
	p.saysItDoesNotRun()
	p.takeProblems() // the policy refuses what was changed
}

func (p *tab) saysItDoesNotRun() {
	p.Helper()
	page := eval[string](p, "document.body.innerText")
	if strings.Contains(page, "Waiting") || strings.Contains(page, "first snapshot") {
		p.Errorf("the page says %q", page)
	}
	if message := p.text("#message"); !strings.Contains(message, "browser") {
		p.Errorf("the message is %q", message)
	}
}
