// xmpp.js in a conversation: see main.rs for what both sides say.
//
//     talk.js JID PASSWORD PEER HOST PORT starttls|direct MECHANISM first|second

import { client, jid as parse, xml } from "@xmpp/client";

const BOUND_MS = 60_000;
const [, , jid, password, peer, host, port, security, mechanism, role] = process.argv;

// The servers under test sign their own certificates.
process.env.NODE_TLS_REJECT_UNAUTHORIZED = "0";
process.removeAllListeners("warning");

const me = parse(jid);
const xmpp = client({
  service: `${security === "direct" ? "xmpps" : "xmpp"}://${host}:${port}`,
  domain: me.domain,
  resource: me.resource,
  credentials: async (authenticate, mechanisms) => {
    if (!mechanisms.includes(mechanism)) {
      throw new Error(`${mechanism} is not offered: ${mechanisms}`);
    }
    await authenticate({ username: me.local, password }, mechanism);
  },
});
const seen = new Set();
let said = false;

const tell = (word) => console.log(word);
const bound = setTimeout(() => fail(new Error("the conversation does not end")), BOUND_MS);

function fail(error) {
  console.error(error);
  process.exit(1);
}

// The library begins to wait for the server's header once its own is written: one that has come by then it misses, and it
// complains two seconds later, whatever has happened since. A login that comes to nothing meets the bound above.
function failUnlessLate(error) {
  if (error.name !== "TimeoutError") {
    fail(error);
  }
}

async function end() {
  clearTimeout(bound);
  await xmpp.stop();
  process.exit(0);
}

async function learn(what) {
  if (!seen.has(what)) {
    seen.add(what);
    tell(what);
  }
  if (role === "first" && seen.has("roster both") && seen.has("presence") && !said) {
    said = true;
    await xmpp.send(xml("message", { to: peer, type: "chat" }, xml("body", {}, "Grüße from xmpp.js")));
  }
}

async function onPresence(stanza, from) {
  switch (stanza.attrs.type) {
    case "subscribe":
      await xmpp.send(xml("presence", { to: from, type: "subscribed" }));
      if (role === "second") {
        await xmpp.send(xml("presence", { to: from, type: "subscribe" }));
      }
      break;
    case "unavailable":
      if (role === "second") {
        tell("gone");
        await end();
      }
      break;
    case undefined:
      await learn("presence");
  }
}

xmpp.iqCallee.set("jabber:iq:roster", "query", (context) => {
  for (const item of context.element.getChildren("item")) {
    if (item.attrs.jid === peer && item.attrs.subscription === "both") {
      learn("roster both").catch(fail);
    }
  }
  return true;
});

xmpp.on("stanza", async (stanza) => {
  const from = stanza.attrs.from ? parse(stanza.attrs.from).bare().toString() : "";
  if (from !== peer) {
    return;
  }
  if (stanza.is("presence")) {
    await onPresence(stanza, from);
  } else if (stanza.is("message") && stanza.getChildText("body")) {
    tell(`heard: ${stanza.getChildText("body")}`);
    if (role === "second") {
      const body = xml("body", {}, "Grüße back from xmpp.js");
      await xmpp.send(xml("message", { to: stanza.attrs.from, type: "chat" }, body));
    } else {
      await end();
    }
  }
});

xmpp.on("online", async () => {
  await xmpp.iqCaller.get(xml("query", "jabber:iq:roster"));
  await xmpp.send(xml("presence"));
  tell("online");
  if (role === "first") {
    await xmpp.send(xml("presence", { to: peer, type: "subscribe" }));
  }
});
xmpp.on("error", failUnlessLate);
// What was said is looked at where a conversation fails.
xmpp.on("element", (element) => console.error(performance.now().toFixed(), "<", element.toString()));
xmpp.on("send", (element) => console.error(performance.now().toFixed(), ">", element.toString()));
xmpp.start().catch(failUnlessLate);
