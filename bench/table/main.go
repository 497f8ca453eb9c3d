// Command table makes RESULTS.md, the raw figures and the plots' data of what compare.sh measured:
// go run ./bench/table RUNS OUT LOAD.
package main

import (
	"encoding/json"
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"sort"
	"strconv"
	"strings"
	"time"
)

// A run is what sse-client said, as far as it stands in a table.
type run struct {
	Open     int       `json:"streams_open"`
	Bytes    float64   `json:"bytes_per_delivery"`
	Memory   float64   `json:"rss_per_stream_kib"`
	Resident float64   `json:"rss_after_mib"`
	CPU      float64   `json:"cpu_us_per_delivery"`
	First    quantiles `json:"first_event_ms"`
	Spread   quantiles `json:"spread_ms"`
	Last     quantiles `json:"last_delivery_ms"`
}

type quantiles struct{ P50, Max float64 }

// A row is all runs of one server with as many streams. The last one of a server may be the turn
// in which it was asked for as many as the client can open; nothing was published in that.
type row struct {
	server  string
	streams int
	most    bool
	runs    []run
}

// servers are in the order of the tables: the name of its files, its name, what it is.
var servers = [][3]string{
	{"sse-server", "sse-server", "this one"},
	{"rails", "Rails", "`ActionController::Live` in Puma: [rails/](rails)"},
	{"naive", "naive", "the usual Go server, a goroutine and a channel for each client: [naive/](naive)"},
	{"limit", "limit", "the least that a server can do, one write(2) a stream in C: [limit.c](limit.c)"},
}

func main() {
	log.SetFlags(0)
	log.SetPrefix("bench/table: ")
	if len(os.Args) != 4 {
		log.Fatal("usage: go run ./bench/table RUNS OUT LOAD")
	}
	from, to := os.Args[1], os.Args[2]
	var rows []row
	for _, s := range servers {
		rows = append(rows, read(from, to, s[0], s[1])...)
	}
	stops, _ := os.ReadFile(filepath.Join(from, "stops.tsv")) // there is none if no server stopped
	write(filepath.Join(to, "RESULTS.md"), results(rows, string(stops), os.Args[3]))
	write(filepath.Join(to, "results", "plot.tsv"), plot(rows))
	if len(rows) == 0 {
		log.Fatal("no figures came out")
	}
	for _, r := range rows {
		if !r.most && (r.median(last) == 0 || r.median(cpu) == 0 && r.streams >= 1000) {
			log.Fatalf("no figures came out for %s with %d streams", r.server, r.streams)
		}
		if x, y := r.median(size), rows[0].median(size); !r.most && (x > 1.1*y || y > 1.1*x) {
			log.Printf("%s with %d streams: events of %.0f bytes, not %.0f", r.server, r.streams, x, y)
		}
	}
}

// read gives a server's rows, fewest streams first, and keeps what it read as one file.
func read(from, to, file, server string) []row {
	names, err := filepath.Glob(filepath.Join(from, file+"-*-*.json"))
	if err != nil {
		log.Fatal(err)
	}
	rows := map[int]*row{}
	raw := map[string]json.RawMessage{}
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			log.Fatal(err)
		}
		var x run
		if json.Unmarshal(b, &x) != nil {
			log.Printf("%s holds no figures: %.200s", filepath.Base(name), b)
			continue
		}
		key := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(name), file+"-"), ".json")
		streams, turn, _ := strings.Cut(key, "-")
		n, _ := strconv.Atoi(streams)
		if rows[n] == nil {
			rows[n] = &row{server: server, streams: n, most: turn == "most"}
		}
		rows[n].runs = append(rows[n].runs, x)
		raw["streams "+streams+", turn "+turn] = b
	}
	if len(raw) > 0 {
		b, _ := json.MarshalIndent(raw, "", "  ")
		write(filepath.Join(to, "results", file+".json"), string(b)+"\n")
	}
	var all []row
	for _, r := range rows {
		all = append(all, *r)
	}
	sort.Slice(all, func(i, j int) bool { return all[i].streams < all[j].streams })
	return all
}

// results is the page.
func results(rows []row, stops, load string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# Results\n\nWritten by `bench/compare.sh`. The server ran on one core and sse-client on another, "+
		"over loopback, without\nperiodic snapshots; an event went to all streams whenever it was triggered. "+
		"Medians of the turns.\n\n%s\n", about(load))
	fmt.Fprint(&b, "| server | streams | memory per stream | CPU per delivery | ratio to limit | first event "+
		"| spread | last stream reached | ratio to limit | bytes |\n"+
		"| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n")
	for _, r := range rows {
		if r.most {
			continue
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s | %s | %s (%s) | %s | %.0f |\n", r.server,
			thousands(r.streams), kib(r.median(memory)), us(r.median(cpu)), ratio(rows, r, cpu),
			ms(r.median(first)), ms(r.median(spread)), ms(r.median(last)), ms(r.worst()),
			ratio(rows, r, last), r.median(size))
	}
	fmt.Fprint(&b, "\n- First event: from the first byte sent to connect, half of the streams. Spread: one event, from "+
		"the first to the last stream.\n- Last stream reached: from the request for an event until each stream had it; "+
		"in parentheses the worst of all.\n- Memory is resident and without socket buffers, which are the kernel's. "+
		"CPU is the whole process, divided by the deliveries.\n- A full run opens 100 streams at 200 a second, 1,000 at "+
		"400, 10,000 at 2,000, and\n  more at 1,000 a second.\n\n")
	fmt.Fprint(&b, "| server | | streams at most | why not more |\n| --- | --- | ---: | --- |\n")
	for _, s := range servers {
		if n, why := atMost(rows, stops, s[0], s[1]); n > 0 {
			fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", s[1], s[2], thousands(n), why)
		}
	}
	return b.String()
}

