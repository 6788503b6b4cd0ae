"""The servers that are compared: how each is configured, started and stopped."""

import os
import resource
import shutil
import signal
import socket
import subprocess
import time

HERE = os.path.dirname(os.path.abspath(__file__))
STARTED_WITHIN_S = 60
STOPPED_WITHIN_S = 20


class Server:
    """One server: its folder, its ports, and its process while it runs."""

    def __init__(self, name, scratch, first_port, template, archive_words):
        self.name = name
        self.folder = os.path.join(scratch, name)
        self.starttls, self.direct, self.other = first_port, first_port + 1, first_port + 2
        self.template = template
        self.archive_words = archive_words
        self.process = None
        os.makedirs(os.path.join(self.folder, "data"), exist_ok=True)

    def configure(self, archive):
        with open(os.path.join(HERE, self.template)) as file:
            text = file.read()
        words = {
            "FOLDER": self.folder, "STARTTLS": self.starttls, "DIRECT": self.direct, "OTHER": self.other,
            "ARCHIVE": self.archive_words[1 if archive else 0],
        }
        for word, value in words.items():
            text = text.replace(f"@{word}@", str(value))
        path = os.path.join(self.folder, self.template)
        with open(path, "w") as file:
            file.write(text)
        return path

    def command(self, config):
        raise NotImplementedError

    def environment(self, config):
        return dict(os.environ)

    def version(self):
        raise NotImplementedError

    def start(self, archive=False):
        config = self.configure(archive)
        with open(os.path.join(self.folder, "output"), "ab") as output:
            self.process = subprocess.Popen(
                self.command(config), cwd=self.folder, env=self.environment(config), stdin=subprocess.DEVNULL,
                stdout=output, stderr=output, preexec_fn=many_files, start_new_session=True,
            )
        deadline = time.monotonic() + STARTED_WITHIN_S
        while not listens(self.direct):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"{self.name} does not start: see {self.folder}/output")
            time.sleep(0.1)
        # What it does at its start is not what is measured.
        time.sleep(2)
        return self.process.pid

    def stop(self):
        if self.process is None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(STOPPED_WITHIN_S)
        except subprocess.TimeoutExpired:
            pass
        # Whatever is left of what was started here: the session is its own.
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        self.process = None


class Rookery(Server):
    def __init__(self, scratch, binary):
        super().__init__("rookery", scratch, 16222, "rookery.toml", ("false", "true"))
        self.binary = os.path.abspath(binary)

    def command(self, config):
        return [self.binary, "serve", "--config", config]

    def version(self):
        return said([self.binary, "--version"])


class Ejabberd(Server):
    def __init__(self, scratch):
        super().__init__("ejabberd", scratch, 16322, "ejabberd.yml", ("", "  mod_mam:\n    default: always"))

    def command(self, config):
        # What `ejabberdctl foreground` does, without a name on the network and without epmd, and with schedulers that
        # sleep when they have nothing to do, as their waiting would be counted as work.
        return [
            "erl", "-noinput", "+K", "true", "+P", "250000", "+Q", "65536",
            "+sbwt", "none", "+sbwtdcpu", "none", "+sbwtdio", "none",
            "-mnesia", "dir", f'"{self.folder}/data"', "-s", "ejabberd",
        ]

    def environment(self, config):
        return dict(
            os.environ, EJABBERD_CONFIG_PATH=config, EJABBERD_LOG_PATH=os.path.join(self.folder, "ejabberd.log"),
            ERL_LIBS="/usr/lib/x86_64-linux-gnu", ERL_CRASH_DUMP_BYTES="0", ERL_MAX_PORTS="65536",
            ERL_MAX_ETS_TABLES="2053", HOME=self.folder,
        )

    def version(self):
        otp = said(["erl", "-noinput", "-eval", 'io:format("~s", [erlang:system_info(otp_release)]), halt().'])
        return f"ejabberd {debian('ejabberd')} (Debian), Erlang/OTP {otp}"


class Prosody(Server):
    def __init__(self, scratch):
        super().__init__("prosody", scratch, 16422, "prosody.cfg.lua", ("", '"mam";'))

    def command(self, config):
        return ["prosody", "-F", "--config", config]

    def version(self):
        return f"Prosody {debian('prosody')} (Debian), Lua {debian('lua5.4') or 'as it needs'}"


def many_files():
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def listens(port):
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def said(words):
    done = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return done.stdout.strip()


def debian(package):
    return said(["dpkg-query", "-W", "-f", "${Version}", package])


def install(packages):
    """Installs what is missing, and lets none of it start by itself."""
    missing = [p for p in packages if not debian(p)]
    if not missing:
        return
    before = processes()
    policy, sudo = "/usr/sbin/policy-rc.d", [] if os.geteuid() == 0 else ["sudo", "-n"]
    made = not os.path.exists(policy)
    if made:
        text = "#!/bin/sh\nexit 101\n"
        subprocess.run(sudo + ["tee", policy], input=text, text=True, stdout=subprocess.DEVNULL, check=True)
        subprocess.run(sudo + ["chmod", "755", policy], check=True)
    try:
        environment = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
        subprocess.run(sudo + ["apt-get", "update", "-q"], env=environment, stdin=subprocess.DEVNULL)
        words = ["apt-get", "install", "-q", "-y", "--no-install-recommends"] + missing
        subprocess.run(sudo + words, env=environment, stdin=subprocess.DEVNULL, check=True)
    finally:
        if made:
            subprocess.run(sudo + ["rm", "-f", policy])
    # A package may have started one all the same.
    for process, name in processes().items():
        if process not in before and name in ("epmd", "beam.smp", "prosody", "lua5.4"):
            subprocess.run(sudo + ["kill", str(process)])


def processes():
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/comm") as file:
                    found[int(entry)] = file.read().strip()
            except OSError:
                pass
    return found


def certificate(scratch):
    """One certificate for all of them."""
    key, cert = os.path.join(scratch, "key.pem"), os.path.join(scratch, "cert.pem")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "30",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", cert],
        check=True, capture_output=True,
    )
    # Prosody looks for a certificate by the name of the host.
    shutil.copy(cert, os.path.join(scratch, "localhost.crt"))
    shutil.copy(key, os.path.join(scratch, "localhost.key"))
