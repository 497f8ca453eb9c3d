package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestHostPercentRoundsToNearest(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		value float64
		want  string
	}{
		{0, "0%"},
		{0.49, "0%"},
		{0.5, "1%"},
		{44.6, "45%"},
		{99.5, "100%"},
		{math.NaN(), "N/A"},
	} {
		got := formatRounded(c.value, "%")
		if got != c.want {
			t.Errorf("%v is shown as %q, want %q", c.value, got, c.want)
		}
	}
}

func TestHostNetworkIsRoundedThenShown(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		mbps float64
		want string
	}{
		{0, "0.0 Mbps"},
		{0.04, "0.0 Mbps"},
		{0.05, "0.1 Mbps"},
		{0.3, "0.3 Mbps"},
		{9.94, "9.9 Mbps"},
		{9.96, "10 Mbps"},
		{10.4, "10 Mbps"},
		{10.5, "11 Mbps"},
		{125, "125 Mbps"},
		{math.NaN(), "N/A"},
	} {
		got := formatNetwork(c.mbps)
		if got != c.want {
			t.Errorf("%v is shown as %q, want %q", c.mbps, got, c.want)
		}
	}
}

func TestHostUptimeShowsTwoLargestUnits(t *testing.T) {
	t.Parallel()
	const day = 24 * time.Hour
	for _, c := range []struct {
		uptime time.Duration
		want   string
	}{
		{-1, "N/A"},
		{0, "less than a minute"},
		{59 * time.Second, "less than a minute"},
		{time.Minute, "1 minute"},
		{5*time.Minute + 59*time.Second, "5 minutes"},
		{time.Hour, "1 hour"},
		{time.Hour + 3*time.Minute, "1 hour, 3 minutes"},
		{2*time.Hour + time.Minute, "2 hours, 1 minute"},
		{day, "1 day"},
		{2*day + 5*time.Minute, "2 days"},
		{2*day + 14*time.Hour + 59*time.Minute, "2 days, 14 hours"},
		{100*day + time.Hour, "100 days, 1 hour"},
		{day + 23*time.Hour + 59*time.Minute + 59*time.Second, "1 day, 23 hours"},
		{1000*day + 23*time.Hour + 59*time.Minute + time.Second, "1000 days, 23 hours"},
	} {
		got := formatUptime(c.uptime)
		if got != c.want {
			t.Errorf("%v is shown as %q, want %q", c.uptime, got, c.want)
		}
	}
}

// Each case is two readings, two seconds apart, of another kind of machine.
func TestHostMetricsOfRecordedMachines(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		machine, sys                 string
		cpu, memory, network, uptime string
	}{
		// Busy 60+10+30 of 200 ticks; 3,000,000+500,000+250,000 bytes in 2 s, no docker, no veth.
		{"bare", "host", "50%", "50%", "15 Mbps", "2 days, 14 hours"},
		// Idle; 75,000 bytes of eth0, which is virtual there, but not of the tunnel.
		{"container", "container", "0%", "50%", "0.3 Mbps", "1 hour, 3 minutes"},
		// Busy 80+40+80 of 400: steal is busy, iowait is idle.
		{"steal", "host", "50%", "75%", "125 Mbps", "1 day, 1 hour"},
		// Eight columns only; what is cached makes no sense, so free are 300,000 of 2,048,000.
		{"no-memavailable", "host", "50%", "85%", "0.0 Mbps", "1 minute"},
		// The 90 ticks of guest are among the 100 of user.
		{"guest", "host", "50%", "50%", "0.0 Mbps", "2 days"},
		// 2,475,000 bytes are 9.9 Mbps.
		{"no-space", "host", "20%", "50%", "9.9 Mbps", "1 day, 1 hour"},
		// Busy 40 of 100, the -100 of iowait count nothing; only eth1 has two readings in order.
		{"step-back", "host", "40%", "50%", "1.0 Mbps", "2 minutes"},
	} {
		h := newTestHost(t)
		h.record(t, c.machine+"/before")
		h.recordSys(t, "sys-"+c.sys)
		m := h.measure(t)
		if !math.IsNaN(m.cpu) || !math.IsNaN(m.network) {
			t.Errorf("%s: one reading gives cpu %v, network %v", c.machine, m.cpu, m.network)
		}

		h.record(t, c.machine+"/after")
		h.clock.advance(2 * time.Second)
		got := snapshotOf(t, h.measure(t))
		want := snapshotMetrics{
			CPU:          c.cpu,
			Memory:       c.memory,
			Disk:         "23%",
			Network:      c.network,
			ResponseTime: "N/A",
		}
		if got.Metrics != want || got.SystemStatus.Uptime != c.uptime {
			t.Errorf("%s: got %+v, up %q; want %+v, %q", c.machine, got.Metrics,
				got.SystemStatus.Uptime, want, c.uptime)
		}
	}
}

