package interop

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"sse-server/e2e/proxies"
	"sse-server/e2e/tools"
)

// tableBegin is the line of its file after which the table stands.
const (
	tableBegin = "<!-- measured: e2e/interop/table.sh writes the rest -->\n"
	noEvent    = "no event"
)

// A table is all that was measured.
type table struct {
	clients   []client
	versions  map[string]string // of clients and of proxies, by name
	protocols map[string]string
	ways      []way // the first is direct
	bare      []way
	cells     map[string]map[string]cell // by way and client
	skipped   []string
	commit    string
	load      string // of the machine, before
}

// other is the other server, as a way.
var other = way{name: "better-sse"}

// TestTableIsWritten measures everything and writes it down. It runs only with -table.
func TestTableIsWritten(t *testing.T) {
	if *tableFile == "" {
		t.Skip("-table names no file")
	}
	k := newKit(t)
	x := &table{versions: map[string]string{}, cells: map[string]map[string]cell{}}
	x.commit = oneLine("git", "describe", "--always", "--dirty")
	x.load, _, _ = strings.Cut(oneLine("cat", "/proc/loadavg"), " ")
	x.findClients(k)
	x.ways = append([]way{direct}, x.installed(waysThrough(proxies.All, ""))...)
	x.bare = x.installed(waysThrough(proxies.Bare, " bare"))
	x.protocols = k.protocols(t, x.clients)

	for _, w := range append(append([]way{}, x.ways...), x.bare...) {
		t.Run(w.name, func(t *testing.T) { // so that its proxy ends with it
			x.note(w, k.measure(t, k.sseServerTarget(t, w), x.clients))
		})
	}
	t.Run(other.name, func(t *testing.T) {
		x.note(other, k.measure(t, k.betterSSE(t), x.clients))
	})
	x.write(t)
}

func (x *table) findClients(k *kit) {
	for _, c := range clients {
		version, err := k.versionOf(c)
		if err != nil {
			x.skipped = append(x.skipped, fmt.Sprintf("%s: %v", c.name, err))
			continue
		}
		x.clients = append(x.clients, c)
		x.versions[c.name] = version
	}
}

func (x *table) installed(ways []way) (there []way) {
	for _, w := range ways {
		program := w.proxy.Missing()
		if program != "" {
			x.skipped = append(x.skipped, w.name+": "+program+" is not installed")
			continue
		}
		there = append(there, w)
		if w.proxy.Version != nil {
			out, _ := exec.Command(w.proxy.Version[0], w.proxy.Version[1:]...).CombinedOutput()
			x.versions[w.name] = versionNumber.FindString(string(out))
		}
	}
	return there
}

func (x *table) note(w way, cells []cell) {
	x.cells[w.name] = map[string]cell{}
	for _, c := range cells {
		x.cells[w.name][c.client.name] = c
	}
}

// betterSSE is the other server: it sends what the server under test sends here.
func (k *kit) betterSSE(t *testing.T) target {
	t.Helper()
	addr := tools.FreeAddr(t)
	_, port, _ := strings.Cut(addr, ":")
	return target{
		addr: addr, path: "/stream", way: other,
		command: func() *exec.Cmd {
			return exec.Command("node", k.dir+"/testdata/node/better-sse.mjs", port)
		},
	}
}

// write puts the table into its file, after what people wrote there.
func (x *table) write(t *testing.T) {
	t.Helper()
	old, err := os.ReadFile(*tableFile)
	if err != nil {
		t.Fatal(err)
	}
	head, _, found := strings.Cut(string(old), tableBegin)
	if !found {
		t.Fatalf("%s has no line %s", *tableFile, tableBegin)
	}

	parts := []string{x.origin(), x.delays(), x.conspicuous(), x.wayRows(), x.clientRows(),
		x.bareRows(), x.comparison()}
	if len(x.skipped) > 0 {
		parts = append(parts, "Not measured here:\n\n- "+strings.Join(x.skipped, "\n- ")+"\n")
	}
	text := head + tableBegin + "\n" + strings.Join(parts, "\n")
	err = os.WriteFile(*tableFile, []byte(text), 0o644)
	if err != nil {
		t.Fatal(err)
	}
}

// origin says where and when the table was measured.
func (x *table) origin() string {
	return fmt.Sprintf("Measured at %s on %s, on %d cores with a load of %s before, %s, "+
		"with all clients at the same time.\n",
		x.commit, time.Now().UTC().Format("2 January 2006"),
		runtime.NumCPU(), x.load, oneLine("uname", "-sr"))
}

// oneLine is the output of a command that prints one line.
func oneLine(name string, args ...string) string {
	out, _ := exec.Command(name, args...).Output()
	return strings.TrimSpace(string(out))
}

// row is a line of a Markdown table.
func row(columns ...string) string { return "| " + strings.Join(columns, " | ") + " |\n" }

func head(columns ...string) string {
	return row(columns...) + row(slices.Repeat([]string{"---"}, len(columns))...)
}

