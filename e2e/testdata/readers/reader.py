"""Prints each id and heartbeat of the stream at a URL, after the time at which it came."""

import sys
import time

import requests

answer = requests.get(sys.argv[1], stream=True)
for line in answer.iter_lines():
    if line.startswith((b"id: ", b": ")):
        print(time.time_ns() // 1_000_000, line.decode(), flush=True)