func TestHostMetricIsNAIfUnreadable(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	cfg.disk = "/nowhere"
	c := newClock()
	h := newSamplerOf(cfg, noLog(), t.TempDir(), t.TempDir(), c.now)
	h.read()
	m, _ := h.sample()
	got := snapshotOf(t, m)
	const na = "N/A"
	want := snapshotMetrics{CPU: na, Memory: na, Disk: na, Network: na, ResponseTime: na}
	if got.Metrics != want || got.SystemStatus.Uptime != na {
		t.Errorf("got %+v, up %q", got.Metrics, got.SystemStatus.Uptime)
	}
}

// This machine's metrics against those of awk, free and df.
func TestHostMetricsAgreeWithTools(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("only Linux has these metrics")
	}
	h := newSampler(testConfig(t), noLog())
	var m metrics
	eventually(t, "ticks have passed", func() bool {
		h.read()
		m, _ = h.sample()
		return !math.IsNaN(m.cpu) && !math.IsNaN(m.memory) && !math.IsNaN(m.disk) && m.uptime > 0
	})
	if m.cpu < 0 || m.cpu > 100 || m.network < 0 {
		t.Errorf("cpu is %v%%, network %v Mbps", m.cpu, m.network)
	}

	for _, c := range []struct {
		name   string
		got    float64
		script string
		apart  float64
	}{
		{"uptime in s", m.uptime.Seconds(), "cut -d' ' -f1 /proc/uptime", 5},
		{"disk", m.disk, "df -P / | awk 'END {print $5+0}'", 1},
		{"memory", m.memory, "free | awk '/Mem/ {print 100*($2-$7)/$2}'", 5},
	} {
		output, err := exec.Command("sh", "-c", c.script).Output()
		if err != nil {
			t.Skipf("%s: %v", c.script, err)
		}
		want, err := strconv.ParseFloat(strings.TrimSpace(string(output)), 64)
		if err != nil {
			t.Skipf("%s: %v", c.script, err)
		}
		if math.Abs(c.got-want) > c.apart {
			t.Errorf("%s is %v, the tool says %v", c.name, c.got, want)
		}
	}
}

// busyStat is /proc/stat with one CPU.
func busyStat(busy, idle int) string {
	return fmt.Sprintf("cpu  %d 0 0 %d 0 0 0 0 0 0\ncpu0 %d 0 0 %d 0 0 0 0 0 0\n",
		busy, idle, busy, idle)
}

func TestHostCPUStaysIfNoTickHasPassed(t *testing.T) {
	t.Parallel()
	h := newTestHost(t)
	var m metrics
	for _, stat := range []string{busyStat(100, 100), busyStat(200, 200), busyStat(200, 200)} {
		write(t, h.proc+"/stat", stat)
		h.clock.advance(2 * time.Second)
		m = h.measure(t)
	}
	if m.cpu != 50 {
		t.Errorf("cpu is %v, want the last value, 50", m.cpu)
	}
}

// cpuLines are n lines of single CPUs.
func cpuLines(n int) string {
	var text strings.Builder
	for i := 0; i < n; i++ {
		fmt.Fprintf(&text, "cpu%d 1 1 1 1 1 1 1 1 0 0\n", i)
	}
	return text.String()
}

func TestHostCPUKeepsLastValueIfItCannotBeTrue(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name          string
		before, after string // of /proc/stat, two seconds apart
		cpus          int    // after
		want          float64
	}{
		{"suspend: idle falls by an hour",
			"cpu 1466797 6445 708626 6221847 7998 0 8095 0 0 0\n",
			"cpu 1466867 6445 708691 5873386 7624 0 8095 0 0 0\n", 1, 25},
		{"a CPU goes offline: idle leaps",
			"cpu 1466797 6445 708626 5873386 7998 0 8095 0 0 0\n",
			"cpu 1466867 6445 708691 6221847 7624 0 8095 0 0 0\n", 3, 25},
		{"steal leaps",
			"cpu 1000 0 1000 50000 0 0 0 100 0 0\n",
			"cpu 1010 0 1010 50100 0 0 0 18446744073700 0 0\n", 2, 25},
		{"user leaps",
			"cpu 1000 0 1000 50000 0 0 0 0 0 0\n",
			"cpu 2100 0 1000 50000 0 0 0 0 0 0\n", 2, 25},
		{"just possible with two CPUs",
			"cpu 1000 0 1000 50000 0 0 0 0 0 0\n",
			"cpu 1500 0 1000 50500 0 0 0 0 0 0\n", 2, 50},
		{"idle steps back by 3 s",
			"cpu 1000 0 1000 50300 0 0 0 0 0 0\n",
			"cpu 1100 0 1000 50000 0 0 0 0 0 0\n", 1, 100},
		{"128 busy CPUs",
			"cpu 1000 0 1000 50000 0 0 0 0 0 0\n",
			"cpu 26600 0 1000 50000 0 0 0 0 0 0\n", 128, 100},
		{"more columns than ten",
			"cpu 1000 0 1000 50000 0 0 0 0 0 0 5 6 x\n",
			"cpu 1050 0 1000 50150 0 0 0 0 0 0 9999999 9999999 y\n", 1, 25},
	} {
		m := cpuMeter{percent: 25}
		now := time.Now()
		for i, text := range []string{c.before + cpuLines(c.cpus), c.after + cpuLines(c.cpus)} {
			times, err := parseStat(text)
			if err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
			m.add(cpuReading{times: times, at: now.Add(time.Duration(i) * 2 * time.Second)})
		}
		if m.percent != c.want {
			t.Errorf("%s: cpu is %v%%, want %v%%", c.name, m.percent, c.want)
		}
	}
}

