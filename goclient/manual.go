package main

// manual is what -h prints before the flags.
const manual = `sse-client opens, checks and measures server-sent event streams of any server.

usage: sse-client [-url URL] [flags]

It reconnects as a browser does: after the last "retry" that the server sent (3s before that),
with Last-Event-ID; 204 ends a stream for good. A browser gives up at any other answer that is
not 200 with text/event-stream; sse-client counts an error and tries again. Redirects are
followed, user:password@ in the URL is basic authentication, SSL_CERT_FILE names other trusted
certificates. A link-local address has its zone as in http://[fe80::1%25eth0]:3001/.

Exit status: 0 all is well, 1 something was wrong (see "wrong" in the summary), 2 bad usage.
Wrong are what -check finds; a stream silent for more than two heartbeats; an event over 1 MiB;
an answer at which a browser would give up; a stream whose last attempt failed; a publish that
failed or did not reach a stream in 10 s.

-check says what is looked at:
  none      nothing
  ids       ids that are decimal numbers increase (a new connection may repeat the last)
  json      the same, and the data of each event is JSON
  snapshot  the same, and each event without a name is an object with the keys
            system_status, metrics, activities and timestamp
  auto      ids; and snapshots, if the first event of a stream has two of these keys

-publish measures from just before the request to the first event at each stream that no stream
had before it. A publish with which a second new id arrives (the server sent one of its own) is
left out of the results and counted as mixed; events without ids cannot be told apart.

-json keys: url, streams, stalled, slow, elapsed_s, streams_open, streams_opened,
  streams_ended_by_204, unread_open, unread_closed_by_server, reconnects, closed_by_server,
  closed_uncleanly, errors, error_kinds {text: count}, events, events_per_s, heartbeats, bytes;
  wrong [{problem, count, example}]; each with p50, p99 and max: connect_ms (TCP and TLS),
  headers_ms and first_event_ms (from the first dial), spread_ms (one id, from the first to the
  last stream open when it appeared), event_gap_ms, away_ms (from the last event of a
  connection to the first of the next), heartbeat_gap_ms.
  -publish adds publish_rounds, publish_rounds_mixed, missed, delivery_ms, last_delivery_ms (of
  the last stream of each round), bytes_per_delivery. Linux: client_rss_per_stream_kib,
  client_cpu_us_per_delivery. -pid adds rss_before_mib, rss_after_mib, rss_per_stream_kib,
  connect_cpu_us_per_stream, cpu_us_per_delivery (an event received while publishing).
  -forward: forward {sent, failed, replaced, dropped}. -doctor: findings [{wrong, text, change}].

flags:
`
