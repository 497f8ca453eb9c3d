package page

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"syscall"
	"testing"
)

// docsBlock returns the first block of a language in a document.
func docsBlock(t *testing.T, path, language string) string {
	t.Helper()
	text, err := os.ReadFile("../../" + path)
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile("(?s)```" + language + "\n(.*?)```").FindSubmatch(text)
	if m == nil {
		t.Fatalf("%s has no %s block", path, language)
	}
	return string(m[1])
}

// openDocsPage opens a page of another origin with code of a document. The stream comes through a
// proxy, which breakProxy makes return 502.
func openDocsPage(t *testing.T, code string) (p *tab, s *server, breakProxy func(broken bool)) {
	t.Helper()
	var stream string
	show := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprint(w, `<!doctype html><link rel="icon" href="data:,">`,
			strings.ReplaceAll(code, "http://localhost:3001", stream))
	}
	other := httptest.NewServer(http.HandlerFunc(show))
	t.Cleanup(other.Close)
	s = startServer(t, "-interval", "500ms", "-probe", failing(t), "-origins", other.URL)
	proxy, isBroken := s.inFrontOfStream(t)
	stream = proxy.URL
	return open(t, other.URL), s, func(broken bool) {
		isBroken.Store(broken)
		if broken {
			proxy.CloseClientConnections()
		}
	}
}

// The README's lines show the stream, and again after an error at which EventSource gives up.
func TestReadmeLinesShowTheStream(t *testing.T) {
	t.Parallel()
	code := docsBlock(t, "README.md", "html")
	if !strings.Contains(code, "45000") {
		t.Fatal("the README's watchdog does not wait 45 s")
	}
	p, s, breakProxy := openDocsPage(t, strings.ReplaceAll(code, "45000", "2000"))
	hasCPU := `/^\d+%$/.test(document.querySelector("#cpu").textContent)`
	p.waitFor(hasCPU)
	p.mayFail()
	breakProxy(true)
	p.waitFor("watched.streams >= 2")
	breakProxy(false)
	p.waitFor(`(document.querySelector("#cpu").textContent = "", true)`)
	p.waitFor(hasCPU)
	s.waitForStreams(t, 1)
}

// A script that a page runs again, as with Turbo, does not fail.
func TestReadmeLinesMayRunTwice(t *testing.T) {
	t.Parallel()
	code := docsBlock(t, "README.md", "html")
	_, s, _ := openDocsPage(t, code+code)
	s.waitForStreams(t, 2) // and there is nothing in the console
}

// So does listen in docs/api.md, which also closes the stream of a page that is left.
func TestDocsListenShowsTheStream(t *testing.T) {
	t.Parallel()
	code := "<script>" + docsBlock(t, "docs/api.md", "js") + "</script>" +
		docsBlock(t, "docs/api.md", "html")
	p, s, breakProxy := openDocsPage(t, code)
	p.waitFor(`document.querySelector("#status").textContent` +
		`.startsWith("critical: Health probe answers 500, since ")`)
	p.waitFor(`/^CPU \d+%, memory \d+%, response N\/A$/` +
		`.test(document.querySelector("#metrics").textContent)`)
	p.waitFor(`[...document.querySelectorAll("#activities .activity-error")]` +
		`.some((e) => /answers 500/.test(e.textContent))`)
	p.mayFail()
	breakProxy(true)
	p.waitFor("watched.streams >= 3")
	breakProxy(false)
	p.waitFor(`(document.querySelector("#status").textContent = "", true)`)
	p.waitFor(`document.querySelector("#status").textContent.startsWith("critical")`)
	s.waitForStreams(t, 1)

	// Left, and come back to.
	eval[bool](p, `dispatchEvent(new PageTransitionEvent("pagehide", {persisted: true}))`)
	s.waitForStreams(t, 0)
	comeBack := `dispatchEvent(new PageTransitionEvent("pageshow", {persisted: true}))`
	eval[bool](p, comeBack)
	s.waitForStreams(t, 1)

	// Closed for good.
	eval[bool](p, `document.dispatchEvent(new Event("turbo:before-render"))`)
	s.waitForStreams(t, 0)
	streams := eval[int](p, "watched.streams")
	eval[bool](p, comeBack)
	if n := eval[int](p, "watched.streams"); n != streams {
		t.Errorf("a closed stream was opened again: %d streams, then %d", streams, n)
	}
}

// A snapshot of somebody else's may have no key that the page shows.
func TestDocsListenShowsAnySnapshot(t *testing.T) {
	t.Parallel()
	code := "<script>" + docsBlock(t, "docs/api.md", "js") + "</script>" +
		docsBlock(t, "docs/api.md", "html")
	p, s, _ := openDocsPage(t, code)
	s.put(t, `{"system_status":{"status":"online","message":"Shop is open"}}`)
	p.waitFor(`document.querySelector("#status").textContent === "online: Shop is open"`)
	s.put(t, `{"orders":42}`)
	p.waitFor(`!document.querySelector("#status").textContent.includes("Shop")`)
	p.waitFor(`document.querySelector("#activities").children.length === 0`)
}

// A stream that falls silent without an error is replaced.
func TestDocsListenReplacesASilentStream(t *testing.T) {
	t.Parallel()
	code := docsBlock(t, "docs/api.md", "js")
	if !strings.Contains(code, "45000") {
		t.Fatal("listen does not wait 45 s")
	}
	code = "<script>" + strings.ReplaceAll(code, "45000", "2000") + "</script>" +
		docsBlock(t, "docs/api.md", "html")
	p, s, _ := openDocsPage(t, code)
	p.waitFor(`document.querySelector("#status").textContent.startsWith("critical")`)
	s.cmd.Process.Signal(syscall.SIGSTOP) // the proxy keeps the stream open
	p.waitFor("watched.streams >= 2")
}
