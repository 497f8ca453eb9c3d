package e2e

import (
	"os/exec"
	"strings"
	"testing"

	"sse-server/e2e/tools"
)

// listen of docs/api.md makes a new EventSource in Node, too. That of Node 20 gives up when it
// cannot connect, and sets readyState only after onerror has returned.
func TestDocsListenComesBackInNode(t *testing.T) {
	t.Parallel()
	need(t, "node")
	node := []string{"--experimental-eventsource", "--input-type=module"}
	program := `
		globalThis.addEventListener = () => {}; // there is no page
		globalThis.EventSource = class extends EventSource {
			constructor(url) { super(url); console.log("opened"); }
		};` + block(t, "docs/api.md", "(?s)```js\n(.*?)```")
	if out, err := exec.Command("node", append(node, "-e", program)...).CombinedOutput(); err != nil {
		t.Skipf("node has no EventSource: %v\n%s", err, out)
	}
	addr := tools.FreeAddr(t)
	s := startServer(t, "-addr", addr)
	program += `listen("http://` + addr + `/dashboard/stream", () => console.log("event"));`
	cmd := exec.Command("node", append(node, "-e", program)...)
	out := &tools.Output{}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cmd.Process.Kill(); cmd.Wait() }()

	eventually(t, "an event comes", func() bool { return strings.Contains(out.String(), "event") })
	s.kill()
	eventually(t, "there is a new EventSource", func() bool {
		return strings.Count(out.String(), "opened") >= 2
	})
	startServer(t, "-addr", addr)
	before := strings.Count(out.String(), "event")
	eventually(t, "an event comes again", func() bool {
		return strings.Count(out.String(), "event") > before
	})
}
