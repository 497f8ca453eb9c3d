import sys

import httpx

from show import show, show_line

with httpx.stream("GET", sys.argv[1]) as answer:
    answer.raise_for_status()
    for line in answer.iter_lines():
        show_line(line)
show("end")
