#!/bin/sh
# Starts an sse-server, a forwarder, Redis and two nginx whose Nchan carries the stream. All run on
# this machine until Ctrl-C, with the files of deploy/nchan. Needs Debian's nginx-light,
# libnginx-mod-nchan, redis-server, curl, and Go. The logs stay in LOGS.
#   usage: [LOGS=FOLDER] deploy/nchan.sh [first of six ports, 3080]
set -eu
cd "$(dirname "$0")/.."
name=nchan.sh
# shellcheck source=deploy/start.sh
. deploy/start.sh
case ${1:-} in *[!0-9]*) fail "usage: deploy/nchan.sh [first of six ports, 3080]" ;; esac
one=${1:-3080} two=$((${1:-3080} + 1)) redis=$((${1:-3080} + 4)) last=$((${1:-3080} + 5))
upstream=127.0.0.1:$last
echo "This starts an sse-server, a forwarder, Redis, and two nginx whose Nchan carries the stream.
Open http://localhost:$one/ and http://localhost:$two/ once they are ready. Ctrl-C ends everything.
The logs are in $logs"
must_have "nginx-light libnginx-mod-nchan redis-server curl" \
	nginx redis-server curl /usr/lib/nginx/modules/ngx_nchan_module.so
must_be_free "$one" "$two" "$last"
ping_redis() { redis-cli -p "$redis" ping 2>/dev/null || true; }
redis_answers() { [ "$(ping_redis)" = PONG ]; }
[ -z "$(ping_redis)" ] || fail "$redis is taken: give another first port"
sed "s|/var/lib/redis|$dir|; s|^port .*|port $redis|" deploy/nchan/redis.conf >"$dir/redis.conf"
start redis - redis-server "$dir/redis.conf"
until_true redis redis_answers
start sse-server "http://$upstream/health" \
	./sse-server -addr "$upstream" -origins "http://localhost:$one,http://localhost:$two"
for port in $one $two; do
	temp=$(for kind in client_body proxy fastcgi uwsgi scgi; do printf ' %s_temp_path %s;' $kind "$dir/$port/$kind"; done)
	mkdir "$dir/$port"
	sed "s|/run/nginx.pid|$dir/$port/pid|; s|/var/log/nginx/error.log|stderr|; s|:6379|:$redis|
		s|listen 80;|listen $port;|; s|:3082|:$((port + 2))|; s|127.0.0.1:3001|$upstream|
		s|https://dashboard.example.com\"|http://localhost:$port\"|; s|^http {|&$temp|" \
		deploy/nchan/nginx.conf >"$dir/$port/nginx.conf"
	start "nginx-$port" "http://localhost:$port/health" \
		nginx -p "$dir/$port" -c "$dir/$port/nginx.conf" -e stderr -g "daemon off;"
done
start forward - goclient/sse-client -url "http://$upstream/dashboard/stream" \
	-forward "http://localhost:$one/pub/dashboard" -forward-method POST
# shellcheck disable=SC2086 # a list of processes
set -- $pids
echo "Ready: http://localhost:$one/ and http://localhost:$two/ show the upstream's page, with the stream of Nchan.
Try in another terminal:
curl -N -H 'Accept: text/event-stream' http://localhost:$two/dashboard/stream
kill -9 $1    # stop Redis: the streams stay open and get no events until it runs again:
redis-server $dir/redis.conf --daemonize yes --pidfile $dir/redis.pid
kill $4       # stop the second nginx: streams of the first miss no event"
wait
