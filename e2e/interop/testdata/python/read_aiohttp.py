import asyncio
import sys

import aiohttp

from show import show, show_line


async def read():
    async with aiohttp.ClientSession(raise_for_status=True) as session:
        async with session.get(sys.argv[1]) as answer:
            async for line in answer.content:
                show_line(line.decode())


asyncio.run(read())
show("end")
