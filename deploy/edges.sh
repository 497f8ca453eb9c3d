#!/bin/sh
# Starts an upstream server, three edges that get its stream, and HAProxy before the edges. All run
# on this machine until Ctrl-C, with the file of deploy/edges. Needs Debian's haproxy, curl, and Go.
#   usage: [LOGS=FOLDER] [UPSTREAM=URL] deploy/edges.sh [first of five ports, 3010]
# UPSTREAM is the stream of another server to use instead of an upstream server of its own, for
# example http://localhost:3000/dashboard/stream of a Rails application. The logs stay in LOGS.
set -eu
cd "$(dirname "$0")/.."
name=edges.sh
# shellcheck source=deploy/start.sh
. deploy/start.sh
viewers=${1:-3010}
case $viewers in *[!0-9]*) fail "usage: deploy/edges.sh [first of five ports, 3010]" ;; esac
last=$((viewers + 4))
echo "This starts an upstream server, three edges that get its stream, and HAProxy before the edges.
Open http://localhost:$viewers/ once they are ready. Ctrl-C ends everything. The logs are in $logs"
must_have "haproxy curl" haproxy curl
must_be_free "$viewers" $((viewers + 1)) $((viewers + 2)) $((viewers + 3)) "$last"
upstream=${UPSTREAM:-http://127.0.0.1:$last/dashboard/stream}
[ -n "${UPSTREAM:-}" ] || start upstream "http://127.0.0.1:$last/health" ./sse-server -addr "127.0.0.1:$last"
sed "s/bind :443.*/bind 127.0.0.1:$viewers/" deploy/edges/haproxy.cfg >"$dir/haproxy.cfg"
for n in 1 2 3; do
	edge=127.0.0.1:$((viewers + n))
	start "edge$n" "http://$edge/health" ./sse-server -edge -addr "$edge" -origins "http://localhost:$viewers"
	start "forward$n" - goclient/sse-client -url "$upstream" -forward "http://$edge/dashboard/snapshot"
	sed -i "s/10.0.0.$n:3001/$edge/" "$dir/haproxy.cfg"
done
start haproxy "http://127.0.0.1:$viewers/health" haproxy -db -f "$dir/haproxy.cfg"
until_true forward1 grep -q "stream open" "$logs/forward1.log"
echo "Ready: http://localhost:$viewers/ goes through HAProxy, which chooses an edge for each viewer.
Try in another terminal, in this folder:
curl -N http://localhost:$viewers/dashboard/stream
pkill -f addr.127.0.0.1:$((viewers + 1))   # stop an edge: its viewers reconnect to the others
./sse-server -edge -addr 127.0.0.1:$((viewers + 1)) -origins http://localhost:$viewers   # start it again
pkill -f addr.127.0.0.1:$last   # stop the upstream server (not with UPSTREAM): \"stale\" ten seconds later
./sse-server -addr 127.0.0.1:$last   # start it again"
wait
