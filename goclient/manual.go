package main

// manual is what -h prints: the flags by task, each task with an example, in 80 columns.
const manual = `sse-client opens, checks, measures and forwards server-sent event streams of any
server, and says why events come late.

usage: sse-client [flags] [URL] [flags]

WATCH A STREAM
    sse-client -debug http://localhost:3001/dashboard/stream

  URL, -url URL       the stream (http://localhost:3001/dashboard/stream);
                      user:password@ in it is basic authentication
  -debug              print what the first stream brings: the answer with its
                      headers, redirects, retry, events, heartbeats, closes
  -duration TIME      end after this time, such as 30s; 0: at Ctrl-C, or when
                      all streams have ended (0)
  -once               end each stream at its first close
  -header "K: V"      header of -url, -direct and -publish; repeatable
  -token-file FILE    bearer token to send likewise
  -gzip               ask for gzip
  -k                  accept any TLS certificate
  -cacert FILE        trust the certificates in this PEM file, and no others
  -max-event-bytes N  drop larger events (16777216)

CHECK A STREAM
    sse-client -check json -duration 1m https://example.com/stream

  -check WHAT         none; ids: numbers in ids increase; json: and data is
                      JSON; snapshot: and events without a name are
                      dashboard snapshots; auto: what suits the stream (auto)
  -heartbeat TIME     heartbeat to expect: silence of more than two is wrong;
                      0: none (30s; 0 with -d or -X)
  -json               print the summary as JSON

ASK FOR A STREAM THAT ENDS
    sse-client -d @question.json -until '[DONE]' https://api.example.com/chat

  -d BODY, -d @FILE   send this body with the stream's request; @- is standard
                      input. It is JSON unless -header says otherwise
  -X METHOD           method of the stream's request (GET; POST with -d)
  -until TEXT         the stream ends well with an event whose data or name is
                      TEXT; an end without it is wrong
  -events N           the stream ends well after N events; fewer are wrong
  -repeat             send the request again after each end. Without it, -d and
                      -X are sent once for each stream, however it ends

LOAD A SERVER
    sse-client -clients 10000 -stalled 50 -slow 50 -duration 1m URL

  -clients N          streams to open (1)
  -rate N             streams to open in a second (2000)
  -stalled N          of the clients, streams that are never read
  -slow N             of the clients, streams that read 4 bytes a second
  -pid N              process of the server: measure its memory and CPU (Linux)

MEASURE DELIVERIES
    sse-client -clients 1000 -rounds 20 \
      -publish http://localhost:3001/dashboard/trigger-test URL

  -publish URL        request this URL every -gap. Each delivery is measured
                      from the time at which this request was due
  -method METHOD      of -publish (GET; POST with -body)
  -body FILE          send this file with -publish, as JSON
  -gap TIME           from one publish to the next (500ms)
  -rounds N           end after so many publishes, fewer are wrong; 0: go on (0)

FORWARD A STREAM
    sse-client -forward http://edge:3001/dashboard/snapshot \
      -url http://upstream:3001/dashboard/stream

  -forward URL        send the data of each event to this URL. It needs -url.
                      SSE_FORWARD_TOKEN in the environment: its bearer token
  -forward-method M   PUT or POST (PUT)
  -event NAME         forward events of this name (message, and no name)
  -heartbeat TIME     open the stream anew after silence of two (30s); 0: never,
                      for an upstream without heartbeats

FIND OUT WHY EVENTS COME LATE
    sse-client -doctor -direct http://127.0.0.1:3001/stream https://site/stream

  -doctor             watch the stream and say what holds it back
  -direct URL         the same stream without the proxy

  -h, -version        print this, or the version

A flag without an effect is bad usage, such as -check with -doctor.

It reconnects as a browser does: after the server's last retry (3s before that,
250ms at least), with Last-Event-ID. 204 ends a stream. At another answer than
200 with text/event-stream, a browser gives up; sse-client counts an error and
tries again. Streams do not use HTTP_PROXY. A link-local address has its zone
as in http://[fe80::1%25eth0]:3001/.

EXIT STATUS
  0  all is well
  1  something was wrong: see WRONG in the summary
  2  bad usage

Wrong is a stream that never opened, as with 204 to its first request; whose
last attempt failed; that cannot be read; that had no event and was closed at
the end, or three times in a row; that is silent for more than two heartbeats; a
stream of -d or -X that is cut off (a GET stream may be: it comes back); an
answer at which a browser gives up; an event over -max-event-bytes; what -check
finds; an end that -until or -events did not expect; a publish that failed, did
not reach a stream in 10s, or was not over in a second when the run ended; fewer
publishes than -rounds, or none.

KEYS OF -json
  url, streams, stalled, slow, elapsed_s, streams_open, streams_opened,
  streams_ended_by_204, streams_ended_well, unread_open,
  unread_closed_by_server, reconnects, closed_by_server, closed_uncleanly,
  errors, error_kinds {text: count}, events, events_per_s, heartbeats, bytes;
  wrong [{problem, count, example}]; notes [text]

  Each with p50, p90, p99 and max:
  connect_ms          TCP and TLS, from the first dial
  headers_ms          the same, to the end of the response head
  first_event_ms      the same, to the first event
  stream_duration_ms  the same, to the end of a stream that ended well
  event_gap_ms        between two events of a connection
  heartbeat_gap_ms    between two heartbeats of a connection
  away_ms             from a connection's last event to the next one's first
  spread_ms           one id, from the first to the last stream that was open

  -publish adds publish_rounds, publish_late (sent later than due, since the
  one before was not over), publish_rounds_mixed (left out: a second new id
  came), publish_unfinished (left out: the run ended before), missed,
  delivery_ms, last_delivery_ms (the last stream of each round),
  bytes_per_delivery; Linux: client_rss_per_stream_kib,
  client_cpu_us_per_delivery, cpu_step_us_per_delivery (what one clock tick
  makes of it). -pid adds rss_before_mib, rss_after_mib, rss_per_stream_kib,
  connect_cpu_us_per_stream, connect_cpu_step_us_per_stream,
  cpu_us_per_delivery.
  -forward: forward {sent, failed, replaced, dropped}
  -doctor: findings [{wrong, text, change}]
`
