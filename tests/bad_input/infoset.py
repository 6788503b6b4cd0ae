#!/usr/bin/env python3
"""Reads what was sent and what came out once more, by libexpat, and compares the infosets.

    infoset.py FOLDER

FOLDER/sent has a line of JSON for each sender: its address, the bytes of its stream, whether they were damaged, and
how the server ended the stream. FOLDER/received holds the bytes of the receiver's stream. The last line says how much
was compared; whatever does not fit is printed and makes the exit status 1.
"""

import base64
import json
import os
import sys
from xml.parsers import expat

# No namespace can hold it: it is no character of XML.
APART = "\x0c"
XML = "http://www.w3.org/XML/1998/namespace" + APART
CLIENT = "jabber:client" + APART
HEAD = ("id", "type", XML + "lang")


class Stream:
    """The elements of a stream, as far as it is well-formed."""

    def __init__(self, data, whole):
        self.elements = []
        self.error = None
        self.at = 0
        self.header = None
        self.open = []
        parser = expat.ParserCreate(namespace_separator=APART)
        parser.buffer_text = True
        parser.ordered_attributes = False
        parser.StartElementHandler = self.start
        parser.EndElementHandler = self.end
        parser.CharacterDataHandler = self.text
        self.strange = False
        parser.CommentHandler = parser.ProcessingInstructionHandler = self.odd
        parser.StartDoctypeDeclHandler = self.odd
        try:
            parser.Parse(data, whole)
        except expat.ExpatError as error:
            self.error = str(error)
            self.at = parser.ErrorByteIndex

    def odd(self, *_):
        self.strange = True

    def start(self, name, attributes):
        if self.header is None:
            self.header = attributes
            return
        self.open.append([name, dict(attributes), []])

    def end(self, name):
        if not self.open:
            return
        element = self.open.pop()
        if self.open:
            self.open[-1][2].append(element)
        else:
            self.elements.append(element)

    def text(self, text):
        if self.open:
            children = self.open[-1][2]
            if children and isinstance(children[-1], str):
                children[-1] += text
            else:
                children.append(text)


def stamped(element, lang):
    """What of a stanza must arrive: not who it is from and for, and no attribute that no stanza has."""
    name, attributes, children = element
    kept = {k: v for k, v in attributes.items() if k in HEAD or APART in k}
    if lang is not None:
        kept.setdefault(XML + "lang", lang)
    return [name, kept, children]


def is_stanza(element):
    return element[0] in (CLIENT + "message", CLIENT + "presence", CLIENT + "iq")


def is_goodbye(element):
    """The server's own word that a sender has left."""
    name, attributes, children = element
    return name == CLIENT + "presence" and attributes.get("type") == "unavailable" and not children


def main():
    folder = sys.argv[1]
    wrong = []
    with open(os.path.join(folder, "received"), "rb") as file:
        received = Stream(file.read(), False)
    if received.error:
        wrong.append(f"the receiver's stream: {received.error}")
    heard = {}
    for element in received.elements:
        sender = element[1].get("from")
        # The server's own answers to the receiver's pings are no part of this.
        if is_stanza(element) and not is_goodbye(element) and sender != "localhost":
            heard.setdefault(sender, []).append(element)
    compared = senders = refused = 0
    known = set()
    with open(os.path.join(folder, "sent"), encoding="ascii") as file:
        for line in file:
            sender = json.loads(line)
            senders += 1
            known.add(sender["from"])
            data = base64.b64decode(sender["bytes"])
            sent = Stream(data, True)
            lang = (sent.header or {}).get(XML + "lang")
            expected = [stamped(e, lang) for e in sent.elements if is_stanza(e)]
            got = [stamped(e, None) for e in heard.get(sender["from"], [])]
            compared += len(got)
            where = f"{sender['from']} ({len(data)} bytes, ended {sender['end']})"
            if sent.error is None and not sender["damaged"]:
                if got != expected:
                    wrong.append(f"{where}: not what was sent\n{first_difference(expected, got)}")
                continue
            if sent.error is not None and not sender["damaged"]:
                wrong.append(f"{where}: the test itself sent bad XML: {sent.error} at {sent.at}: {around(data, sent.at)}")
                continue
            # What comes out is some of what stands before the damage, in order, and nothing else.
            rest = iter(expected)
            for element in got:
                if not any(element == candidate for candidate in rest):
                    nearest = min(expected, key=lambda e: e[1].get("id") != element[1].get("id"), default=None)
                    wrong.append(f"{where}: was never sent: {difference(nearest, element, '')}\n{around(data, sent.at)}")
                    break
            # To libexpat a stream that just stops is an error; to a server it is a client that has gone.
            cut = sent.error and ("no element found" in sent.error or "unclosed" in sent.error or "partial" in sent.error)
            # A CDATA section without an end is judged when it ends, which it never does.
            cut = cut or is_in_endless_cdata(data, sent.at)
            if sent.error and not cut and sender["end"] in ("closed", "gone"):
                wrong.append(f"{where}: {sent.error} at {sent.at}, and no stream error: {around(data, sent.at)}")
            refused += sender["end"] not in ("closed", "gone")
    for stranger in set(heard) - known:
        wrong.append(f"stanzas from {stranger}, who sent none")
    for text in wrong[:20]:
        print(text)
    print(f"{compared} stanzas of {senders} streams compared, {refused} streams refused, {len(wrong)} wrong")
    sys.exit(1 if wrong else 0)


def first_difference(expected, got):
    for n, (a, b) in enumerate(zip(expected, got)):
        if a != b:
            return f"  stanza {n}: {difference(a, b, '')}"
    return f"  sent {len(expected)}, got {len(got)}"


def difference(a, b, path):
    """Where two elements begin to differ."""
    if not isinstance(a, list) or not isinstance(b, list):
        return f"{path}: {str(a)[:200]!r} became {str(b)[:200]!r}"
    path = f"{path}/{a[0]}"
    if a[:2] != b[:2]:
        return f"{path}: {a[:2]!r} became {b[:2]!r}"
    for mine, other in zip(a[2], b[2]):
        if mine != other:
            return difference(mine, other, path)
    return f"{path}: {len(a[2])} children became {len(b[2])}"


def is_in_endless_cdata(data, at):
    begin = data.rfind(b"<![CDATA[", 0, at)
    return begin >= 0 and data.find(b"]]>", begin) < 0


def around(data, at):
    return data[max(0, at - 80):at + 40]


if __name__ == "__main__":
    main()
