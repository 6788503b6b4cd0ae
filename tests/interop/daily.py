"""slixmpp on an ordinary day: see daily.rs for what it is told to do, and what it tells.

    daily.py JID PASSWORD HOST PORT
"""

import asyncio
import hashlib
import logging
import ssl
import sys
from xml.etree import ElementTree

import slixmpp

BOUND_S = 120
PAGE = 7
PICTURE = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c489"
    "0000000d49444154789c6360606060000000050001a5f645400000000049454e44ae426082"
)
BOOKMARKS = "urn:xmpp:bookmarks:1"


class Day(slixmpp.ClientXMPP):
    def __init__(self, jid, password, host, port):
        super().__init__(jid, password)
        self.address, self.ending, self.pages = (host, port), False, 0
        self.done = asyncio.get_event_loop().create_future()
        self.ssl_context.check_hostname = False
        self.ssl_context.verify_mode = ssl.CERT_NONE
        for plugin in ("0059", "0060", "0163", "0084", "0191", "0198", "0280", "0313"):
            self.register_plugin(f"xep_{plugin}")
        self.add_event_handler("session_start", self.on_start)
        self.add_event_handler("session_resumed", lambda _: self.tell("resumed"))
        self.add_event_handler("sm_failed", lambda _: self.tell("not resumed"))
        self.add_event_handler("disconnected", self.on_disconnected)
        self.add_event_handler("message", self.on_message)
        self.add_event_handler("carbon_received", self.on_carbon)
        self.add_filter("out", self.count_pages)

    def tell(self, word):
        print(word, flush=True)

    async def on_start(self, _):
        await self.get_roster()
        await self.plugin["xep_0280"].enable()
        self.send_presence()
        self.tell("online")

    def on_disconnected(self, _):
        if not self.ending:
            self.connect(*self.address)

    def on_message(self, message):
        if message["type"] == "chat" and message["body"]:
            self.tell("heard: " + message["body"])

    def on_carbon(self, message):
        self.tell("carbon: " + message["carbon_received"]["body"])

    def count_pages(self, stanza):
        if stanza.xml.find("{urn:xmpp:mam:2}query") is not None:
            self.pages += 1
        return stanza

    async def archive(self, peer):
        kept = self.plugin["xep_0313"].iterate(with_jid=slixmpp.JID(peer), rsm={"max": PAGE})
        bodies = [message["mam_result"]["forwarded"]["stanza"]["body"] async for message in kept]
        self.tell(f"archive: {' '.join(bodies)} in {self.pages} pages")

    async def avatar(self):
        name = hashlib.sha1(PICTURE).hexdigest()
        await self.plugin["xep_0084"].publish_avatar(PICTURE)
        about = {"id": name, "type": "image/png", "bytes": str(len(PICTURE)), "height": "1", "width": "1"}
        await self.plugin["xep_0084"].publish_avatar_metadata(about)
        found = await self.plugin["xep_0084"].retrieve_avatar(self.boundjid.bare, name)
        data = found["pubsub"]["items"]["item"]["avatar_data"]["value"]
        self.tell("avatar: " + hashlib.sha1(data).hexdigest())

    async def bookmark(self, room):
        payload = ElementTree.Element(f"{{{BOOKMARKS}}}conference", {"name": "A room", "autojoin": "true"})
        options = self.plugin["xep_0004"].make_form(ftype="submit")
        options.add_field("FORM_TYPE", "hidden", value="http://jabber.org/protocol/pubsub#publish-options")
        for name, value in (
            ("pubsub#persist_items", "true"),
            ("pubsub#max_items", "max"),
            ("pubsub#send_last_published_item", "never"),
            ("pubsub#access_model", "whitelist"),
        ):
            options.add_field(name, value=value)
        own = self.boundjid.bare
        await self.plugin["xep_0060"].publish(own, BOOKMARKS, id=room, payload=payload, options=options)
        kept = await self.plugin["xep_0060"].get_items(own, BOOKMARKS)
        self.tell("bookmarks: " + " ".join(item["id"] for item in kept["pubsub"]["items"]))

    async def block(self, whom):
        await self.plugin["xep_0191"].block({slixmpp.JID(whom)})
        blocked = await self.plugin["xep_0191"].get_blocked_jids()
        self.tell("blocked: " + " ".join(str(jid) for jid in blocked))

    async def unblock(self, whom):
        await self.plugin["xep_0191"].unblock({slixmpp.JID(whom)})
        self.tell("unblocked")

    async def end(self):
        self.ending = True
        await self.disconnect()
        self.done.set_result(None)

    async def obey(self):
        orders = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
        while order := (await orders.readline()).decode().split():
            await getattr(self, order[0])(*order[1:])


async def main():
    jid, password, host, port = sys.argv[1:]
    day = Day(jid, password, host, int(port))
    day.connect(host, int(port))
    obeying = asyncio.ensure_future(day.obey())
    await asyncio.wait_for(asyncio.wait([day.done, obeying], return_when=asyncio.FIRST_COMPLETED), BOUND_S)
    # An order that failed says why.
    if obeying.done():
        obeying.result()


# What was said is looked at where a day fails.
logging.basicConfig(level=logging.DEBUG, format="%(relativeCreated)d %(message)s")
for chatty in ("asyncio", "slixmpp.plugins.base"):
    logging.getLogger(chatty).setLevel(logging.WARNING)
asyncio.run(main())