func TestHostCPUMinuteBeginsAnewAfterSuspend(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name       string
		busy, idle int // how far the counters leap
	}{
		{"suspend", 0, -360_000},
		{"user leaps by twenty seconds", 2000, 0},
	} {
		h := newTestHost(t)
		busy, idle := 1_000_000, 6_000_000
		read := func() metrics { // after two seconds at 10 %
			busy += 20
			idle += 180
			write(t, h.proc+"/stat", busyStat(busy, idle))
			h.clock.advance(2 * time.Second)
			return h.measure(t)
		}
		for i := 0; i < 32; i++ {
			read()
		}
		if got := h.cpu.lastMinute(); got != 10 {
			t.Fatalf("the last minute is %v, want 10", got)
		}

		busy += c.busy
		idle += c.idle
		for i := 0; i < 31; i++ {
			m := read()
			if m.cpu != 10 || m.status != "online" {
				t.Fatalf("%s, after %d s cpu is %v, %s, %q", c.name, 2*i, m.cpu, m.status, m.message)
			}
			isMeasured := !math.IsNaN(h.cpu.lastMinute())
			if want := i >= 30; isMeasured != want {
				t.Errorf("%s, after %d s the last minute is %v", c.name, 2*i, h.cpu.lastMinute())
			}
		}
	}
}

func TestHostMemoryIsThatOfFree(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, text, want string
	}{
		{"MemAvailable", "MemTotal: 1000 kB\nMemFree: 1 kB\nMemAvailable: 250 kB\n", "75%"},
		{"MemAvailable of 0", "MemTotal: 1000 kB\nMemFree: 900 kB\nMemAvailable: 0 kB\n", "100%"},
		{"more than all is available",
			"MemTotal: 104857600 kB\nMemFree: 52428800 kB\nMemAvailable: 133000000 kB\n", "50%"},
		{"WSL1", "MemTotal:       16647124 kB\nMemFree:         5969580 kB\n" +
			"Buffers:           34032 kB\nCached:           188576 kB\nSwapCached:            0 kB\n" +
			"Shmem:             17720 kB\nSReclaimable:       6744 kB\n", "63%"},
		{"Shmem over what is cached",
			"MemTotal: 1000 kB\nMemFree: 400 kB\nBuffers: 100 kB\nCached: 50 kB\nShmem: 90 kB\n", "50%"},
		{"caches over all memory",
			"MemTotal: 1000 kB\nMemFree: 400 kB\nBuffers: 700 kB\nCached: 50 kB\n", "60%"},
		{"an odd line", "MemTotal: 1000 kB\nMemFree 7\nMemAvailable: 250 kB\nBuffers: x kB\n", "75%"},
		{"no space, no unit", "MemTotal:1000\nMemAvailable:500\n", "50%"},
		{"no MemFree", "MemTotal: 1000 kB\nBuffers: 700 kB\n", "N/A"},
		{"MemFree over all memory", "MemTotal: 1000 kB\nMemFree: 1001 kB\n", "N/A"},
		{"MemTotal of 0", "MemTotal: 0 kB\nMemFree: 0 kB\nMemAvailable: 0 kB\n", "N/A"},
		{"negative", "MemTotal: 1000 kB\nMemFree: -5 kB\n", "N/A"},
	} {
		percent, err := parseMeminfo(c.text)
		if err != nil {
			percent = math.NaN()
		}
		if got := formatRounded(percent, "%"); got != c.want {
			t.Errorf("%s: memory is %s, %v, want %s", c.name, got, err, c.want)
		}
	}
}

func TestHostDiskRoundsUpAsDf(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		blocks, free, available float64
		want                    string
	}{
		{1000, 500, 500, "50%"},
		{1000, 499, 499, "51%"}, // 50.1
		{1000, 500, 450, "53%"}, // 500/950: what is reserved for root counts as neither
		{1000, 1000, 1000, "0%"},
		{1000, 0, 0, "100%"},
		{1000, 10, -50, "100%"},
		{1000, 2000, 500, "0%"},
		{5297, 0, 0, "100%"},
		{0, 0, 0, "N/A"},
	} {
		got := formatRounded(usedPercent(c.blocks, c.free, c.available), "%")
		if got != c.want {
			t.Errorf("%v blocks, %v free, %v available: %s, want %s",
				c.blocks, c.free, c.available, got, c.want)
		}
	}
}

