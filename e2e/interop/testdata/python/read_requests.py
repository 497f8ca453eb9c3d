import sys

import requests

from show import show, show_line

with requests.get(sys.argv[1], stream=True) as answer:
    answer.raise_for_status()
    for line in answer.iter_lines(decode_unicode=True):
        show_line(line)
show("end")
