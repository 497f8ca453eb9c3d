package main

import (
	"net/http"
	"strings"
)

// A fault is what a hop does to a stream. Each has its own cure.
type fault int

const (
	buffering      fault = iota // events wait for a buffer to fill
	delay                       // each event waits for a fixed time
	compression                 // events wait in a compressor
	silence                     // the response ends after a time without data
	age                         // the response ends after a time, whatever was sent
	badGateway                  // 502: the upstream does not answer
	noUpstream                  // 503: there is no upstream that works
	gatewayTimeout              // 504: the upstream's head did not come in time
)

// A product is a proxy that the doctor knows.
type product struct {
	name  string
	marks []mark           // in the answers that it passes on
	page  string           // in its own answer to an invalid request, where that has no mark
	cures map[fault]string // a fault that it cannot have is missing
}

// A mark is a header by which a product is recognised. An empty text means any value.
type mark struct {
	header string
	text   string // in lower case
}

var nginx = &product{
	name:  "nginx",
	marks: []mark{{"Server", "nginx"}},
	cures: map[fault]string{
		buffering: "proxy_buffering off; in the stream's location",
		compression: "gzip off; in the stream's location, or text/event-stream out of " +
			"gzip_types",
		silence:        "proxy_read_timeout 1h; in the stream's location",
		badGateway:     "the address in proxy_pass, or start the server there; see the error log",
		noUpstream:     "limit_req, limit_conn and return 503 in the stream's location",
		gatewayTimeout: "proxy_read_timeout 1h; or the server: flush the head at once",
	},
}

var caddy = &product{
	name:  "Caddy",
	marks: []mark{{"Server", "caddy"}, {"Via", "caddy"}},
	cures: map[fault]string{
		buffering: "flush_interval -1 in reverse_proxy, and no buffer_responses or " +
			"response_buffers there",
		compression: "no encode for the stream's path",
		silence:     "no read_timeout in the transport of reverse_proxy",
		age:         "no write in the timeouts of the global option servers",
		badGateway:  "the address in reverse_proxy, or start the server there",
		noUpstream:  "the health checks of reverse_proxy, or start the server there",
		gatewayTimeout: "no response_header_timeout in the transport, or the server: flush the " +
			"head at once",
	},
}

var haproxy = &product{
	name: "HAProxy",
	page: "Your browser sent an invalid request.",
	cures: map[fault]string{
		buffering:   "no http-response wait-for-body for the stream, and no filter that stores it",
		delay:       "option http-no-delay",
		compression: "text/event-stream out of compression type",
		silence: "timeout server 1h and timeout client 1h (timeout tunnel is for " +
			"WebSockets), or heartbeats more often",
		badGateway: "the address in server, or what the server sends: it is no valid HTTP",
		noUpstream: "start the server, or correct its address or check in the backend",
		gatewayTimeout: "timeout server 1h and no http-response wait-for-body, or the server: " +
			"flush the head at once",
	},
}

var apache = &product{
	name:  "Apache httpd",
	marks: []mark{{"Server", "apache"}, {"Via", "apache"}},
	cures: map[fault]string{
		buffering: "flushpackets=on in ProxyPass, and no BUFFER or SUBSTITUTE output filter " +
			"for the stream",
		compression:    "SetEnvIf Request_URI ^/stream no-gzip with the stream's path",
		silence:        "timeout=3600 in ProxyPass",
		badGateway:     "the address in ProxyPass: Apache does not understand the answer",
		noUpstream:     "the address in ProxyPass, or start the server there; see the error log",
		gatewayTimeout: "timeout=3600 in ProxyPass, or the server: flush the head at once",
	},
}

