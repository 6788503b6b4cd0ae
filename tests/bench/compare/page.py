"""The page and its plots, from the figures of a run."""

import math
import os
import statistics

import draw

NAMES = ["rookery", "ejabberd", "prosody"]
TITLES = {"rookery": "Rookery", "ejabberd": "ejabberd", "prosody": "Prosody"}


class Figures:
    """Lines of all rounds."""

    def __init__(self, data):
        self.lines = data["lines"]

    def of(self, server, workload, **like):
        def fits(line):
            return line["server"] == server and line["workload"] == workload and all(
                line.get(key) == value for key, value in like.items()
            )

        return [line for line in self.lines if fits(line)]

    def values(self, server, workload, key, **like):
        found = []
        for line in self.of(server, workload, **like):
            value = line
            for part in key.split("/"):
                value = value.get(part) if value else None
            if value is not None:
                found.append(value)
        return found

    def median(self, server, workload, key, **like):
        values = self.values(server, workload, key, **like)
        return statistics.median(values) if values else None


def number(value):
    if value is None:
        return "-"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def cell(values, unit, scale=1.0):
    if not values:
        return "-"
    values = [value * scale for value in values]
    middle, least, most = statistics.median(values), min(values), max(values)
    return f"{number(middle)}{unit} ({number(least)} to {number(most)})"


# What the tables say: words, workload, key, unit, factor, and what else its lines must be like.
COST = [
    ("chat message, saturated", "chat", "cpu_us", {"mode": "saturated"}),
    ("chat message at 1,000 a second", "chat", "cpu_us", {"rate": 1000.0}),
    ("chat message at 4,000 a second", "chat", "cpu_us", {"rate": 4000.0}),
    ("presence delivered, 100 contacts", "presence", "cpu_us", {}),
    ("ping answered, saturated", "ping", "cpu_us", {}),
    ("disco#info answered, saturated", "disco", "cpu_us", {}),
    ("login (TLS, SCRAM-SHA-1, bind, roster, presence)", "login", "cpu_us", {}),
    ("of it a connection with its TLS handshake", "login", "handshake_cpu_us", {}),
    ("logout", "login", "logout_cpu_us", {}),
    ("offline message stored", "offline", "stored_cpu_us", {}),
    ("offline message fetched", "offline", "fetched_cpu_us", {}),
    ("chat message archived for both sides, at 500 a second", "archive_messages", "cpu_us", {}),
    ("page of the last 50 archived messages", "archive_pages", "cpu_us", {}),
]
SPEED = [
    ("chat messages a second, saturated", "chat", "per_second", "", 1.0, {"mode": "saturated"}),
    ("presence delivered a second, saturated", "presence", "per_second", "", 1.0, {}),
    ("pings a second, saturated", "ping", "per_second", "", 1.0, {}),
    ("logins a second, 32 at a time", "login", "per_second", "", 1.0, {}),
    ("chat at 1,000 a second: half in", "chat", "latency_us/p50", " ms", 0.001, {"rate": 1000.0}),
    ("99 % in", "chat", "latency_us/p99", " ms", 0.001, {"rate": 1000.0}),
    ("99.9 % in", "chat", "latency_us/p99.9", " ms", 0.001, {"rate": 1000.0}),
    ("of it in the generator, 99 % in", "chat", "late_us/p99", " ms", 0.001, {"rate": 1000.0}),
    ("chat at 4,000 a second: 99 % in", "chat", "latency_us/p99", " ms", 0.001, {"rate": 4000.0}),
]


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def ratios(figures, row):
    _, workload, key, like = row
    ours = figures.median("rookery", workload, key, **like)
    others = [figures.median(name, workload, key, **like) for name in NAMES[1:]]
    found = [f"{other / ours:.1f}" if ours and other else "-" for other in others]
    return ", ".join(found)


def counts(figures):
    rows = []
    for workload, words in (
        ("chat", "chat messages"), ("presence", "presence"), ("ping", "pings"), ("disco", "disco#info"),
        ("login", "logins"), ("idle_end", "idle sessions that answer in the end"), ("offline", "offline messages"),
        ("archive_messages", "archived messages"), ("archive_pages", "pages of archives"),
    ):
        row = [words]
        for name in NAMES:
            lines = figures.of(name, workload)
            total = {key: sum(line.get(key, 0) for line in lines) for key in ("expected", "lost", "doubled", "disordered", "refused")}
            failures = sum(len(line.get("failures", [])) for line in lines)
            row.append(
                f"{total['expected']:,}: {total['lost']} / {total['doubled']} / {total['disordered']} / {total['refused'] + failures}"
            )
        rows.append(row)
    return table(["sent in all rounds: lost / doubled / out of order / refused or failed"] + [TITLES[n] for n in NAMES], rows)


