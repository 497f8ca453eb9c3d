package page

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A driver controls a browser other than Chromium with the commands of WebDriver. Firefox takes
// them on a socket (Marionette), WebKit over HTTP.
type driver struct {
	*testing.T
	send func(command string, params any) (json.RawMessage, error)
}

func (d *driver) command(name string, params any) json.RawMessage {
	d.Helper()
	result, err := d.send(name, params)
	if err != nil {
		d.Fatalf("%s: %v", name, err)
	}
	return result
}

func (d *driver) navigate(url string) {
	d.Helper()
	d.command("WebDriver:Navigate", map[string]any{"url": url})
}

// newTab opens a tab in front of the others, shows url in it and returns its handle.
func (d *driver) newTab(url string) string {
	d.Helper()
	var made struct{ Handle string }
	json.Unmarshal(d.command("WebDriver:NewWindow", map[string]any{"type": "tab"}), &made)
	d.switchTo(made.Handle)
	d.navigate(url)
	return made.Handle
}

func (d *driver) switchTo(handle string) {
	d.Helper()
	d.command("WebDriver:SwitchToWindow", map[string]any{"handle": handle})
}

func (d *driver) handle() (handle string) {
	d.Helper()
	json.Unmarshal(d.command("WebDriver:GetWindowHandle", map[string]any{}), &handle)
	return handle
}

// value returns the value of a JavaScript expression. It may read the document, but not the names
// of the page's script.
func value[T any](d *driver, expression string) (v T) {
	d.Helper()
	params := map[string]any{"script": "return " + expression, "args": []any{}}
	result := d.command("WebDriver:ExecuteScript", params)
	if err := json.Unmarshal(result, &v); err != nil {
		d.Fatalf("%s is %s: %v", expression, result, err)
	}
	return v
}

