#!/bin/sh
# Compares the server with the baseline, bench/baseline.c: one thread, one write(2) for each stream.
# The server runs on core 0, the client on core 1. Prints medians of interleaved runs.
# Needs Linux, two cores, a C compiler, curl and python3. One build takes about eight minutes.
#   bench/budgets.sh | bench/put.sh budgets    puts the tables into docs/benchmarks.md
#   BUILDS   builds to measure beside the working tree's ("this"): "old=/path/to/sse-server …";
#            ./build.sh stamps each with its commit, which -version prints
#   RUNS     runs of each kind (5); STREAMS: streams in a run (10000); ROUNDS: events in a run (20)
#   IDLE     seconds to watch the server without streams, in each run (12)
#   CLIENT   another client that prints sse-client's JSON keys (goclient/sse-client)
#   ARGS     the client's flags; the number of streams follows them (-check none -json -clients)
#   PORT     the server's port (17110)
set -eu
cd "$(dirname "$0")/.."
runs=${RUNS:-5} streams=${STREAMS:-10000} rounds=${ROUNDS:-20} idle=${IDLE:-12} port=${PORT:-17110}
client=${CLIENT:-goclient/sse-client} args=${ARGS:--check none -json -clients}
builds="this=./sse-server ${BUILDS:-}" url=http://127.0.0.1:$port tmp=$(mktemp -d) server=''
trap '[ -z "$server" ] || kill "$server" 2>/dev/null || true; rm -rf "$tmp"' EXIT
trap 'exit 1' INT TERM
fail() {
	echo "budgets.sh: $*" >&2
	[ ! -f "$tmp/log" ] || tail -n 3 "$tmp/log" >&2
	exit 1
}
start() { # CORES COMMAND...
	taskset -c "$@" 2>"$tmp/log" &
	server=$!
}
stop() {
	kill "$server"
	wait "$server" 2>/dev/null || true
	server=
}
fan_out() { # NAME CORES STREAM PUBLISH STALLED COMMAND...: one run, as NAME.RUN.json
	name=$1 cores=$2 stream=$url$3 publish=$url$4 stalled=$5
	shift 5
	echo "run $run of $runs: $name" >&2
	start "$cores" "$@"
	sleep 1
	# shellcheck disable=SC2086 # args are words
	taskset -c 1 "$client" -pid "$server" -url "$stream" -publish "$publish" -rounds "$rounds" \
		-stalled "$stalled" $args "$streams" >"$tmp/$name.$run.json" 2>>"$tmp/log" ||
		echo "budgets.sh: the client found something wrong with $name in run $run" >&2
	[ -s "$tmp/$name.$run.json" ] || fail "no result for $name"
	stop
}
ticks() { awk '{print $14 + $15}' "/proc/$server/stat"; }
no_streams() { # NAME PROGRAM: time from start to first event, then CPU and memory when idle
	echo "run $run of $runs: $1" >&2
	began=$(date +%s%N) first=''
	start 0 "$2" -addr "127.0.0.1:$port" -log-level warn
	until [ -n "$first" ]; do # the process may not listen yet
		kill -0 "$server" 2>/dev/null || fail "$2 did not start"
		first=$(curl -sN -m 3 --noproxy '*' "$url/dashboard/stream" |
			{ grep -q '^data:' && date +%s%N; }) || true
	done
	before=$(ticks)
	sleep "$idle"
	printf '{"start_ms": %d, "ticks": %d, "kib": %d}\n' $(((first - began) / 1000000)) $(($(ticks) - before)) \
		"$(awk '/^VmRSS/ {print $2}' "/proc/$server/status")" >"$tmp/$1.$run.json"
	stop
}

./build.sh >&2
"${CC:-cc}" -O2 -o "$tmp/baseline" bench/baseline.c
for build in $builds; do [ -x "${build#*=}" ] || fail "${build#*=} is not a program"; done
for run in $(seq "$runs"); do
	fan_out baseline 0 /stream /publish 0 "$tmp/baseline" "$port" 460 # as many bytes as sse-server sends
	for row in one-core:0:0 stalled:0:$((streams / 10)) two-cores:0,1:0; do
		cores=${row#*:}
		for build in $builds; do
			fan_out "${build%%=*} ${row%%:*}" "${cores%:*}" /dashboard/stream /dashboard/trigger-test "${row##*:}" \
				"${build#*=}" -addr "127.0.0.1:$port" -interval 0 -log-level warn
		done
	done
	for build in $builds; do no_streams "${build%%=*} idle" "${build#*=}"; done
done
echo "$(git describe --always --dirty), $(uname -sr), $(go version | cut -d' ' -f3):" \
	"$streams streams, $rounds events, medians of $runs interleaved runs"
# shellcheck disable=SC2086 # builds are words
python3 bench/budgets.py "$tmp" "$idle" $builds