var varnish = &product{
	name:  "Varnish",
	marks: []mark{{"X-Varnish", ""}, {"Via", "varnish"}},
	cures: map[fault]string{
		buffering: `if (req.http.Accept ~ "text/event-stream") { return (pipe); } in vcl_recv: ` +
			"Varnish stores responses, and unpacks gzip in pieces of 32 KiB",
		compression:    "no beresp.do_gzip for the stream: Varnish compresses in pieces of 32 KiB",
		silence:        "between_bytes_timeout 1h, and pipe_timeout 1h where the stream is piped",
		age:            "send_timeout 1d: it limits the whole response",
		badGateway:     "the backend's address, or start the server there",
		noUpstream:     "the backend's address or probe, or start the server there",
		gatewayTimeout: "first_byte_timeout 1h, or the server: flush the head at once",
	},
}

var lighttpd = &product{
	name:  "lighttpd",
	marks: []mark{{"Server", "lighttpd"}},
	cures: map[fault]string{
		buffering:   "server.stream-response-body = 2: without it the whole response is stored",
		compression: "text/event-stream out of deflate.mimetypes",
		silence:     `"read-timeout" => 3600 in proxy.server`,
		badGateway:  "the host and port in proxy.server, or start the server there",
		noUpstream:  "the host and port in proxy.server, or start the server there",
		gatewayTimeout: `"read-timeout" => 3600 in proxy.server, or the server: flush the head ` +
			"at once",
	},
}

var squid = &product{
	name:  "Squid",
	marks: []mark{{"Via", "squid"}, {"Server", "squid"}, {"X-Squid-Error", ""}},
	cures: map[fault]string{
		buffering:      "no icap_service or ecap_service for the stream, and no delay_pools",
		silence:        "read_timeout 1 hour",
		age:            "client_lifetime 1 day",
		badGateway:     "the address in cache_peer: Squid does not understand the answer",
		noUpstream:     "the address in cache_peer, or start the server there",
		gatewayTimeout: "read_timeout 1 hour, or the server: flush the head at once",
	},
}

var nghttpx = &product{
	name:  "nghttpx",
	marks: []mark{{"Via", "nghttpx"}, {"Server", "nghttpx"}},
	cures: map[fault]string{
		silence:        "--backend-read-timeout=1h",
		badGateway:     "the address in --backend, or start the server there",
		noUpstream:     "the address in --backend, or start the server there",
		gatewayTimeout: "--backend-read-timeout=1h, or the server: flush the head at once",
	},
}

// products are in the order in which a person would suspect them.
var products = []*product{nginx, caddy, haproxy, apache, varnish, lighttpd, squid, nghttpx}

// serverCures are for the server itself, whatever it is.
var serverCures = map[fault]string{
	buffering:      "flush after the headers and after each event",
	delay:          "TCP_NODELAY on the connection",
	compression:    "flush the compressor after each event, or do not compress the stream",
	silence:        "heartbeats more often than it or the proxy gives up, and no idle timeout",
	age:            "no write timeout and no limit on the time of a request",
	badGateway:     "what listens at this address: its own upstream does not answer",
	noUpstream:     "what the body or Retry-After of the answer says: it is full or not ready",
	gatewayTimeout: "flush the head at once",
}

// markedProducts gives the products that left a mark in the header.
func markedProducts(header http.Header) (found []*product) {
	for _, p := range products {
		if p.markedIn(header) {
			found = append(found, p)
		}
	}
	return found
}

func (p *product) markedIn(header http.Header) bool {
	for _, m := range p.marks {
		values, present := header[m.header]
		text := strings.ToLower(strings.Join(values, " "))
		if present && strings.Contains(text, m.text) {
			return true
		}
	}
	return false
}

// productOfPage gives the product that wrote an error page, or nil.
func productOfPage(page string) *product {
	for _, p := range products {
		if p.page != "" && strings.Contains(page, p.page) {
			return p
		}
	}
	return nil
}

// cure gives what to change in p against f, and false if p cannot cause it.
func (p *product) cure(f fault) (text string, ok bool) {
	cure, ok := p.cures[f]
	return p.name + ": " + cure, ok
}
