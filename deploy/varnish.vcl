# Varnish before sse-server. hitch before Varnish does TLS. Start
#   sse-server -addr 127.0.0.1:3001 -origins https://dashboard.example.com
#   varnishd -f varnish.vcl -a 127.0.0.1:8443,PROXY -p feature=+http2
#   hitch --frontend=[*]:443 --backend=[127.0.0.1]:8443 --write-proxy-v2=on
#     --alpn-protos=h2,http/1.1 dashboard.pem
vcl 4.1;

backend sse_server {
    .host = "127.0.0.1";
    .port = "3001";
    .between_bytes_timeout = 90s; # three heartbeats
}

sub vcl_recv {
    # By default, Varnish cuts each HTTP/1.1 stream after ten minutes.
    set sess.send_timeout = 365d;

    # Replace the header, because a client could forge it.
    set req.http.X-Forwarded-For = client.ip;

    # For a path prefix: remove the prefix.
    set req.url = regsub(req.url, "^/machines/a/", "/");

    # Each viewer has a stream of its own.
    return (pass);
}

sub vcl_backend_fetch {
    # The server compresses no stream for Varnish, because Varnish may unpack it in pieces of
    # 32 KiB. With pass, it does not.
    unset bereq.http.X-Varnish;
}