func TestHostDiskThatIsReadOnlyRaisesNoAlarm(t *testing.T) {
	t.Parallel()
	for readOnly, want := range map[bool]string{true: "online", false: "critical"} {
		h := newTestHost(t)
		h.disk.reader = func() (diskUse, error) {
			return diskUse{percent: usedPercent(5297, 0, 0), readOnly: readOnly}, nil
		}
		m := h.measure(t)
		if m.disk != 100 || m.status != want || len(m.alarms) != len(h.alarmsOn()) {
			t.Errorf("read-only %v: %v%%, %s, %v", readOnly, m.disk, m.status, m.alarms)
		}
	}
}

// An iface is an interface below /sys/class/net.
type iface struct {
	name        string
	index, link int
	hasHardware bool
	master      string
}

func (h *testHost) addInterface(t testing.TB, i iface) {
	t.Helper()
	folder := h.sys + "/class/net/" + i.name
	mkdir(t, folder)
	write(t, folder+"/ifindex", fmt.Sprintln(i.index))
	write(t, folder+"/iflink", fmt.Sprintln(i.link))
	if i.hasHardware {
		symlink(t, "../../../0000:00:05.0", folder+"/device")
	}
	if i.master != "" {
		symlink(t, "../"+i.master, folder+"/master")
	}
}

// netDev is /proc/net/dev with these interfaces, each with as many bytes received.
func netDev(received int, names ...string) string {
	var text strings.Builder
	text.WriteString("Inter-|   Receive  |  Transmit\n face |bytes  packets|bytes  packets\n")
	for _, name := range names {
		fmt.Fprintf(&text, "%6s: %d 1 0 0 0 0 0 0 5000 1 0 0 0 0 0 0\n", name, received)
	}
	return text.String()
}

const routeHead = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask" +
	"\t\tMTU\tWindow\tIRTT\n"

// routeLine is a line of /proc/net/route.
func routeLine(name, destination, mask string) string {
	return name + "\t" + destination + "\t00000000\t0003\t0\t0\t0\t" + mask + "\t0\t0\t0\n"
}