func names(ways []way) (all []string) {
	for _, w := range ways {
		all = append(all, w.name)
	}
	return all
}

func milliseconds(d time.Duration) string {
	return fmt.Sprint(d.Round(time.Millisecond).Milliseconds())
}

// spread is the median and the worst of some delays.
func spread(delays []time.Duration) string {
	if len(delays) == 0 {
		return "–"
	}
	return milliseconds(median(delays)) + " / " + milliseconds(worst(delays))
}

// String is a cell as the table of delays shows it.
func (c cell) String() string {
	if c.problem != "" || len(c.delays) == 0 {
		return noEvent
	}
	return spread(c.delays)
}

func (x *table) delays() string {
	text := "## Delays\n\nMedian and worst delay of ten events, in ms.\n\n"
	text += head(append([]string{"client"}, names(x.ways)...)...)
	for _, c := range x.clients {
		columns := []string{c.name}
		for _, w := range x.ways {
			columns = append(columns, x.cells[w.name][c.name].String())
		}
		text += row(columns...)
	}
	return text
}

// conspicuous lists what is not as it should be in the table of delays.
func (x *table) conspicuous() string {
	var all []string
	for _, w := range x.ways {
		for _, c := range x.clients {
			wrongs := x.cells[w.name][c.name].wrongs(late, w)
			if len(wrongs) > 0 {
				text := strings.Join(wrongs, "; ")
				all = append(all, fmt.Sprintf("- %s, %s: %s.\n", c.name, w.name, text))
			}
		}
	}
	if len(all) == 0 {
		return fmt.Sprintf("In all %d cells: a median of at most %s ms, both heartbeats, an orderly end, "+
			"and each client that comes back by itself came back.\n",
			len(x.ways)*len(x.clients), milliseconds(late))
	}
	return "Not as it should be:\n\n" + strings.Join(all, "")
}

func (x *table) wayRows() string {
	text := "## Ways\n\n" + head("way", "version", "configuration", "needs", "TLS", "HTTP/2")
	for _, w := range x.ways {
		if w.proxy == nil {
			text += row(w.name, "–", "–", "–", "no", "no")
			continue
		}
		configuration, needs := "its own defaults", "nothing"
		if w.proxy.File != "" {
			configuration = fmt.Sprintf("[deploy/%s](../deploy/%s)", w.proxy.File, w.proxy.File)
			needs = "–"
		}
		if w.proxy.Line != "" {
			needs = "`" + w.proxy.Line + "`"
		}
		text += row(w.name, x.versions[w.name], configuration, needs,
			yes(w.proxy.TLS), yes(w.proxy.HTTP2))
	}
	return text
}

func yes(is bool) string {
	if is {
		return "yes"
	}
	return "no"
}

// clientRows shows what a client does directly, and over TLS.
func (x *table) clientRows() string {
	text := "## Clients\n\nHeartbeats, end and return are those of the direct stream. " +
		"Heartbeats: median and worst delay in ms.\n\n" +
		head("client", "version", "HTTP over TLS", "stream", "heartbeats", "end", "comes back",
			"trusts the test's authority by")
	for _, c := range x.clients {
		got := x.cells[direct.name][c.name]
		encoding := "plain"
		if got.encoding == "gzip" {
			encoding = "gzip"
		}
		text += row(c.name, x.versions[c.name], x.protocols[c.name], encoding, got.heartbeatText(),
			got.endText(), got.backText(), c.trusts)
	}
	return text
}

func (c cell) heartbeatText() string {
	if !c.client.comments {
		return "not visible"
	}
	return spread(c.heartbeats)
}

func (c cell) endText() string {
	switch c.end {
	case "":
		return "not visible"
	case cleanEnd:
		return cleanEnd
	}
	return "an error"
}

func (c cell) backText() string {
	switch {
	case c.back > 0:
		return fmt.Sprintf("after %.1f s", c.back.Seconds())
	case c.client.returns:
		return "**no**"
	}
	return "not by itself"
}

func (x *table) bareRows() string {
	text := "## Proxies without any settings\n\nOver plain HTTP, with the server's address and " +
		"nothing else. Median and worst in ms.\n\n" +
		head(append([]string{"client"}, names(x.bare)...)...)
	for _, c := range x.clients {
		columns := []string{c.name}
		for _, w := range x.bare {
			columns = append(columns, x.cells[w.name][c.name].String())
		}
		text += row(columns...)
	}
	return text
}

func (x *table) comparison() string {
	text := "## The same with another server\n\n" +
		"[better-sse](https://github.com/MatthewWid/better-sse) in Node, direct. " +
		"Median and worst in ms.\n\n" +
		head("client", "delay", "better-sse", "end", "better-sse", "comes back", "better-sse")
	for _, c := range x.clients {
		ours, theirs := x.cells[direct.name][c.name], x.cells[other.name][c.name]
		text += row(c.name, ours.String(), theirs.String(), ours.endText(), theirs.endText(),
			ours.backText(), theirs.backText())
	}
	return text
}
