#!/bin/sh
# Measures the server against bench/baseline.c, the baseline for fan-out: one
# thread, one write(2) a stream. The server runs on core 0 and the client on core 1, in turns;
# prints a table of medians. CLIENT may be another client with sse-client's JSON keys and the
# flags named in ARGS. Needs Linux, two cores, a C compiler and python3; takes about ten minutes.
set -eu
cd "$(dirname "$0")/.."
streams=${STREAMS:-10000}
turns=${TURNS:-5}
rounds=${ROUNDS:-20}
client=${CLIENT:-goclient/sse-client}
args=${ARGS:--check none -json -clients}
port=47110
tmp=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill "$server" 2>/dev/null || true; rm -rf "$tmp"' EXIT
trap 'exit 1' INT TERM
./build.sh >/dev/null
${CC:-cc} -O2 -o "$tmp/baseline" bench/baseline.c

# run NAME CORES STREAM PUBLISH STALLED COMMAND...: one turn of one server.
run() {
	name=$1 cores=$2 stream=$3 publish=$4 stalled=$5
	shift 5
	taskset -c "$cores" "$@" 2>/dev/null &
	server=$!
	sleep 1
	# shellcheck disable=SC2086 # args are words
	taskset -c 1 "$client" -pid "$server" -url "http://127.0.0.1:$port$stream" \
		-publish "http://127.0.0.1:$port$publish" -rounds "$rounds" -stalled "$stalled" $args "$streams" \
		>"$tmp/$name.$turn.json" 2>/dev/null || echo "budgets: $name, turn $turn: the client found something wrong" >&2
	kill "$server"
	wait "$server" 2>/dev/null || true
	server=
}

sse="./sse-server -addr 127.0.0.1:$port -interval 0 -log-level warn"
for turn in $(seq "$turns"); do
	run baseline 0 /stream /pub 0 "$tmp/baseline" "$port" 453
	# shellcheck disable=SC2086 # a command and its flags
	run one-core 0 /dashboard/stream /dashboard/trigger-test 0 $sse
	# shellcheck disable=SC2086
	run stalled 0 /dashboard/stream /dashboard/trigger-test $((streams / 10)) $sse
	# shellcheck disable=SC2086
	run two-cores 0,1 /dashboard/stream /dashboard/trigger-test 0 $sse
done
echo "$streams streams, $rounds events, medians of $turns turns, $(uname -sr), $(go version | cut -d' ' -f3)"
python3 - "$tmp" <<'PY'
import glob, json, statistics, sys
def median(name, *keys):
    values = []
    for path in glob.glob(f"{sys.argv[1]}/{name}.*.json"):
        v = json.load(open(path))
        for key in keys:
            v = v[key]
        values.append(v)
    return statistics.median(values), values
print("| server | bytes an event | memory a stream | CPU a delivery | against the baseline | last stream | against the baseline |")
print("| --- | --- | --- | --- | --- | --- | --- |")
for name, base in (("baseline", "baseline"), ("one-core", "baseline"), ("two-cores", "baseline"), ("stalled", "one-core")):
    cpu, _ = median(name, "cpu_us_per_delivery")
    last, spread = median(name, "last_delivery_ms", "p50")
    print(f"| {name} | {median(name, 'bytes_per_delivery')[0]:.0f} | {median(name, 'rss_per_stream_kib')[0]:.2f} KiB | {cpu:.1f} µs"
          f" | {cpu / median(base, 'cpu_us_per_delivery')[0]:.2f} | {last:.0f} ms ({min(spread):.0f} to {max(spread):.0f})"
          f" | {last / median(base, 'last_delivery_ms', 'p50')[0]:.2f} |")
print("`stalled`: one stream in ten is never read; compared with one-core, where all are.")
PY