// Each interface receives 1.25 MB in a second, which is 10 Mbps.
func TestHostNetworkCountsNoByteTwice(t *testing.T) {
	t.Parallel()
	eth0 := iface{name: "eth0", index: 2, link: 2, hasHardware: true}
	toEth0 := routeLine("eth0", "00000000", "00000000")
	for _, c := range []struct {
		name  string
		sys   []iface
		route string
		all   []string
		want  string
	}{
		{"a cloud's virtual function",
			[]iface{eth0, {"enP1s1", 3, 3, true, "eth0"}}, toEth0,
			[]string{"lo", "eth0", "enP1s1"}, "10 Mbps"},
		{"a VLAN on the hardware",
			[]iface{eth0, {"eth0.7", 3, 2, true, ""}}, toEth0,
			[]string{"lo", "eth0", "eth0.7"}, "10 Mbps"},
		{"virtual interfaces",
			[]iface{eth0, {"wg0", 3, 3, false, ""}, {"veth1", 4, 9, false, "br0"}}, toEth0,
			[]string{"lo", "eth0", "wg0", "veth1"}, "10 Mbps"},
		{"two with hardware below a bond",
			[]iface{{"eth0", 2, 2, true, "bond0"}, {"eth1", 3, 3, true, "bond0"},
				{"bond0", 4, 4, false, ""}}, routeLine("bond0", "00000000", "00000000"),
			[]string{"lo", "eth0", "eth1", "bond0"}, "20 Mbps"},
		{"WSL2's way to Windows",
			[]iface{eth0, {"loopback0", 3, 3, true, ""}, {"lo", 1, 1, true, ""}}, toEth0,
			[]string{"lo", "loopback0", "eth0"}, "10 Mbps"},
		{"a VPN without /sys", nil, toEth0, []string{"lo", "eth0", "wg0"}, "10 Mbps"},
		{"a VLAN without /sys", nil, toEth0, []string{"lo", "eth0", "eth0.7"}, "10 Mbps"},
		{"a modem without hardware", []iface{{"eth0", 2, 2, false, ""}, {"ppp0", 3, 3, false, ""}},
			routeLine("eth0", "0000A8C0", "0000FFFF") + routeLine("ppp0", "00000000", "00000000"),
			[]string{"lo", "eth0", "ppp0"}, "10 Mbps"},
		{"half of all addresses is no default", nil,
			routeLine("wg0", "00000000", "00000080") + toEth0,
			[]string{"lo", "eth0", "wg0"}, "10 Mbps"},
		{"no route to anywhere", nil, "", []string{"lo", "loopback0", "a", "b", "c"}, "30 Mbps"},
		{"a route that does not exist", nil, routeLine("gone", "00000000", "00000000"),
			[]string{"lo", "eth0"}, "10 Mbps"},
		{"a default route of lo", nil, routeLine("lo", "00000000", "00000000"),
			[]string{"lo", "eth0"}, "10 Mbps"},
		{"lo only", nil, "", []string{"lo"}, "N/A"},
	} {
		h := newTestHost(t)
		for _, i := range c.sys {
			h.addInterface(t, i)
		}
		write(t, h.proc+"/net/route", routeHead+c.route)
		write(t, h.proc+"/net/dev", netDev(0, c.all...))
		h.measure(t)
		write(t, h.proc+"/net/dev", netDev(1_250_000, c.all...))
		h.clock.advance(time.Second)
		if got := formatNetwork(h.measure(t).network); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

func TestHostNetworkSelectsAnewIfNamesChange(t *testing.T) {
	t.Parallel()
	h := newTestHost(t)
	h.addInterface(t, iface{name: "eth0", index: 2, link: 2, hasHardware: true})
	received := 0
	check := func(when, want string, names ...string) {
		t.Helper()
		received += 1_250_000
		write(t, h.proc+"/net/dev", netDev(received, names...))
		h.clock.advance(time.Second)
		if got := formatNetwork(h.measure(t).network); got != want {
			t.Errorf("%s: %s, want %s", when, got, want)
		}
	}

	check("first", "N/A", "lo", "eth0")
	check("second", "10 Mbps", "lo", "eth0")
	h.addInterface(t, iface{name: "wan0", index: 2, link: 2, hasHardware: true})
	check("renamed", "N/A", "lo", "wan0")
	check("renamed before", "10 Mbps", "lo", "wan0")
	h.addInterface(t, iface{name: "eth1", index: 3, link: 3, hasHardware: true})
	check("one more", "10 Mbps", "lo", "wan0", "eth1")
	check("two", "20 Mbps", "lo", "wan0", "eth1")
	check("one vanished", "10 Mbps", "lo", "eth1")
	check("only lo", "N/A", "lo")
	check("back", "N/A", "lo", "eth1")

	check("a virtual one, too", "10 Mbps", "lo", "eth1", "veth1")

	// While the names stay, /sys is not read again.
	err := os.Remove(h.sys + "/class/net/eth1/device")
	if err != nil {
		t.Fatal(err)
	}
	check("the same names", "10 Mbps", "lo", "eth1", "veth1")
	check("none has hardware", "10 Mbps", "lo", "eth1", "veth1", "wg0")
	check("three", "30 Mbps", "lo", "eth1", "veth1", "wg0")
}

func TestHostNetworkSkipsACounterThatWasReset(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name                   string
		rxBefore, txBefore     int
		rxAfter, txAfter, eth1 int
		want                   string
	}{
		{"both fell", 9e6, 9e6, 0, 0, 125_000, "1.0 Mbps"},
		{"sent fell", 1e6, 9e6, 2e6, 0, 125_000, "1.0 Mbps"},
		{"received fell, sent rose by more", 1000, 1000, 0, 9e6, 125_000, "1.0 Mbps"},
		{"none fell", 0, 0, 125_000, 125_000, 0, "2.0 Mbps"},
	} {
		h := newTestHost(t)
		count := func(rx, tx, eth1 int) {
			write(t, h.proc+"/net/dev", fmt.Sprintf("eth0: %d 0 0 0 0 0 0 0 %d 0 0 0 0 0 0 0\n"+
				"eth1: %d 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n", rx, tx, eth1))
		}
		count(c.rxBefore, c.txBefore, 0)
		h.measure(t)
		count(c.rxAfter, c.txAfter, c.eth1)
		h.clock.advance(time.Second)
		if got := formatNetwork(h.measure(t).network); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

func TestHostNetworkRateIsOverTheRealGap(t *testing.T) {
	t.Parallel()
	h := newTestHost(t)
	write(t, h.proc+"/net/dev", netDev(0, "eth0"))
	h.measure(t)
	write(t, h.proc+"/net/dev", netDev(3_750_000, "eth0"))
	h.clock.advance(200 * time.Second) // a hundred intervals
	if got := h.measure(t).network; math.Abs(got-0.15) > 1e-9 {
		t.Errorf("3,750,000 bytes in 200 s are %v Mbps, want 0.15", got)
	}
	if got := h.measure(t).network; math.Abs(got-0.15) > 1e-9 {
		t.Errorf("without a new reading there are %v Mbps, want 0.15", got)
	}
}

func TestHostNetworkLosesOnlyTheOddLine(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		line   string
		name   string // "": it is left out
		isOdd  bool
		counts uint64
	}{
		{"  eth1: 100 1 0 0 0 0 0 0 20 1 0 0 0 0 0 0", "eth1", false, 120},
		{"  eth1:100 1 0 0 0 0 0 0 20 1 0 0 0 0 0 0", "eth1", false, 120},
		{"ibr10:30: 100 1 0 0 0 0 0 0 20 1 0 0 0 0 0 0", "ibr10:30", false, 120},
		{"ibr10:30:100 1 0 0 0 0 0 0 20 1 0 0 0 0 0 0", "ibr10:30", false, 120},
		{"  eth1: 100 1 0 0 0 0 0 0 20", "", true, 0},
		{"  eth1: 100 1 0 0 0 0 0 0 20 1 0 0 0 0 0 0 7 8 9", "eth1", false, 120},
		{"  eth1: 100 1 0 0 0 0", "", true, 0},
		{"  eth1: 100 1 0 0 0 0 0 0", "", true, 0},
		{"  eth1:", "", true, 0},
		{"  eth1: x 1 0 0 0 0 0 0 20 1 0 0 0 0 0 0", "", true, 0},
		{"  eth1: -1 1 0 0 0 0 0 0 20 1 0 0 0 0 0 0", "", true, 0},
		{"  eth1: 99999999999999999999 1 0 0 0 0 0 0 20 1 0 0 0 0 0 0", "", true, 0},
		{": 100 1 0 0 0 0 0 0 20 1 0 0 0 0 0 0", "", true, 0},
		{"", "", false, 0},
	} {
		text := netDev(0, "lo", "eth0") + c.line + "\n" + netDev(0, "eth9")
		read, badLine := parseNetDev(text)
		counts := map[string]uint64{}
		for name, n := range read {
			counts[name] = n.received + n.sent
		}
		want := map[string]uint64{"lo": 5000, "eth0": 5000, "eth9": 5000}
		if c.name != "" {
			want[c.name] = c.counts
		}
		if !maps.Equal(counts, want) || (badLine == c.line && c.line != "") != c.isOdd {
			t.Errorf("with %q the bytes are %v, the odd line is %q", c.line, counts, badLine)
		}
	}
}

func TestHostNetworkLogsAnOddLineOnce(t *testing.T) {
	t.Parallel()
	h := newTestHost(t)
	for i := 0; i < 3; i++ {
		write(t, h.proc+"/net/dev", netDev(i*1_250_000, "eth0")+"  eth1: what\n")
		h.clock.advance(time.Second)
		h.measure(t)
	}
	if got := h.measure(t).network; got != 10 {
		t.Errorf("the rest makes %v Mbps, want 10", got)
	}
	lines := h.lines.take()
	isOne := len(lines) == 1 && strings.Contains(lines[0], `source=net/dev line="  eth1: what"`)
	if !isOne || !strings.Contains(lines[0], "level=WARN") {
		t.Errorf("the log has %q", lines)
	}
}

func TestHostDefaultRoutesNeedNoDestination(t *testing.T) {
	t.Parallel()
	text := routeHead + routeLine("eth0", "000011AC", "0000FFFF") +
		routeLine("a", "00000000", "00000000") +
		routeLine("tun0", "00000000", "00000080") + "cut\t00000000\t00000000\t0003\n\n" +
		routeLine("b", "00000000", "00000000")
	got := defaultRoutes(text)
	if want := []string{"a", "b"}; !slices.Equal(got, want) {
		t.Errorf("the default routes are those of %q, want %q", got, want)
	}
}

func TestHostUptimeIsTheFirstNumber(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		text string
		want time.Duration // 0: an error
	}{
		{"223271.15 780123.40\n", 223271150 * time.Millisecond},
		{"5\n", 5 * time.Second},
		{"5", 5 * time.Second},
		{"", 0},
		{"\n", 0},
		{"x 5\n", 0},
		{"-5 5\n", 0},
		{"NaN 5\n", 0},
		{"Inf 5\n", 0},
		{"1e300 5\n", 0},
	} {
		got, err := parseUptime(c.text)
		if got != c.want || (err == nil) != (c.want > 0) {
			t.Errorf("%q is %v, %v, want %v", c.text, got, err, c.want)
		}
	}
}

func FuzzParseStat(f *testing.F) {
	seed(f, "stat")
	f.Add("cpu 1466797 6445 708626 6221847 7998 0 8095 0 0 0\n",
		"cpu 1466867 6445 708691 5873386 7624 0 8095 0 0 0\n")
	f.Fuzz(func(t *testing.T, before, after string) {
		m := cpuMeter{percent: math.NaN()}
		now := time.Now()
		for _, text := range []string{before, after} {
			times, err := parseStat(text)
			if err != nil && times != (cpuTimes{}) {
				t.Errorf("%+v with %v", times, err)
			}
			if err == nil && times.cpus < 1 {
				t.Errorf("there are %d CPUs", times.cpus)
			}
			now = now.Add(time.Minute)
			m.add(cpuReading{times: times, at: now})
		}
		for _, percent := range []float64{m.percent, m.lastMinute()} {
			if percent < 0 || percent > 100.001 {
				t.Errorf("%v%% busy", percent)
			}
		}
	})
}

func FuzzParseMeminfo(f *testing.F) {
	seedHalves(f, "meminfo")
	f.Add("MemTotal: 9 kB\nMemFree: 1\nCached: 18446744073709551615\nSReclaimable: 5\n")
	f.Fuzz(func(t *testing.T, text string) {
		percent, err := parseMeminfo(text)
		isPercent := percent >= 0 && percent <= 100
		if !isPercent || err != nil && percent != 0 {
			t.Errorf("%v%% in use, %v", percent, err)
		}
	})
}

func FuzzParseNetDev(f *testing.F) {
	seed(f, "net/dev")
	f.Add("ibr10:30: 0 0 0 0 0 0 0 0 0 0\n", "ibr10:30:18446744073709551615 0 0 0 0 0 0 0 9 0\n")
	f.Fuzz(func(t *testing.T, before, after string) {
		m := networkMeter{mbps: math.NaN()}
		now := time.Now()
		for _, text := range []string{before, after} {
			counts, badLine := parseNetDev(text)
			if !strings.Contains(text, badLine) || len(counts) > strings.Count(text, ":") {
				t.Errorf("%v, %q", counts, badLine)
			}
			now = now.Add(time.Second)
			m.add(counts, now)
		}
		if m.mbps < 0 || math.IsInf(m.mbps, 0) {
			t.Errorf("%v Mbps", m.mbps)
		}
	})
}

func FuzzParseRoute(f *testing.F) {
	seedHalves(f, "net/route")
	f.Fuzz(func(t *testing.T, text string) {
		for _, name := range defaultRoutes(text) {
			if name == "" || !strings.Contains(text, name) {
				t.Errorf("the default route is that of %q", name)
			}
		}
	})
}

func FuzzParseUptime(f *testing.F) {
	seedHalves(f, "uptime")
	f.Fuzz(func(t *testing.T, text string) {
		uptime, err := parseUptime(text)
		if uptime < 0 || err != nil && uptime != 0 || formatUptime(uptime) == "" {
			t.Errorf("%v, %v", uptime, err)
		}
	})
}

func FuzzParseConfig(f *testing.F) {
	for _, args := range []string{
		"-addr :0 -interval 1s",
		"-origins http://a,https://b:1",
		"-probe http://[::1]/",
	} {
		f.Add(args, "SSE_HEARTBEAT=1s")
	}
	f.Fuzz(func(t *testing.T, args, variable string) {
		cfg, err := parseConfig(strings.Fields(args), env(variable), io.Discard)
		if err != nil {
			return
		}
		if cfg.heartbeat < 200*time.Millisecond || cfg.maxStreams < 1 || cfg.disk == "" {
			t.Errorf("%q %q gives %+v", args, variable, cfg)
		}
	})
}

func BenchmarkParseNetDev(b *testing.B) {
	names := make([]string, 10_000)
	for i := range names {
		names[i] = fmt.Sprintf("veth%08x", i)
	}
	text := netDev(123_456_789, names...)
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	b.ResetTimer()
	for i := 0; i < b.N; i++ {
		counts, _ := parseNetDev(text)
		if len(counts) != len(names) {
			b.Fatalf("there are %d interfaces", len(counts))
		}
	}
}

// recorded returns the content of each recorded file of that name.
func recorded(f *testing.F, name string) []string {
	f.Helper()
	files, err := filepath.Glob("testdata/*/*/" + name)
	if err != nil || len(files) == 0 {
		f.Fatalf("no %s is recorded, %v", name, err)
	}
	var texts []string
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		texts = append(texts, string(text))
	}
	return texts
}

