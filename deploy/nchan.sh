#!/bin/sh
# The stream through Nchan, all of it on this machine, with the files of deploy/nchan: an sse-server,
# Redis, two nginx and one forwarder, until Ctrl-C. Needs Debian's nginx-light, libnginx-mod-nchan,
# redis-server, curl, and Go.   usage: deploy/nchan.sh [first of six ports, 3080]
set -eu
cd "$(dirname "$0")/.."
fail() { echo "nchan.sh: $*" >&2; exit 1; }
PATH=$PATH:/usr/sbin
for need in nginx redis-server curl /usr/lib/nginx/modules/ngx_nchan_module.so; do
	command -v "$need" >/dev/null || [ -e "$need" ] ||
		fail "$need is not there: apt-get install nginx-light libnginx-mod-nchan redis-server curl"
done
if [ ! -x sse-server ] || [ ! -x goclient/sse-client ]; then ./build.sh >&2; fi

one=${1:-3080} two=$((${1:-3080} + 1)) redis=$((${1:-3080} + 4)) origin=127.0.0.1:$((${1:-3080} + 5))
for port in "127.0.0.1:$one" "127.0.0.1:$two" "$origin"; do
	curl -s -m 2 --noproxy '*' -o /dev/null "http://$port/" && fail "$port is taken: give another first port"
done
dir=$(mktemp -d)
chmod 755 "$dir"
pids=
end() {
	trap '' INT TERM HUP
	for pid in $pids $(cat "$dir/redis.pid" 2>/dev/null); do kill "$pid" 2>/dev/null || true; done
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
	until [ "$url" = - ] || curl -s -m 2 --noproxy '*' -o "$dir/answer" "$url"; do
		kill -0 $! 2>/dev/null || fail "$name does not start: $(tail -n 3 "$dir/$name.log")"
		sleep 0.1
	done
}

sed "s|/var/lib/redis|$dir|; s|^port .*|port $redis|" deploy/nchan/redis.conf >"$dir/redis.conf"
[ -z "$(redis-cli -p "$redis" ping 2>/dev/null)" ] || fail "$redis is taken: give another first port"
start redis - redis-server "$dir/redis.conf"
for try in 1 2 3 4 5 6 7 8 9 10; do
	[ "$(redis-cli -p "$redis" ping 2>/dev/null)" != PONG ] || break
	[ "$try" != 10 ] || fail "redis does not start: $(tail -n 1 "$dir/redis.log")"
	sleep 0.2
done
start sse-server "http://$origin/health" \
	./sse-server -addr "$origin" -origins "http://localhost:$one,http://localhost:$two"
for port in $one $two; do
	temp=$(for kind in client_body proxy fastcgi uwsgi scgi; do printf ' %s_temp_path %s;' $kind "$dir/$port/$kind"; done)
	mkdir "$dir/$port"
	sed "s|/run/nginx.pid|$dir/$port/pid|; s|/var/log/nginx/error.log|stderr|; s|:6379|:$redis|
		s|listen 80;|listen $port;|; s|:3082|:$((port + 2))|; s|127.0.0.1:3001|$origin|
		s|https://dashboard.example.com\"|http://localhost:$port\"|; s|^http {|&$temp|" \
		deploy/nchan/nginx.conf >"$dir/$port/nginx.conf"
	start "nginx-$port" "http://localhost:$port/health" \
		nginx -p "$dir/$port" -c "$dir/$port/nginx.conf" -e stderr -g "daemon off;"
done
start forward - goclient/sse-client -url "http://$origin/dashboard/stream" \
	-forward "http://localhost:$one/pub/dashboard" -forward-method POST
# shellcheck disable=SC2086 # a list of processes
set -- $pids
echo "http://localhost:$one/ and http://localhost:$two/ show the origin's page, with the stream from Nchan
curl -N -H 'Accept: text/event-stream' http://localhost:$two/dashboard/stream
kill -9 $1    # Redis away: the streams stay open and get nothing until it is back:
redis-server $dir/redis.conf --daemonize yes --pidfile $dir/redis.pid
kill $4       # the second nginx away: the first's streams miss nothing
Ctrl-C ends all of it; logs are in $dir"
wait
