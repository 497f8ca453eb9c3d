#!/bin/sh
# Compares sse-server with the Rails server, the usual Go server (naive), Nchan, better-sse and the
# C program baseline. Each server runs on one core, sse-client on the other. Replaces the tables in
# docs/benchmarks.md, bench/results/ and the two plots. --quick: few streams, one run of each, and
# all output in a temporary folder.
# SERVER_CORE, CLIENT_CORE and PORT can be set.
# Each server that is not installed is skipped.
set -eu
cd "$(dirname "$0")/.."
server_core=${SERVER_CORE:-0} client_core=${CLIENT_CORE:-1} port=${PORT:-$((20000 + $$ % 10000))}
case ${*-} in
'') quick='' ;;
--quick) quick=1 ;;
*) echo "usage: bench/compare.sh [--quick]" >&2 && exit 2 ;;
esac
tmp=$(mktemp -d)
pid='' client='' status=0 payload=600
out=bench page=docs/benchmarks.md
[ -z "$quick" ] || out=$tmp/out page=$tmp/page
stop() {
	kill -9 ${client:+"$client"} ${pid:+"$pid"} 2>/dev/null || true
	wait
	pid='' client=''
}
trap 'stop 2>/dev/null; rm -rf "$tmp"' EXIT
trap 'exit 1' INT TERM HUP
say() { printf '%s\n' "== $*"; }
have() { # COMMAND or file, what needs it
	command -v "$1" >/dev/null || [ -e "$1" ] || { say "skipped: $2 ($1 is not installed)" && false; }
}

# start SERVER STREAMS: on the server's core; fails if it does not answer within 20 s.
start() {
	case $1 in
	sse-server) set -- ./sse-server -addr "127.0.0.1:$port" -interval 0 -log-level warn ;;
	rails) set -- env RAILS_STREAMS="$2" PORT="$port" SSE_INTERVAL=0 bench/rails/run.sh ;;
	naive) set -- "$tmp/naive" -addr "127.0.0.1:$port" -interval 0 ;;
	nchan) set -- env NCHAN_STREAMS="$2" PORT="$port" bench/nchan/run.sh "$tmp/nchan" ;;
	better-sse) set -- env PORT="$port" node bench/better-sse/server.js ;;
	baseline) set -- "$tmp/baseline" "$port" "$payload" ;;
	esac
	taskset -c "$server_core" "$@" >"$tmp/log" 2>&1 &
	pid=$!
	for _ in $(seq 100); do
		kill -0 "$pid" 2>/dev/null || return 1
		if curl -sf -m 1 -o "$tmp/health" "http://127.0.0.1:$port/health"; then
			[ -z "$body" ] || publish_body || return 1
			sleep 1 # until there is a snapshot
			kill -0 "$pid" 2>/dev/null # else another process answered
			return
		fi
		sleep 0.2
	done
	return 1
}

# publish_body: the first event of a server that makes none by itself.
publish_body() {
	curl -sf -m 5 -o "$tmp/answer" --data-binary "@$body" "http://127.0.0.1:$port/publish"
}

# keep_snapshot keeps the newest snapshot of sse-server.
keep_snapshot() { curl -sf -m 5 -o "$tmp/snapshot" "http://127.0.0.1:$port/dashboard/snapshot"; }

# note SERVER STREAMS: keeps the last line of the log, which says why there were no more streams.
note() { printf '%s\t%s\t%s\n' "$1" "$2" "$(tail -n 1 "$tmp/log")" >>"$tmp/runs/stops.tsv"; }

