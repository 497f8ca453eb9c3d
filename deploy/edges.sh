#!/bin/sh
# An origin, three edges that its stream feeds, and HAProxy before them with the file of
# deploy/edges, all on this machine, until Ctrl-C. Needs Debian's haproxy, curl, and Go.
#   usage: [ORIGIN=http://localhost:3000/dashboard/stream] deploy/edges.sh [first of five ports, 3010]
# ORIGIN puts another server's stream in the origin's place, for example a Rails application's.
set -eu
cd "$(dirname "$0")/.."
fail() { echo "edges.sh: $*" >&2; exit 1; }
PATH=$PATH:/usr/sbin
for need in haproxy curl; do
	command -v "$need" >/dev/null || fail "$need is not there: apt-get install haproxy curl"
done
if [ ! -x sse-server ] || [ ! -x goclient/sse-client ]; then ./build.sh >&2; fi

ask="curl -s -m 2 --noproxy 127.0.0.1"
viewers=${1:-3010}
case $viewers in *[!0-9]*) fail "usage: deploy/edges.sh [first of five ports, 3010]" ;; esac
origin=${ORIGIN:-http://127.0.0.1:$((viewers + 4))/dashboard/stream}
for n in 0 1 2 3 4; do
	! $ask -o /dev/null "http://127.0.0.1:$((viewers + n))/" ||
		fail "$((viewers + n)) is taken: give another first port"
done
dir=$(mktemp -d)
pids=
end() {
	trap '' INT TERM HUP
	for pid in $pids; do kill "$pid" 2>/dev/null || true; done
	wait
	rm -rf "$dir"
}
trap end EXIT
trap 'exit 0' INT TERM HUP
start() { # name, URL of it to wait for or -, command…
	name=$1 url=$2
	shift 2
	"$@" >"$dir/$name.log" 2>&1 &
	pids="$pids $!"
	until [ "$url" = - ] || $ask -o "$dir/answer" "$url"; do
		kill -0 $! 2>/dev/null || fail "$name does not start: $(tail -n 3 "$dir/$name.log")"
		sleep 0.1
	done
}

[ -n "${ORIGIN:-}" ] ||
	start origin "http://127.0.0.1:$((viewers + 4))/health" ./sse-server -addr "127.0.0.1:$((viewers + 4))"
sed "s/bind :443.*/bind 127.0.0.1:$viewers/" deploy/edges/haproxy.cfg >"$dir/haproxy.cfg"
for n in 1 2 3; do
	edge=127.0.0.1:$((viewers + n))
	start "edge$n" "http://$edge/health" ./sse-server -addr "$edge" -origins "http://localhost:$viewers"
	start "forward$n" - goclient/sse-client -url "$origin" -forward "http://$edge/dashboard/snapshot"
	sed -i "s/10.0.0.$n:3001/$edge/" "$dir/haproxy.cfg"
done
start haproxy "http://127.0.0.1:$viewers/health" haproxy -db -f "$dir/haproxy.cfg"
for try in 1 2 3 4 5 6 7 8 9 10; do
	! grep -q "stream open" "$dir/forward1.log" || break
	[ "$try" != 10 ] || fail "the origin does not stream: $(tail -n 1 "$dir/forward1.log")"
	sleep 0.3
done
echo "http://localhost:$viewers/ goes through HAProxy, which picks an edge for each viewer
curl -N http://localhost:$viewers/dashboard/stream
pkill -f addr.127.0.0.1:$((viewers + 1))   # an edge away: its viewers come back at the others
pkill -f addr.127.0.0.1:$((viewers + 4))   # the origin away (unless it is ORIGIN): \"stale\" ten seconds later
./sse-server -addr 127.0.0.1:$((viewers + 4))   # and back
Ctrl-C ends all of it; logs are in $dir"
wait