def text(data):
    figures, machine = Figures(data), data["machine"]
    head = [TITLES[name] for name in NAMES]
    cost = [
        [row[0]] + [cell(figures.values(name, row[1], row[2], **row[3]), "") for name in NAMES] + [ratios(figures, row)]
        for row in COST
    ]
    speed = [
        [row[0]] + [cell(figures.values(name, row[1], row[2], **row[5]), row[3], row[4]) for name in NAMES]
        for row in SPEED
    ]
    memory = []
    for sessions in sorted({line["sessions"] for line in figures.lines if line["workload"] == "idle"}):
        like = {"sessions": sessions}
        memory.append(
            [f"{sessions:,}"] + [
                cell(figures.values(name, "idle", "per_session_kib", **like), " KiB")
                + f"; in all {number((figures.median(name, 'idle', 'pss_kib', **like) or 0) / 1024)} MiB"
                for name in NAMES
            ]
        )
    others = sorted(line["others"] for line in figures.lines if line["others"] is not None)
    versions = data["versions"]
    return f"""# Rookery, ejabberd and Prosody side by side

Made by `tests/bench/compare/run` on {data["date"]}, in one go of {data["minutes"]} minutes: {data["rounds"]} rounds, in each of which every server ran in turn, another one first each time. A figure is the median of the rounds, with the least and the most of them in brackets.

| | |
|---|---|
| machine | {machine["cores"]} cores of {machine["cpu"]}{machine["virtual"]}, {machine["memory_gib"]} GiB; {machine["kernel"]} |
| servers | {versions["rookery"]} (release build); {versions["ejabberd"]}; {versions["prosody"]} |
| load | `rookery-bench` with one thread, on the same cores, which it shares with the server |
| work of others beside it | {others[len(others) // 2]:.1%} of the machine in the median step, {others[-1]:.1%} at most, {data["others_by"]}, steps of memory left out |

All servers speak direct TLS with one certificate (ECDSA, P-256) and log in with SCRAM-SHA-1, whose salted passwords the generator keeps. Their settings are those that they come with, without what bounds rates, with registration, and the same features on: roster, disco, ping, carbons, blocking, private storage, vCard, PEP, client state, stream management, offline messages; an archive only where archiving is measured. Logs go to a file at their usual level. ejabberd keeps its data in Mnesia and has schedulers that sleep when they have nothing to do (`+sbwt none`), as their waiting would be counted as work; Prosody keeps its in files and collects by generations. The whole of it: [rookery.toml](../tests/bench/compare/rookery.toml), [ejabberd.yml](../tests/bench/compare/ejabberd.yml), [prosody.cfg.lua](../tests/bench/compare/prosody.cfg.lua), [servers.py](../tests/bench/compare/servers.py). When each of them syncs to the disk what it keeps is left as it comes and not compared: Rookery does before it says that something is kept.

## What it costs
User and system time of the server's processes in microseconds, as the kernel accounts for it, in ticks of 10 ms for the whole of a run. Saturated: 20 pairs or sessions, at most 64 stanzas of each under way; presence: one publisher, at most 4 updates under way; logins: 32 at a time; archives: some 200 messages in each. At a rate a server wakes for nearly each message, so that one costs more than where many come at once. What the network does in the kernel for nobody in particular (softirq) is in no figure.

{table(["CPU, us"] + head + ["times ours: ejabberd, Prosody"], cost)}

![CPU per stanza](comparison/cpu.svg)

## How fast
Latency is from the moment at which a message was due, whatever became of those before it, until its receiver read it: 20 pairs, messages of some 300 bytes. It has the generator's own part in it, which stands below.

{table(["what"] + head, speed)}

![Latency at 1,000 messages a second](comparison/latency.svg)

## Memory
Proportional set size beyond that of the server without sessions, one account for each available session over TLS, four seconds after the last login, on a server just started on which 200 sessions had come and gone; what those left behind serves the first ones again, which is why 500 seem to take less each. The kernel's memory for sockets is not in it.

{table(["sessions"] + head, memory)}

![Memory per session](comparison/memory.svg)

## What was lost
Messages and presence are numbered and checked for loss, doubles and order, answers for loss and doubles.

{counts(figures)}

## To repeat it
```
cargo build --release -p node -p bench
./tests/bench/compare/run
```
It needs Debian or Ubuntu, installs ejabberd and Prosody where they are missing, and lets neither start by itself. All figures of the run are in [figures.json](comparison/figures.json). A step beside which others had more than a tenth of the machine is done again, at most twice.
"""


def plots(figures, folder):
    groups = [
        (words, {name: figures.median(name, workload, "cpu_us", **like) for name in NAMES})
        for words, workload, like in (
            ("chat,\nsaturated", "chat", {"mode": "saturated"}), ("chat,\n1,000/s", "chat", {"rate": 1000.0}),
            ("presence\ndelivered", "presence", {}), ("ping", "ping", {}), ("disco#info", "disco", {}),
            ("archived,\n500/s", "archive_messages", {}),
        )
    ]
    draw.bars(os.path.join(folder, "cpu.svg"), "CPU of the server per stanza", "microseconds, logarithmic", groups, NAMES)
    memory = {}
    for name in NAMES:
        counts = sorted({line["sessions"] for line in figures.of(name, "idle")})
        memory[name] = [(count, figures.median(name, "idle", "per_session_kib", sessions=count)) for count in counts]
    places = [(count, f"{count:,}") for count, _ in memory["rookery"]]
    draw.lines(
        os.path.join(folder, "memory.svg"), "Memory per idle TLS session", ("sessions", "KiB per session"), memory, places, False
    )
    latency, marks = {}, [50.0, 90.0, 99.0, 99.9]
    for name in NAMES:
        curves = [dict(map(tuple, line["latency_us"]["curve"])) for line in figures.of(name, "chat", rate=1000.0)]
        points = [percent for percent in sorted(curves[0]) if percent < 100]
        latency[name] = [
            (nines(percent), statistics.median(curve[percent] for curve in curves) / 1000) for percent in points
        ]
    draw.lines(
        os.path.join(folder, "latency.svg"), "Latency of a chat message at 1,000 a second",
        ("percent of the messages", "milliseconds, logarithmic"), latency,
        [(nines(percent), f"{percent:g} %") for percent in marks + [99.99]], True,
    )


def nines(percent):
    """How far right a percentile stands: one step for each nine."""
    return -math.log10(1 - percent / 100)


def write(data, docs):
    folder = os.path.join(docs, "comparison")
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(docs, "comparison.md"), "w") as file:
        file.write(text(data))
    plots(Figures(data), folder)