# measure SERVER STREAMS RUN FLAGS…: one run. In the run "most", nothing is published. Nchan and
# better-sse send the newest snapshot of sse-server. Fails if sse-client fails.
measure() {
	name=$1 streams=$2 run=$3 body=''
	check=snapshot path=/dashboard/stream trigger=/dashboard/trigger-test
	shift 3
	case $name in
	nchan | better-sse) trigger=/publish body=$tmp/snapshot ;;
	baseline) check=json path=/stream trigger=/publish ;;
	esac
	# A late publish would count from when it was due. Here an event takes ten seconds.
	[ "$name-$streams" != rails-10000 ] || set -- "$@" -gap 15s
	json=$tmp/runs/$name-$streams-$run.json result=0
	say "$name, $streams streams, run $run"
	if start "$name" "$streams"; then
		[ "$run" = most ] || set -- "$@" -publish "http://127.0.0.1:$port$trigger" ${body:+-body "$body"}
		taskset -c "$client_core" goclient/sse-client -url "http://127.0.0.1:$port$path" -pid "$pid" \
			-clients "$streams" -check "$check" -json "$@" >"$json" 2>"$tmp/client" &
		client=$!
		wait "$client" || result=$?
		[ "$run" != most ] || note "$name" "$streams"
		[ "$name" != sse-server ] || keep_snapshot
	else
		note "$name" "$streams"
		[ "$name-$streams" = rails-10000 ] || result=1 # rails/run.sh says what is missing
	fi
	stop 2>/dev/null
	return "$result"
}

# level STREAMS RUN FLAGS…: one run of each server, each on its own port.
level() {
	base=$port n=$1 t=$2
	shift 2
	for server in $servers; do
		port=$((port + 1))
		[ "$server-$n-$t" != rails-10000-3 ] || continue # takes as long as all other servers together
		if ! measure "$server" "$n" "$t" "$@" && [ "$t" != most ]; then
			say "sse-client found something wrong with $server" >&2
			tail -n 60 "$tmp/log" "$tmp/client" "$json" >&2 || true
			status=1
		fi
		# The baseline's events get the size of sse-server's. 15: "id: 10", "data: " and line ends.
		bytes=$(sed -n 's/^ *"bytes_per_delivery": \([0-9]*\).*/\1/p' "$tmp/runs/sse-server-$n-$t.json" || true)
		[ -z "$bytes" ] || payload=$((bytes - 15))
	done
	port=$base
}

./build.sh >"$tmp/built"
go build -o "$tmp/naive" ./bench/naive
servers=sse-server
mkdir -p "$tmp/runs" "$out/results"
load=$(cut -d ' ' -f 1 /proc/loadavg)
if ruby -e 'require "puma"; require "rails"; require "action_controller/railtie"' 2>"$tmp/log"; then
	servers="$servers rails"
else
	say "skipped: rails (ruby-railties, ruby-actionpack or puma is not installed)"
fi
servers="$servers naive"
if have nginx nchan && have /usr/lib/nginx/modules/ngx_nchan_module.so nchan; then
	mkdir "$tmp/nchan"
	servers="$servers nchan"
fi
if have node better-sse && have npm better-sse; then
	if npm install --prefix bench/better-sse >"$tmp/log" 2>&1; then
		servers="$servers better-sse"
	else
		say "skipped: better-sse (npm cannot install it: $(head -n 1 "$tmp/log"))"
	fi
fi
if have "${CC:-cc}" baseline; then
	"${CC:-cc}" -O2 -Wall -Wextra -o "$tmp/baseline" bench/baseline.c
	servers="$servers baseline"
fi
if [ -n "$quick" ]; then
	level 100 1 -rate 1000 -rounds 30 -gap 100ms
	level 300 1 -rate 1000 -rounds 10 -gap 100ms
else
	for run in 1 2 3; do
		level 100 "$run" -rate 200 -rounds 100 -gap 100ms
		level 1000 "$run" -rate 400 -rounds 20 -gap 250ms
		level 10000 "$run" -rate 2000 -rounds 8 -gap 1s
	done
	# As many streams as the client can open, with its descriptors and the ports of one address.
	most=$(awk '/^Max open files/ { n = $5 - 100; print n < 27000 ? n : 27000 }' /proc/self/limits)
	level "$most" most -rate 1000 -duration "$((most / 1000 + 8))s" -heartbeat 0
fi
rm -f "$out"/results/*
go run ./bench/table "$tmp/runs" "$out" "$load" >"$tmp/tables" || status=1
[ -z "$quick" ] || cp docs/benchmarks.md "$page"
PAGE=$page bench/put.sh compare <"$tmp/tables"
! have gnuplot "the plots" || gnuplot -e "out = '$out'" bench/plot.gp
[ -z "$quick" ] || cat "$tmp/tables"
exit "$status"