func (d *driver) waitFor(expression string) {
	d.Helper()
	const page = `document.body.dataset.state + ": " + document.body.innerText`
	for end := time.Now().Add(2 * patience); !value[bool](d, "!!("+expression+")"); {
		if time.Now().After(end) {
			d.Fatalf("never came: %s\nthe page is %s", expression, value[string](d, page))
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func (d *driver) waitForState(state string) {
	d.Helper()
	d.waitFor(fmt.Sprintf("document.body.dataset.state === %q", state))
}

func (d *driver) text(selector string) string {
	d.Helper()
	return value[string](d, fmt.Sprintf("document.querySelector(%q).textContent.trim()", selector))
}

// startFirefox starts Firefox with preferences, lines of user.js. It skips the test without one.
func startFirefox(t *testing.T, preferences ...string) *driver {
	t.Helper()
	path := find(t, "firefox-esr", "firefox")
	profile := t.TempDir()
	preferences = append(preferences, `user_pref("marionette.port", 0);`)
	user := []byte(strings.Join(preferences, "\n"))
	if err := os.WriteFile(filepath.Join(profile, "user.js"), user, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, "--headless", "--marionette", "--no-remote", "--profile", profile)
	cmd.Env = append(os.Environ(), "HOME="+profile)
	startProcess(t, cmd)

	var port []byte
	eventually(t, "Firefox listens", func() bool {
		port, _ = os.ReadFile(filepath.Join(profile, "MarionetteActivePort"))
		return len(port) > 0
	})
	conn, err := net.Dial("tcp", "127.0.0.1:"+string(port))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })

	m := &marionette{conn: conn, reader: bufio.NewReader(conn)}
	if _, err := m.read(); err != nil { // its greeting
		t.Fatal(err)
	}
	d := &driver{T: t, send: m.send}
	d.command("WebDriver:NewSession", map[string]any{})
	return d
}

// marionette is Firefox's protocol: [0, id, command, parameters] is answered by
// [1, id, error, result], each with its length and a colon before it.
type marionette struct {
	conn   net.Conn
	reader *bufio.Reader
	id     int
}

func (m *marionette) send(command string, params any) (json.RawMessage, error) {
	m.id++
	message, err := json.Marshal([]any{0, m.id, command, params})
	if err != nil {
		return nil, err
	}
	m.conn.SetDeadline(time.Now().Add(3 * patience))
	if _, err := fmt.Fprintf(m.conn, "%d:%s", len(message), message); err != nil {
		return nil, err
	}
	answer, err := m.read()
	if err != nil {
		return nil, err
	}

	var parts [4]json.RawMessage
	if err := json.Unmarshal(answer, &parts); err != nil {
		return nil, err
	}
	if string(parts[2]) != "null" {
		return nil, fmt.Errorf("%s", parts[2])
	}
	return unwrap(parts[3]), nil
}

func (m *marionette) read() ([]byte, error) {
	length, err := m.reader.ReadString(':')
	if err != nil {
		return nil, err
	}
	n, err := strconv.Atoi(strings.TrimSuffix(length, ":"))
	if err != nil {
		return nil, err
	}
	message := make([]byte, n)
	_, err = io.ReadFull(m.reader, message)
	return message, err
}

// unwrap returns what is in {"value": …}.
func unwrap(result json.RawMessage) json.RawMessage {
	var wrapped struct{ Value json.RawMessage }
	json.Unmarshal(result, &wrapped)
	if wrapped.Value == nil {
		return result
	}
	return wrapped.Value
}

// startWebKit starts MiniBrowser, with a display of its own. It skips the test without one.
func startWebKit(t *testing.T) *driver {
	t.Helper()
	xvfb, path := find(t, "xvfb-run"), find(t, "WebKitWebDriver")
	browsers, _ := filepath.Glob("/usr/lib/*/webkit2gtk-4*/MiniBrowser")
	if len(browsers) == 0 {
		t.Skip("there is no MiniBrowser")
	}

	addr := freeAddr(t)
	_, port, _ := net.SplitHostPort(addr)
	cmd := exec.Command(xvfb, "-a", "-s", "-screen 0 1280x900x24", path, "--port="+port)
	cmd.Env = append(os.Environ(), "HOME="+t.TempDir(), "GSK_RENDERER=cairo", "NO_AT_BRIDGE=1")
	startProcess(t, cmd)
	w := &webKit{url: "http://" + addr + "/session"}
	eventually(t, "WebKitWebDriver listens", func() bool {
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})

	d := &driver{T: t, send: w.send}
	options := map[string]any{"binary": browsers[0], "args": []string{"--automation"}}
	always := map[string]any{"webkitgtk:browserOptions": options}
	capabilities := map[string]any{"alwaysMatch": always}
	var session struct{ SessionId string }
	answer := d.command("WebDriver:NewSession", map[string]any{"capabilities": capabilities})
	json.Unmarshal(answer, &session)
	w.url += "/" + session.SessionId
	t.Cleanup(func() { w.send("WebDriver:DeleteSession", nil) })
	return d
}

// webKit is WebDriver over HTTP.
type webKit struct {
	url string // of the session
}

// routes are those of WebDriver's commands, below the session's.
var routes = map[string]string{
	"WebDriver:NewSession":      "POST ",
	"WebDriver:DeleteSession":   "DELETE ",
	"WebDriver:Navigate":        "POST /url",
	"WebDriver:ExecuteScript":   "POST /execute/sync",
	"WebDriver:NewWindow":       "POST /window/new",
	"WebDriver:SwitchToWindow":  "POST /window",
	"WebDriver:GetWindowHandle": "GET /window",
	"WebDriver:TakeScreenshot":  "GET /screenshot",
}

func (w *webKit) send(command string, params any) (json.RawMessage, error) {
	method, path, _ := strings.Cut(routes[command], " ")
	var body io.Reader
	if method == "POST" {
		encoded, err := json.Marshal(params)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(encoded)
	}
	req, err := http.NewRequest(method, w.url+path, body)
	if err != nil {
		return nil, err
	}

	client := http.Client{Timeout: 3 * patience}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", resp.Status, answer)
	}
	return unwrap(answer), nil
}

// startProcess starts cmd, and ends it and its children with the test.
func startProcess(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		cmd.Wait()
	})
}

// find returns the path of the first of these programs. It skips the test without any.
func find(t *testing.T, names ...string) string {
	t.Helper()
	for _, name := range names {
		path, err := exec.LookPath(name)
		if err == nil {
			return path
		}
	}
	t.Skipf("there is no %s", names[0])
	return ""
}

// freeAddr is an address on this machine that nothing listens on.
func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}