// seed adds two recorded files each: the one after the other, and that without its end.
func seed(f *testing.F, name string) {
	f.Helper()
	texts := recorded(f, name)
	for i, text := range texts {
		before := texts[(i+1)%len(texts)] // in the order of names, before comes after after
		f.Add(before, text)
		f.Add(before, text[:len(text)/2])
	}
}

// seedHalves adds each recorded file of that name, and the first half of each.
func seedHalves(f *testing.F, name string) {
	f.Helper()
	for _, text := range recorded(f, name) {
		f.Add(text)
		f.Add(text[:len(text)/2])
	}
}

// snapshotOf shows metrics as the board does.
func snapshotOf(t testing.TB, m metrics) hostSnapshot {
	t.Helper()
	var s hostSnapshot
	err := json.Unmarshal(formatSnapshot(m, nil, time.Now()), &s)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// A clock stands still until it is told to go on. The sources read it in goroutines of their own.
type clock struct {
	mu   sync.Mutex // guards following
	time time.Time
}

func newClock() *clock {
	return &clock{time: time.Date(2026, 11, 24, 12, 0, 0, 0, time.Local)}
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.time
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.time = c.time.Add(d)
}

// A testHost is a sampler of another /proc and /sys, with a clock and a log of its own. Its disk
// is at 23 %.
type testHost struct {
	*sampler
	proc, sys string
	clock     *clock
	lines     *logLines
}

func newTestHost(t testing.TB, args ...string) *testHost {
	t.Helper()
	h := &testHost{proc: t.TempDir(), sys: t.TempDir(), clock: newClock()}
	mkdir(t, h.proc+"/net")
	h.record(t, "bare/before")
	log, lines := testLog("text")
	h.lines = lines
	h.sampler = newSamplerOf(testConfig(t, args...), log, h.proc, h.sys, h.clock.now)
	h.disk.reader = func() (diskUse, error) { return diskUse{percent: 23}, nil }
	return h
}

// record puts a recorded /proc in place.
func (h *testHost) record(t testing.TB, folder string) {
	t.Helper()
	for _, name := range []string{"stat", "meminfo", "uptime", "net/dev", "net/route"} {
		text, err := os.ReadFile(filepath.Join("testdata", folder, name))
		if err != nil && name != "net/route" {
			t.Fatal(err)
		}
		write(t, h.proc+"/"+name, string(text))
	}
}

// recordSys puts a recorded /sys in place.
func (h *testHost) recordSys(t testing.TB, folder string) {
	t.Helper()
	target, err := filepath.Abs(filepath.Join("testdata", folder, "class"))
	if err != nil {
		t.Fatal(err)
	}
	symlink(t, target, h.sys+"/class")
}

// measure reads each source and waits for all but those that hang.
func (h *testHost) measure(t testing.TB, hanging ...string) metrics {
	t.Helper()
	m, _ := h.measureChanges(t, hanging...)
	return m
}

func (h *testHost) measureChanges(t testing.TB, hanging ...string) (metrics, []activity) {
	t.Helper()
	h.read()
	for source := range metricOf {
		if !slices.Contains(hanging, source) {
			h.waitFor(t, source)
		}
	}
	return h.sample()
}

// waitFor waits until no read of a source is under way.
func (h *testHost) waitFor(t testing.TB, source string) {
	t.Helper()
	isIdle := map[string]func() bool{
		"stat":    h.stat.isIdle,
		"meminfo": h.meminfo.isIdle,
		"uptime":  h.uptime.isIdle,
		"net/dev": h.interfaces.isIdle,
		"disk":    h.disk.isIdle,
	}
	eventually(t, source+" is read", isIdle[source])
}

// isIdle tells whether no read is under way.
func (src *source[T]) isIdle() bool {
	src.mu.Lock()
	defer src.mu.Unlock()
	return !src.isReading
}

// alarmsOn are the alarms of the sampler that are on.
func (h *testHost) alarmsOn() []*alarm {
	var on []*alarm
	for _, a := range []*alarm{&h.cpuAlarm, &h.memoryAlarm, &h.diskAlarm, &h.probeAlarm} {
		if a.level != levelOK {
			on = append(on, a)
		}
	}
	return on
}

// write puts a file in place, even in that of a pipe.
func write(t testing.TB, path, text string) {
	t.Helper()
	err := os.WriteFile(path+".new", []byte(text), 0o644)
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func mkdir(t testing.TB, path string) {
	t.Helper()
	err := os.MkdirAll(path, 0o755)
	if err != nil {
		t.Fatal(err)
	}
}

func symlink(t testing.TB, target, path string) {
	t.Helper()
	err := os.Symlink(target, path)
	if err != nil {
		t.Fatal(err)
	}
}

// The host was stopped for five minutes, and was busy in them.
func TestHostMinuteBeginsAnewAfterAPause(t *testing.T) {
	t.Parallel()
	start := time.Now()
	at := func(seconds int, busy, idle uint64) cpuReading {
		times := cpuTimes{user: busy, idle: idle, cpus: 1}
		return cpuReading{times: times, at: start.Add(time.Duration(seconds) * time.Second)}
	}
	m := cpuMeter{percent: math.NaN()}
	m.add(at(0, 0, 0))
	m.add(at(300, 30000, 0))
	m.add(at(302, 30000, 200))
	if got := m.lastMinute(); !math.IsNaN(got) {
		t.Errorf("after the pause the minute's mean is %v", got)
	}
	for seconds := 304; seconds <= 362; seconds += 2 {
		m.add(at(seconds, 30000, uint64(seconds-300)*100))
	}
	if got := m.lastMinute(); got != 0 {
		t.Errorf("a minute later the mean is %v, want 0", got)
	}
}
