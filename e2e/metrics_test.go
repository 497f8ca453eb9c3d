package e2e

import (
	"os/exec"
	"strings"
	"testing"
)

func TestMetricsPassPromtool(t *testing.T) {
	t.Parallel()
	need(t, "promtool")
	p := startServer(t, "-interval", "100ms", "-max-streams", "1")
	c := p.stream(t)
	c.event(t)
	p.request(t, "GET", "/dashboard/stream") // one too many
	edge := startServer(t, "-edge")
	external := startServer(t)
	external.put(t, `{"system_status":{"status":"very \"odd\"\\\n"}}`)
	for _, s := range []*process{p, edge, external} {
		_, _, text := s.request(t, "GET", "/metrics")
		check := exec.Command("promtool", "check", "metrics")
		check.Stdin = strings.NewReader(text)
		if out, err := check.CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("promtool check metrics: %v\n%s\n%s", err, out, text)
		}
	}
}
