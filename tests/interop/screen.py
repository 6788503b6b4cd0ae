"""What Dino keeps, and what is on its screen.

    screen.py account DATABASE JID RESOURCE PASSWORD   writes the account that it logs in with, before its first start
    screen.py chats DATABASE LINE...                   waits until its chats are these lines, in this order
    screen.py shows SCREEN RRGGBB COUNT                waits until so many pixels have this colour
    screen.py picture SCREEN PNG                       draws what is on the screen; prints how many colours it has

Dino tells nobody what it has written or drawn: so what is waited for is looked at again and again, for BOUND_S at most.
A line of a chat is `< text` where somebody else has said it, and `> text` where the user has.
"""

import sqlite3
import struct
import sys
import time
import zlib
from contextlib import closing
from itertools import chain

BOUND_S = 50
LOOK_AGAIN_S = 0.05
# Of an XWD file: after its header, and the table of colours in entries of this size, come pixels of four bytes.
HEADER = struct.Struct(">25I")
COLOUR_SIZE = 12


def account(database, jid, resource, password):
    """The first of Dino's tables; it makes the others."""
    with sqlite3.connect(database) as db:
        db.execute(
            "CREATE TABLE account (id INTEGER PRIMARY KEY AUTOINCREMENT, bare_jid TEXT UNIQUE NOT NULL,"
            " resourcepart TEXT, password TEXT, alias TEXT, enabled INTEGER, roster_version TEXT,"
            " mam_earliest_synced INTEGER)"
        )
        db.execute(
            "INSERT INTO account (bare_jid, resourcepart, password, alias, enabled) VALUES (?, ?, ?, '', 1)",
            (jid, resource, password),
        )


def chats(database, *wanted):
    def lines():
        # Items that are messages, as its view has them.
        asked = (
            "SELECT m.direction, m.body FROM content_item i JOIN message m ON m.id = i.foreign_id"
            " WHERE i.content_type = 1 AND NOT i.hide ORDER BY i.time, i.id"
        )
        try:
            with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as db:
                return [("> " if sent else "< ") + body for sent, body in db.execute(asked)]
        except sqlite3.OperationalError as why:
            # As long as there is no such table.
            return str(why)

    wait(lines, lambda seen: seen == list(wanted))


def shows(screen, colour, count):
    wait(
        lambda: sum(line.count(tuple(bytes.fromhex(colour))) for line in lines_of(screen)),
        lambda seen: seen >= int(count),
    )


def picture(screen, png):
    lines = lines_of(screen)
    drawn = b"".join(b"\0" + bytes(chain.from_iterable(line)) for line in lines)
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", len(lines[0]), len(lines), 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(drawn)),
        (b"IEND", b""),
    ]
    with open(png, "wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for name, body in parts:
            file.write(struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)))
    print(len(set(chain.from_iterable(lines))))


def lines_of(screen):
    """Of each pixel of each line: red, green, blue."""
    with open(screen, "rb") as file:
        content = file.read()
    header = HEADER.unpack_from(content)
    size, width, height, line_size, colours = header[0], header[4], header[5], header[12], header[19]
    first = size + colours * COLOUR_SIZE
    lines = (content[at:at + 4 * width] for at in range(first, first + height * line_size, line_size))
    # The least significant byte is the first.
    return [list(zip(line[2::4], line[1::4], line[0::4])) for line in lines]


def wait(look, enough):
    end, seen = time.monotonic() + BOUND_S, None
    while time.monotonic() < end:
        seen = look()
        if enough(seen):
            return
        time.sleep(LOOK_AGAIN_S)
    sys.exit(f"only this is there: {seen}")


if __name__ == "__main__":
    {"account": account, "chats": chats, "shows": shows, "picture": picture}[sys.argv[1]](*sys.argv[2:])