// about says where and with what it was measured.
func about(load string) string {
	var b strings.Builder
	cores, model := runtime.NumCPU(), grep("/proc/cpuinfo", `(?m)^model name\s*: (.*)`)
	memory, _ := strconv.Atoi(grep("/proc/meminfo", `MemTotal:\s*(\d+)`))
	kernel := grep("/proc/sys/kernel/osrelease", `^[\d.]+`)
	fmt.Fprintf(&b, "- %s; %d cores (%s), %d GiB, Linux %s; load before %s\n",
		time.Now().UTC().Format("2006-01-02"), cores, model, (memory+1<<19)>>20, kernel, load)
	fmt.Fprintf(&b, "- Go %s", strings.TrimPrefix(runtime.Version(), "go"))
	for _, c := range [][]string{
		{"ruby", "-e", `require "puma/const"; require "rails/version"
			print "Ruby #{RUBY_VERSION}, Rails #{Rails.version}, Puma #{Puma::Const::VERSION}"`},
		{"cc", "--version"},
	} {
		if out, err := exec.Command(c[0], c[1:]...).Output(); err == nil {
			version, _, _ := strings.Cut(string(out), "\n")
			fmt.Fprintf(&b, ", %s", version)
		}
	}
	return b.String() + "\n"
}

// atMost gives the most streams that a server held in any run, and why it did not hold more.
func atMost(rows []row, stops, file, server string) (most int, why string) {
	asked := 0
	for _, r := range rows {
		for _, x := range r.runs {
			if r.server == server && x.Open > most {
				most = x.Open
			}
		}
		if r.server == server && r.streams > asked {
			asked = r.streams
		}
	}
	if most == asked {
		why = "not asked for more"
	}
	for _, line := range strings.Split(stops, "\n") {
		f := strings.SplitN(line, "\t", 3)
		if len(f) < 3 || f[0] != file {
			continue
		}
		n, _ := strconv.Atoi(f[1])
		if n == most {
			return most, "the client can open no more here"
		}
		if m := regexp.MustCompile(`state="(.*)"`).FindStringSubmatch(f[2]); m != nil {
			f[2] = m[1]
		}
		return most, fmt.Sprintf("asked for %s, it said: %s", thousands(n), f[2])
	}
	return most, why
}

// plot gives a block for each server: streams, resident MiB, ms to the last stream, and the
// server's name at the last point of either line.
func plot(rows []row) string {
	var b strings.Builder
	for i, r := range rows {
		name, end := r.server, i+1 == len(rows) || rows[i+1].server != r.server
		if i == 0 || rows[i-1].server != name {
			fmt.Fprint(&b, "\n\n")
		}
		streams, latency, names := r.streams, "?", "\t"
		if r.most {
			streams = r.runs[0].Open
		} else {
			latency = fmt.Sprintf("%.3f", r.median(last))
		}
		switch {
		case end && r.most:
			names = name + "\t"
		case end:
			names = name + "\t" + name
		case rows[i+1].most:
			names = "\t" + name
		}
		fmt.Fprintf(&b, "%d\t%.2f\t%s\t%s\n", streams, r.median(resident), latency, names)
	}
	return strings.TrimLeft(b.String(), "\n")
}

func cpu(x run) float64      { return x.CPU }
func first(x run) float64    { return x.First.P50 }
func last(x run) float64     { return x.Last.P50 }
func memory(x run) float64   { return x.Memory }
func resident(x run) float64 { return x.Resident }
func size(x run) float64     { return x.Bytes }
func spread(x run) float64   { return x.Spread.P50 }

func (r row) median(of func(run) float64) float64 {
	var all []float64
	for _, x := range r.runs {
		all = append(all, of(x))
	}
	sort.Float64s(all)
	return (all[(len(all)-1)/2] + all[len(all)/2]) / 2
}

func (r row) worst() (max float64) {
	for _, x := range r.runs {
		if x.Last.Max > max {
			max = x.Last.Max
		}
	}
	return max
}

// ratio compares with the limit at as many streams.
func ratio(rows []row, r row, of func(run) float64) string {
	for _, l := range rows {
		if l.server == "limit" && l.streams == r.streams && l.median(of) > 0 && r.median(of) > 0 {
			return fmt.Sprintf("%.2f", r.median(of)/l.median(of))
		}
	}
	return "–"
}

func ms(x float64) string {
	switch {
	case x >= 10000:
		return fmt.Sprintf("%.1f s", x/1000)
	case x >= 1000:
		return fmt.Sprintf("%.2f s", x/1000)
	case x >= 10:
		return fmt.Sprintf("%.0f ms", x)
	}
	return fmt.Sprintf("%.1f ms", x)
}

// us shows CPU time. Linux counts it in 1/100 s: a short run may have used less.
func us(x float64) string {
	if x == 0 {
		return "–"
	}
	return fmt.Sprintf("%.1f µs", x)
}

func kib(x float64) string {
	if x < 0.1 {
		return "< 0.1 KiB"
	}
	return fmt.Sprintf("%.1f KiB", x)
}

func thousands(n int) string {
	if n < 1000 {
		return strconv.Itoa(n)
	}
	return fmt.Sprintf("%d,%03d", n/1000, n%1000)
}

// grep gives what pattern, or its group, matches in a file.
func grep(file, pattern string) string {
	b, _ := os.ReadFile(file) // "" where there is no such file
	m := regexp.MustCompile(pattern).FindStringSubmatch(string(b))
	if m == nil {
		return ""
	}
	return m[len(m)-1]
}

func write(name, text string) {
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		log.Fatal(err)
	}
}
