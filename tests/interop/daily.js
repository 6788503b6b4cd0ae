// xmpp.js on an ordinary day: see daily.rs for what it is told to do, and what it tells.
//
//     daily.js JID PASSWORD HOST PORT

import { createHash } from "node:crypto";
import { createInterface } from "node:readline";

import { client, jid as parse, xml } from "@xmpp/client";

const BOUND_MS = 120_000;
const PAGE = 7;
const PICTURE = Buffer.from(
  "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c489" +
    "0000000d49444154789c6360606060000000050001a5f645400000000049454e44ae426082",
  "hex",
);
const ARCHIVE = "urn:xmpp:mam:2";
const BLOCKING = "urn:xmpp:blocking";
const BOOKMARKS = "urn:xmpp:bookmarks:1";
const CARBONS = "urn:xmpp:carbons:2";
const DATA = "urn:xmpp:avatar:data";
const FORMS = "jabber:x:data";
const FORWARD = "urn:xmpp:forward:0";
const METADATA = "urn:xmpp:avatar:metadata";
const PUBSUB = "http://jabber.org/protocol/pubsub";
const PAGING = "http://jabber.org/protocol/rsm";
const SASL = "urn:xmpp:sasl:2";
const MANAGEMENT = "urn:xmpp:sm:3";

const [, , jid, password, host, port] = process.argv;

// The servers under test sign their own certificates.
process.env.NODE_TLS_REJECT_UNAUTHORIZED = "0";
process.removeAllListeners("warning");

const me = parse(jid);
const xmpp = client({ service: `xmpp://${host}:${port}`, domain: me.domain, username: me.local, password });
let ending = false;

const tell = (word) => console.log(word);
const bound = setTimeout(() => fail(new Error("the day does not end")), BOUND_MS);

function fail(error) {
  console.error(error);
  process.exit(1);
}

// With the session: XEP-0386.
xmpp.bind2.use(CARBONS, () => xml("enable", CARBONS));
xmpp.on("online", async () => {
  await xmpp.iqCaller.get(xml("query", "jabber:iq:roster"));
  await xmpp.send(xml("presence"));
  tell("online");
});

const results = [];
xmpp.on("stanza", (stanza) => {
  if (!stanza.is("message")) {
    return;
  }
  const copy = stanza.getChild("received", CARBONS);
  const kept = stanza.getChild("result", ARCHIVE);
  const body = (forwarded) => forwarded.getChild("forwarded", FORWARD).getChild("message").getChildText("body");
  if (copy) {
    tell(`carbon: ${body(copy)}`);
  } else if (kept) {
    results.push(body(kept));
  } else if (stanza.attrs.type === "chat" && stanza.getChildText("body")) {
    tell(`heard: ${stanza.getChildText("body")}`);
  }
});

const field = (name, value) => xml("field", { var: name }, xml("value", {}, value));
const publish = (node, id, payload, ...beside) =>
  xmpp.iqCaller.set(xml("pubsub", PUBSUB, xml("publish", { node }, xml("item", { id }, payload)), ...beside));
const items = async (node) => {
  const found = await xmpp.iqCaller.get(xml("pubsub", PUBSUB, xml("items", { node })));
  return found.getChild("items").getChildren("item");
};

const orders = {
  async archive(peer) {
    let pages = 0;
    let after = "";
    for (let complete = false; !complete; ) {
      const form = xml("x", { xmlns: FORMS, type: "submit" }, field("FORM_TYPE", ARCHIVE), field("with", peer));
      const paging = xml("set", PAGING, xml("max", {}, String(PAGE)), after ? xml("after", {}, after) : null);
      const iq = await xmpp.iqCaller.request(xml("iq", { type: "set" }, xml("query", ARCHIVE, form, paging)));
      const end = iq.getChild("fin", ARCHIVE);
      after = end.getChild("set", PAGING).getChildText("last");
      complete = end.attrs.complete === "true";
      pages += 1;
    }
    tell(`archive: ${results.join(" ")} in ${pages} pages`);
  },
  async avatar() {
    const sha1 = (bytes) => createHash("sha1").update(bytes).digest("hex");
    const id = sha1(PICTURE);
    await publish(DATA, id, xml("data", DATA, PICTURE.toString("base64")));
    const about = { id, type: "image/png", bytes: String(PICTURE.length), height: "1", width: "1" };
    await publish(METADATA, id, xml("metadata", METADATA, xml("info", about)));
    const [found] = await items(DATA);
    tell(`avatar: ${sha1(Buffer.from(found.getChildText("data", DATA), "base64"))}`);
  },
  async bookmark(room) {
    const options = xml(
      "x",
      { xmlns: FORMS, type: "submit" },
      field("FORM_TYPE", `${PUBSUB}#publish-options`),
      field("pubsub#persist_items", "true"),
      field("pubsub#max_items", "max"),
      field("pubsub#send_last_published_item", "never"),
      field("pubsub#access_model", "whitelist"),
    );
    const payload = xml("conference", { xmlns: BOOKMARKS, name: "A room", autojoin: "true" });
    await publish(BOOKMARKS, room, payload, xml("publish-options", {}, options));
    const rooms = await items(BOOKMARKS);
    tell(`bookmarks: ${rooms.map((item) => item.attrs.id).join(" ")}`);
  },
  async block(whom) {
    await xmpp.iqCaller.set(xml("block", BLOCKING, xml("item", { jid: whom })));
    const list = await xmpp.iqCaller.get(xml("blocklist", BLOCKING));
    tell(`blocked: ${list.getChildren("item").map((item) => item.attrs.jid).join(" ")}`);
  },
  async unblock(whom) {
    await xmpp.iqCaller.set(xml("unblock", BLOCKING, xml("item", { jid: whom })));
    tell("unblocked");
  },
  async end() {
    ending = true;
    clearTimeout(bound);
    await xmpp.stop();
    process.exit(0);
  },
};

createInterface({ input: process.stdin }).on("line", (line) => {
  const [order, ...words] = line.split(" ");
  orders[order](...words).catch(fail);
});

// The library comes again by itself when its socket is gone.
xmpp.on("error", (error) => console.error("error", error));
// What was said is looked at where a day fails.
xmpp.on("element", (element) => {
  console.error(performance.now().toFixed(), "<", element.toString());
  // The library tells of it only behind what came with it. Did it take it for a new session, it told `online` again.
  if (element.is("success", SASL) && element.getChild("resumed", MANAGEMENT)) {
    tell("resumed");
  }
});
xmpp.on("send", (element) => {
  console.error(performance.now().toFixed(), ">", element.toString());
  if (element.is("authenticate", SASL)) {
    tell(`authenticates by ${element.attrs.mechanism}`);
  }
});
xmpp.start().catch((error) => ending || console.error("error", error));
