#!/bin/sh
# Starts an origin, three edges that its stream feeds, and HAProxy before them, all on this machine.
# ORIGIN=http://localhost:3000/dashboard/stream puts another server in the origin's place.
set -eu
cd "$(dirname "$0")/.."
fail() { echo "deploy/edges.sh: $*" >&2; exit 1; }
command -v haproxy >/dev/null || fail "haproxy is missing: apt-get install haproxy"
if [ ! -x sse-server ] || [ ! -x goclient/sse-client ]; then ./build.sh >/dev/null; fi

dir=$(mktemp -d)
trap 'trap - EXIT; kill $pids 2>/dev/null; wait; rm -rf "$dir"' EXIT
trap 'exit 0' INT TERM
pids=
start() { # log, command
	log=$dir/$1
	shift
	"$@" >"$log" 2>&1 &
	pids="$pids $!"
}
answers() { # URL
	for _ in 1 2 3 4 5 6 7 8 9 10; do
		! curl -s -o /dev/null "$1" || return 0
		sleep 0.3
	done
	fail "nobody answers at $1: $(tail -n 3 "$dir"/*)"
}

origin=${ORIGIN:-http://127.0.0.1:3001/dashboard/stream}
[ -n "${ORIGIN:-}" ] || start origin ./sse-server -addr 127.0.0.1:3001
conf=$dir/conf
sed 's/bind :443.*/bind 127.0.0.1:3010/' deploy/edges/haproxy.cfg >"$conf"
for n in 1 2 3; do
	start "edge$n" ./sse-server -addr "127.0.0.1:301$n" -origins http://localhost:3010
	start "forward$n" goclient/sse-client -url "$origin" -forward "http://127.0.0.1:301$n/dashboard/snapshot"
	sed -i "s/10.0.0.$n:3001/127.0.0.1:301$n/" "$conf"
done
start haproxy haproxy -db -f "$conf"
[ -n "${ORIGIN:-}" ] || answers http://127.0.0.1:3001/health
for port in 3011 3012 3013 3010; do answers "http://127.0.0.1:$port/health"; done

cat <<TEXT
origin   $origin
edges    http://localhost:3011/  http://localhost:3012/  http://localhost:3013/
viewers  http://localhost:3010/  through HAProxy, which picks an edge for each

Try:     curl -N http://localhost:3010/dashboard/stream
         pkill -f 'addr 127.0.0.1:3011'   an edge dies: its viewers come back at the others
         pkill -f 'addr 127.0.0.1:3001'   the origin dies: the edges say "stale" ten seconds later
Ctrl-C ends all of it; the logs are in $dir.
TEXT
wait
