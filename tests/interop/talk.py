"""slixmpp in a conversation: see main.rs for what both sides say.

    talk.py JID PASSWORD PEER HOST PORT starttls|direct MECHANISM first|second
"""

import asyncio
import logging
import ssl
import sys

import slixmpp

BOUND_S = 60


class Talker(slixmpp.ClientXMPP):
    def __init__(self, jid, password, peer, security, mechanism, role):
        mechanisms = {"feature_mechanisms": {"use_mech": mechanism}}
        super().__init__(jid, password, plugin_config=mechanisms)
        self.peer, self.role = peer, role
        self.seen, self.said = set(), False
        self.done = asyncio.get_event_loop().create_future()
        self.auto_authorize = None
        self.auto_subscribe = False
        self.enable_direct_tls = security == "direct"
        self.enable_starttls = security == "starttls"
        self.ssl_context.check_hostname = False
        self.ssl_context.verify_mode = ssl.CERT_NONE
        self.add_event_handler("session_start", self.on_start)
        self.add_event_handler("failed_all_auth", lambda _: self.fail("not authenticated"))
        self.add_event_handler("presence_subscribe", self.on_subscribe)
        self.add_event_handler("roster_update", self.on_roster)
        self.add_event_handler("presence_available", self.on_presence)
        self.add_event_handler("presence_unavailable", self.on_gone)
        self.add_event_handler("message", self.on_message)

    def tell(self, word):
        print(word, flush=True)

    def fail(self, why):
        if not self.done.done():
            self.done.set_exception(RuntimeError(why))

    async def on_start(self, _):
        await self.get_roster()
        self.send_presence()
        self.tell("online")
        if self.role == "first":
            self.send_presence(pto=self.peer, ptype="subscribe")

    def on_subscribe(self, presence):
        self.send_presence(pto=presence["from"].bare, ptype="subscribed")
        if self.role == "second":
            self.send_presence(pto=presence["from"].bare, ptype="subscribe")

    def on_roster(self, iq):
        item = iq["roster"]["items"].get(slixmpp.JID(self.peer))
        if item and item["subscription"] == "both":
            self.learn("roster both")

    def on_presence(self, presence):
        if presence["from"].bare == self.peer:
            self.learn("presence")

    def learn(self, what):
        if what not in self.seen:
            self.seen.add(what)
            self.tell(what)
        if self.role == "first" and {"roster both", "presence"} <= self.seen and not self.said:
            self.said = True
            self.send_message(mto=self.peer, mbody="Grüße from slixmpp", mtype="chat")

    def on_message(self, message):
        self.tell("heard: " + message["body"])
        if self.role == "second":
            message.reply("Grüße back from slixmpp").send()
        elif not self.done.done():
            self.done.set_result(None)

    def on_gone(self, presence):
        if presence["from"].bare == self.peer and self.role == "second":
            self.tell("gone")
            if not self.done.done():
                self.done.set_result(None)


async def main():
    jid, password, peer, host, port, security, mechanism, role = sys.argv[1:]
    talker = Talker(jid, password, peer, security, mechanism, role)
    talker.connect(host, int(port))
    await asyncio.wait_for(talker.done, BOUND_S)
    await talker.disconnect()


# What was said is looked at where a conversation fails.
logging.basicConfig(level=logging.DEBUG, format="%(relativeCreated)d %(message)s")
logging.getLogger("slixmpp.xmlstream.xmlstream").setLevel(logging.DEBUG)
for chatty in ("asyncio", "slixmpp.plugins.base"):
    logging.getLogger(chatty).setLevel(logging.WARNING)
asyncio.run(main())
