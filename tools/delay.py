"""Stands before a server on 127.0.0.1, speaks TLS for it, and delays what is answered as a network would.

    delay.py PORT SERVER-PORT MILLISECONDS CERTIFICATE KEY [FILE]

Whatever takes a round trip, TCP's and TLS's handshakes too, takes that much longer. How much moves at a time
isn't limited. FILE always says how many requests there have been.
"""

import asyncio
import re
import socket
import ssl
import sys
import time

port, server, delay = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]) / 1000
certificate, key = sys.argv[4:6]
count_file = sys.argv[6] if len(sys.argv) > 6 else None
AT_ONCE = 1 << 18
# The first line of one. No object holds such a line by chance.
REQUEST = re.compile(rb"(?:GET|HEAD|PUT|POST|DELETE) [^ \r\n]+ HTTP/1\.1\r\n")
requests = 0


async def counted(reader, writer):
    """As `at_once`, of what a client asks."""
    global requests
    kept = b""
    while data := await reader.read(AT_ONCE):
        # A request's first line may come in pieces.
        kept += data
        found = [match.end() for match in REQUEST.finditer(kept)]
        kept = kept[found[-1] if found else 0:][-4096:]
        if found:
            requests += len(found)
            with open(count_file, "w") as file:
                file.write(str(requests))
        writer.write(data)
        await writer.drain()


async def at_once(reader, writer, connection=None):
    """What is read goes on, and is acknowledged at once where it comes from `connection`: bodies of answers came 42 ms
    behind their heads otherwise."""
    while data := await reader.read(AT_ONCE):
        if connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        writer.write(data)
        await writer.drain()


async def later(reader, writer, _connection):
    # What has come, and when it is due.
    waiting = asyncio.Queue(256)

    async def take():
        data = True
        while data:
            data = await reader.read(AT_ONCE)
            await waiting.put((time.monotonic() + delay, data))

    taking = asyncio.create_task(take())
    try:
        while True:
            due, data = await waiting.get()
            await asyncio.sleep(due - time.monotonic())
            if not data:
                return
            writer.write(data)
            await writer.drain()
    finally:
        taking.cancel()
        await asyncio.gather(taking, return_exceptions=True)


async def join(reader, writer, onto, answer, ask=at_once):
    """Connects a client with the server at the port `onto`, until either ends."""
    onto_reader, onto_writer = await asyncio.open_connection("127.0.0.1", onto, limit=AT_ONCE)
    ways = [
        asyncio.create_task(ask(reader, onto_writer)),
        asyncio.create_task(answer(onto_reader, writer, onto_writer.get_extra_info("socket"))),
    ]
    await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    for way in ways:
        way.cancel()
    await asyncio.gather(*ways, return_exceptions=True)
    writer.close()
    onto_writer.close()


async def main():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    async def decrypt(reader, writer):
        await join(reader, writer, server, at_once, counted if count_file else at_once)

    behind = await asyncio.start_server(decrypt, "127.0.0.1", 0, ssl=context, limit=AT_ONCE)
    behind_port = behind.sockets[0].getsockname()[1]

    async def slow(reader, writer):
        await asyncio.sleep(delay)
        await join(reader, writer, behind_port, later)

    front = await asyncio.start_server(slow, "127.0.0.1", port, limit=AT_ONCE)
    await asyncio.gather(behind.serve_forever(), front.serve_forever())


asyncio.run(main())
