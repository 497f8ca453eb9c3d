package interop

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"sse-server/e2e/proxies"
)

// held is a median delay that only a client or a proxy has that holds events back, even on a busy
// machine. late is one that the table points out.
const (
	held = 400 * time.Millisecond
	late = 100 * time.Millisecond
)

// Each client gets each event when it is sent, sees an orderly end, and is back after a restart.
func TestDirectEachClientIsOnTime(t *testing.T) {
	k := newKit(t)
	var chosen []client
	for _, c := range clients {
		t.Run(c.name, func(t *testing.T) { // so that it can be skipped
			_, err := k.versionOf(c)
			if err != nil {
				missing(t, fmt.Sprintf("%s cannot run: %v", c.name, err))
			}
			chosen = append(chosen, c)
		})
	}
	k.mustBeOnTime(t, direct, chosen)
}

// Each proxy passes each event on when it comes: with the file of deploy/, with the one line that
// it needs, or without any settings.
func TestProxyPassesEachEventOn(t *testing.T) {
	k := newKit(t)
	var chosen []client
	for _, name := range []string{"curl", "Python requests"} {
		c := clientNamed(name)
		_, err := k.versionOf(c)
		if err != nil {
			missing(t, fmt.Sprintf("%s cannot run: %v", c.name, err))
		}
		chosen = append(chosen, c)
	}
	for _, w := range append(waysThrough(proxies.All, ""), waysThrough(proxies.Bare, " bare")...) {
		if w.proxy.Holds {
			continue
		}
		t.Run(w.name, func(t *testing.T) {
			program := w.proxy.Missing()
			if program != "" {
				missing(t, program+" is not installed")
			}
			k.mustBeOnTime(t, w, chosen)
		})
	}
}

func waysThrough(all []proxies.Proxy, suffix string) (ways []way) {
	for i := range all {
		ways = append(ways, way{name: all[i].Name + suffix, proxy: &all[i]})
	}
	return ways
}

// mustBeOnTime measures once more those cells in which something was wrong: the machine may have
// been busy.
func (k *kit) mustBeOnTime(t *testing.T, w way, chosen []client) {
	t.Helper()
	var again []client
	for _, c := range k.measure(t, k.sseServerTarget(t, w), chosen) {
		wrong := c.wrongs(held, w)
		t.Logf("%s, %s: %v %s", c.client.name, w.name, c.delays, strings.Join(wrong, ", "))
		if len(wrong) > 0 {
			again = append(again, c.client)
		}
	}
	if len(again) == 0 {
		return
	}

	for _, c := range k.measure(t, k.sseServerTarget(t, w), again) {
		for _, wrong := range c.wrongs(held, w) {
			t.Errorf("%s, %s: %s; the events came after %v", c.client.name, w.name, wrong, c.delays)
		}
	}
}

// wrongs says what is not as it should be.
func (c cell) wrongs(limit time.Duration, w way) (all []string) {
	add := func(format string, values ...any) {
		all = append(all, fmt.Sprintf(format, values...))
	}
	if c.problem != "" {
		return []string{c.problem}
	}

	if c.missing > 0 {
		add("%d of %d events never came", c.missing, eventsMeasured)
	}
	if c.wrong > 0 {
		add("%d events have another length than they were sent with", c.wrong)
	}
	if c.median() > limit {
		add("events come after %v (median)", c.median().Round(time.Millisecond))
	}
	if c.client.comments && len(c.heartbeats) < heartbeatsAsked {
		add("%d of %d heartbeats came", len(c.heartbeats), heartbeatsAsked)
	}
	if c.client.comments && median(c.heartbeats) > limit {
		add("heartbeats come after %v (median)", median(c.heartbeats).Round(time.Millisecond))
	}

	if c.end != "" && c.end != cleanEnd {
		add("the end was not clean: %s", c.end)
	}
	if c.end == "" && !c.client.returns {
		add("it did not see the end")
	}
	if c.client.returns && c.back == 0 {
		add("it did not come back")
	}
	want := "identity"
	if c.client.gzip {
		want = "gzip"
	}
	if w == direct && c.encoding != want {
		add("its stream has the encoding %q, want %q", c.encoding, want)
	}
	if w == direct && c.reopened > 0 {
		add("it or another client opened its stream once more")
	}
	return all
}

// median is that of sorted delays, the lower one of two. It is 0 without any.
func median(delays []time.Duration) time.Duration {
	if len(delays) == 0 {
		return 0
	}
	return delays[(len(delays)-1)/2]
}

func worst(delays []time.Duration) time.Duration {
	if len(delays) == 0 {
		return 0
	}
	return slices.Max(delays)
}
