"""Prints what a client gets, after the time in milliseconds at which it came."""

import time

_last_id = ""


def show(what):
    print(time.time_ns() // 1_000_000, what, flush=True)


def show_line(line):
    """Shows an event when its data has come, and each heartbeat."""
    global _last_id
    name, colon, value = line.rstrip("\n").partition(":")
    value = value.removeprefix(" ")
    if name == "id":
        _last_id = value
    elif name == "data":
        show(f"event {_last_id} {len(value)}")
    elif name == "" and colon:
        show("heartbeat")
