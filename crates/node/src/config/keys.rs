//! The table of all keys: path, form, default and the sentence that explains it.

/// What a value must look like.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Form {
    /// `true` or `false`.
    Flag,
    /// A whole number between the two bounds, both included.
    Whole(i64, i64),
    /// Any text.
    Text,
    /// One of the words.
    Choice(&'static [&'static str]),
    /// A list of at least one of the words.
    Choices(&'static [&'static str]),
    /// An IP address and port to listen on; an IPv6 address in brackets.
    Address,
    /// A list of addresses to listen on, which may be empty.
    Addresses,
    /// A name or IP address, and a port, to connect to.
    HostPort,
    /// A list of at least one name or address with its port.
    HostPorts,
    /// A list of at least one domain name.
    Domains,
    /// A list of networks, which may be empty.
    Networks,
    /// A list of accounts and domains, which may be empty.
    Accounts,
    /// A list of accounts with their hosts, which may be empty.
    People,
    /// A list of names of accounts, without a host; it may be empty.
    Names,
    /// A list of domain names, which may be empty.
    SomeDomains,
    /// A URL with this scheme, in which `{host}` stands for a host.
    Url(&'static str),
    /// A list of IP addresses, which may be empty.
    Ips,
    /// A path, relative to the working directory of the server.
    Path,
    /// A table with a table for each host, in which stand `cert` and `key`.
    HostFiles,
}

impl Form {
    /// What to write, for an error message.
    pub fn expected(self) -> String {
        match self {
            Form::Flag => "`true` or `false`".into(),
            Form::Whole(min, i64::MAX) => format!("a whole number of at least {min}"),
            Form::Whole(min, max) => format!("a whole number from {min} to {max}"),
            Form::Text => "a text in quotes".into(),
            Form::Choice(words) => format!("one of {}", quoted(words)),
            Form::Choices(words) => format!("a list of one or more of {}", quoted(words)),
            Form::Address => "an IP address and port, as in \"127.0.0.1:5222\"".into(),
            Form::Addresses => "a list of IP addresses with ports, as in [\"0.0.0.0:5222\"]".into(),
            Form::HostPort => "a name or address with a port, as in \"node1.example.org:7400\"".into(),
            Form::HostPorts => {
                "a list of names or addresses with ports, as in [\"node1.example.org:7400\"]".into()
            }
            Form::Domains | Form::SomeDomains => "a list of domain names, as in [\"example.org\"]".into(),
            Form::HostFiles => "a table for each host, as in [tls.hosts.\"example.org\"]".into(),
            Form::Networks => {
                "a list of networks or addresses, as in [\"10.0.0.0/8\", \"2001:db8::1\"]".into()
            }
            Form::Accounts => {
                "a list of accounts or domains, as in [\"bot@example.org\", \"bots.example.org\"]".into()
            }
            Form::People => "a list of accounts, as in [\"admin@example.org\"]".into(),
            Form::Names => "a list of account names without a host, as in [\"admin\"]".into(),
            Form::Url(scheme) => {
                format!("a URL as in \"{scheme}://example.org/path\", with {{host}} for the host if need be")
            }
            Form::Ips => "a list of IP addresses, as in [\"192.0.2.1\", \"2001:db8::1\"]".into(),
            Form::Path => "a path in quotes".into(),
        }
    }
}

fn quoted(words: &[&str]) -> String {
    words.iter().map(|w| format!("\"{w}\"")).collect::<Vec<_>>().join(", ")
}

/// What a key is when the file says nothing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fallback {
    /// This value, in TOML.
    Is(&'static str),
    /// Not set; the text is an example in TOML.
    Unset(&'static str),
}

/// One key.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// Full path with dots.
    pub path: &'static str,
    /// What its value must look like.
    pub form: Form,
    /// What it is when the file says nothing.
    pub fallback: Fallback,
    /// What it means, in one or two sentences.
    pub sentence: &'static str,
}

const fn key(path: &'static str, form: Form, fallback: Fallback, sentence: &'static str) -> Key {
    Key { path, form, fallback, sentence }
}

use Fallback::{Is, Unset};
use Form::*;

/// Largest value that makes sense for a bound; keeps sums of bounds far from overflow.
const MANY: i64 = 1 << 40;

/// Seconds of a day: the longest timeout.
const DAY: i64 = 86_400;

/// Cipher suites that a config may name.
const CIPHERS: &[&str] = &[
    "TLS_AES_256_GCM_SHA384",
    "TLS_AES_128_GCM_SHA256",
    "TLS_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
];

/// SASL mechanisms that a config may name.
const MECHANISMS: &[&str] = &[
    "EXTERNAL",
    "SCRAM-SHA-512-PLUS",
    "SCRAM-SHA-256-PLUS",
    "SCRAM-SHA-1-PLUS",
    "SCRAM-SHA-512",
    "SCRAM-SHA-256",
    "SCRAM-SHA-1",
    "PLAIN",
];

/// Every key but those of `[modules.NAME]`, which the modules themselves read.
pub const KEYS: &[Key] = &[
    key(
        "hosts",
        Domains,
        Is("[\"localhost\"]"),
        "The domains that this server serves; accounts belong to one of them.",
    ),
    key(
        "node.name",
        Text,
        Unset("\"node1\""),
        "Name of the node in lists and logs; not set, it is made of the host name of the machine.",
    ),
    key(
        "node.roles",
        Choices(&["frontend", "backend"]),
        Is("[\"frontend\", \"backend\"]"),
        "What the node does: a frontend serves clients, a backend keeps data and takes part in agreement.",
    ),
    key(
        "node.data_dir",
        Path,
        Is("\"./data\""),
        "Folder of everything that the node keeps; made at the first start.",
    ),
    key(
        "node.shutdown_s",
        Whole(0, DAY),
        Is("10"),
        "Seconds in which a node that is stopped by a signal sends its clients to other nodes, before it ends the sessions that are left; where no other node could serve them, it does not wait. 0 ends them at once.",
    ),
    key(
        "node.drain_rate",
        Whole(1, 1_000_000),
        Is("500"),
        "Clients that a draining node sends elsewhere in a second, unless `rookery node drain --rate` says otherwise; a node that is stopped sends them faster where that is needed to be done in `node.shutdown_s`.",
    ),
    key(
        "node.drain_notice_s",
        Whole(0, 3_600),
        Is("0"),
        "Seconds between the moment from which a draining node says that it is not ready and the one from which it sends clients elsewhere: as long as a load balancer before it needs to see that.",
    ),
    key("c2s.listen", Addresses, Is("[\"0.0.0.0:5222\"]"), "Where clients connect with STARTTLS (RFC 6120)."),
    key(
        "c2s.direct_tls_listen",
        Addresses,
        Is("[\"0.0.0.0:5223\"]"),
        "Where clients connect with TLS from the first byte (XEP-0368).",
    ),
    key("c2s.tls_required", Flag, Is("true"), "Whether a client must have TLS before it may log in."),
    key(
        "c2s.resource_conflict",
        Choice(&["replace", "refuse", "rename"]),
        Is("\"replace\""),
        "What happens when a client asks for a resource that another session has: the older session is closed, the newer one is refused, or the newer one gets a resource made by the server.",
    ),
    key("c2s.arbiters", Whole(0, 1_024), Is("0"), "Threads that own sessions; 0 means one for each core."),
    key(
        "c2s.proxy_from",
        Networks,
        Is("[]"),
        "Networks of proxies, which begin each connection with a PROXY header (HAProxy's PROXY protocol, version 1 or 2): without one it is closed. A header from anybody else is garbage.",
    ),
    key(
        "c2s.advertise",
        HostPort,
        Unset("\"node1.example.org:5222\""),
        "Address at which clients reach this very node with STARTTLS; other nodes send their clients there when they drain (`see-other-host`). Not set, as behind a load balancer, clients of this door are told to come back and nothing more.",
    ),
    key(
        "c2s.advertise_direct_tls",
        HostPort,
        Unset("\"node1.example.org:5223\""),
        "The same for clients with direct TLS.",
    ),
    key(
        "auth.mechanisms",
        Choices(MECHANISMS),
        Is(
            "[\"EXTERNAL\", \"SCRAM-SHA-512-PLUS\", \"SCRAM-SHA-256-PLUS\", \"SCRAM-SHA-1-PLUS\", \"SCRAM-SHA-512\", \"SCRAM-SHA-256\", \"SCRAM-SHA-1\", \"PLAIN\"]",
        ),
        "Ways to log in, in the order in which they are offered; another one is answered with `invalid-mechanism`. PLAIN is offered inside TLS only, those that end with -PLUS bind the login to the TLS channel.",
    ),
    key(
        "auth.anonymous_hosts",
        SomeDomains,
        Is("[]"),
        "Hosts on which a client may log in without an account (ANONYMOUS), under a random name that ends with the session; `[modules.anonymous]` says what it may reach.",
    ),
    key(
        "tls.cert",
        Path,
        Unset("\"/etc/rookery/cert.pem\""),
        "Certificate chain for clients, in PEM; read again when the file changes. Not set, a self-signed one is made in the data folder.",
    ),
    key(
        "tls.key",
        Path,
        Unset("\"/etc/rookery/key.pem\""),
        "Private key of `tls.cert`, in PEM; read again when the file changes.",
    ),
    key(
        "tls.hosts",
        HostFiles,
        Unset(
            "{ \"example.org\" = { cert = \"/etc/rookery/example.org.pem\", key = \"/etc/rookery/example.org.key\" } }",
        ),
        "Certificates of single hosts, also written as [tls.hosts.\"example.org\"]: served to clients that ask for that name in the handshake, or on the stream before STARTTLS. All others get `tls.cert`. Read again when they change.",
    ),
    key(
        "tls.min_version",
        Choice(&["1.2", "1.3"]),
        Is("\"1.2\""),
        "The lowest version of TLS that clients may use; with an older one the handshake fails.",
    ),
    key(
        "tls.ciphers",
        Choices(CIPHERS),
        Is(
            "[\"TLS_AES_128_GCM_SHA256\", \"TLS_AES_256_GCM_SHA384\", \"TLS_CHACHA20_POLY1305_SHA256\", \"TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256\", \"TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256\", \"TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384\", \"TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256\", \"TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384\", \"TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256\"]",
        ),
        "Cipher suites that may be agreed on, best first: the first one that the client knows is taken, unless the client puts one with CHACHA20 first. Those without ECDHE in their names are of TLS 1.3.",
    ),
    key(
        "tls.ticket_lifetime_s",
        Whole(0, 604_800),
        Is("7200"),
        "Seconds in which a client may resume a TLS session with the ticket that it was given; the keys of tickets are made anew twice in that time and kept in memory only, so that another node or a new certificate asks for a whole handshake. 0 gives no tickets.",
    ),
    key(
        "tls.client_ca",
        Path,
        Unset("\"/etc/rookery/clients.pem\""),
        "Authorities that sign certificates of clients, in PEM; read again when the file changes. With it clients are asked for a certificate, and one that names an account (SAN `xmppAddr`) may log in by EXTERNAL.",
    ),
    key(
        "tls.client_certificates",
        Choice(&["optional", "required"]),
        Is("\"optional\""),
        "Whether a client without a trusted certificate may log in by other means, or fails the handshake.",
    ),
    key(
        "admin.listen",
        Address,
        Is("\"127.0.0.1:5280\""),
        "Where the admin service (gRPC) listens; loopback only.",
    ),
    key(
        "accounts.admins",
        People,
        Is("[]"),
        "Accounts that may administer the server from a client; modules spare them (`storm`) or obey them. Nobody can register one of these names in-band.",
    ),
    key(
        "accounts.reserved",
        Names,
        Is(
            "[\"abuse\", \"admin\", \"administrator\", \"daemon\", \"ftp\", \"help\", \"hostmaster\", \"info\", \"jabber\", \"mailer-daemon\", \"marketing\", \"moderator\", \"news\", \"no-reply\", \"nobody\", \"noc\", \"noreply\", \"operator\", \"owner\", \"postmaster\", \"root\", \"sales\", \"security\", \"server\", \"staff\", \"support\", \"system\", \"usenet\", \"uucp\", \"webmaster\", \"www\", \"xmpp\"]",
        ),
        "Names that nobody can register in-band, in whatever spelling: those of RFC 2142 and others that people trust. `rookery user add` gives them all the same.",
    ),
    key(
        "cluster.listen",
        Address,
        Is("\"127.0.0.1:7400\""),
        "Where the other nodes connect. Giving any key of this table makes the node part of a cluster.",
    ),
    key(
        "cluster.advertise",
        HostPort,
        Unset("\"node1.example.org:7400\""),
        "Address at which the other nodes reach this one; not set, it is `cluster.listen`.",
    ),
    key(
        "cluster.expect",
        Whole(1, 64),
        Unset("3"),
        "Backends that must see each other before the cluster is formed for the first time; not set, 3 with discovery and 1 without.",
    ),
    key(
        "cluster.discovery.static",
        HostPorts,
        Unset("[\"node1.example.org:7400\", \"node2.example.org:7400\"]"),
        "Finds other nodes: a fixed list of addresses. Only one way of discovery can be given.",
    ),
    key(
        "cluster.discovery.dns",
        HostPort,
        Unset("\"rookery.example.org:7400\""),
        "Finds other nodes: all addresses of a name, asked again and again.",
    ),
    key(
        "cluster.discovery.file",
        Path,
        Unset("\"/etc/rookery/nodes\""),
        "Finds other nodes: a file with one address per line, read again when it changes.",
    ),
    key(
        "cluster.plain",
        Flag,
        Unset("true"),
        "Whether links between nodes go without TLS, which only loopback addresses may; not set, true where `cluster.listen` and `cluster.advertise` are loopback and neither a certificate nor a join token is given.",
    ),
    key(
        "cluster.join",
        Text,
        Unset("\"TOKEN@node1.example.org:7400\""),
        "One-time token of `rookery cluster token` with which the node joins at its first start, with or without the address of a backend; without one, those of `cluster.discovery` are tried. Once the node has joined, the token is not looked at any more.",
    ),
    key(
        "cluster.join_file",
        Path,
        Unset("\"/run/secrets/rookery-join\""),
        "File with what `cluster.join` would say, for those who keep secrets out of configs.",
    ),
    key(
        "cluster.certificate_lifetime_s",
        Whole(5, 31_536_000),
        Is("2592000"),
        "How long the certificates are valid that the cluster makes for its nodes, in seconds. Each node renews its own when two thirds of that are over; a frontend that is away for longer must join anew.",
    ),
    key(
        "cluster.cert",
        Path,
        Unset("\"/etc/rookery/node.pem\""),
        "Certificate of the node for links between nodes (mTLS), in PEM, where you make the certificates yourself. Read again when it changes, with `cluster.key` and `cluster.ca`. Without these three the cluster makes its own, except on plain links.",
    ),
    key("cluster.key", Path, Unset("\"/etc/rookery/node.key\""), "Private key of `cluster.cert`, in PEM."),
    key(
        "cluster.ca",
        Path,
        Unset("\"/etc/rookery/ca.pem\""),
        "Certificate of the authority that signed the certificates of all nodes, in PEM.",
    ),
    key(
        "cluster.times.renew_ms",
        Whole(10, 600_000),
        Is("500"),
        "A node renews its lease this often, in milliseconds.",
    ),
    key(
        "cluster.times.fence_ms",
        Whole(10, 600_000),
        Is("3000"),
        "A node fences itself this long after the sending of its last acknowledged renewal, in milliseconds.",
    ),
    key(
        "cluster.times.expire_ms",
        Whole(10, 600_000),
        Is("5000"),
        "The leader expires a node this long after the last renewal that it received, in milliseconds.",
    ),
    key(
        "cluster.times.grace_ms",
        Whole(0, 600_000),
        Is("15000"),
        "A node that was without its lease for no longer than this brings its sessions back, and their clients go on; after it the streams are closed, and clients log in anew. In milliseconds.",
    ),
    key(
        "cluster.times.replace_ms",
        Whole(1000, 86_400_000),
        Is("60000"),
        "A backend that is gone for longer than this gives its vote to another one that has what it had, where there is one, in milliseconds. It gets everything back when it is here again.",
    ),
    key("cluster.times.heartbeat_ms", Whole(10, 600_000), Is("250"), "Raft's heartbeat, in milliseconds."),
    key(
        "cluster.times.election_min_ms",
        Whole(10, 600_000),
        Is("1000"),
        "The shortest election timeout of Raft, in milliseconds.",
    ),
    key(
        "cluster.times.election_max_ms",
        Whole(10, 600_000),
        Is("2000"),
        "The longest election timeout of Raft, in milliseconds.",
    ),
    key(
        "cluster.times.quorum_age_ms",
        Whole(10, 600_000),
        Is("1000"),
        "The leader takes no proposal when its last quorum is older than this, in milliseconds.",
    ),
    key(
        "cluster.times.command_ms",
        Whole(10, 600_000),
        Is("10000"),
        "How long a route command may take before it is given up, in milliseconds.",
    ),
    key(
        "store.engine",
        Choice(&["sled", "memory", "replicated"]),
        Unset("\"sled\""),
        "Where data is kept; not set, `sled` on a single node and `replicated` in a cluster. `memory` forgets everything at the end.",
    ),
    key(
        "store.cache_bytes",
        Whole(1_048_576, MANY),
        Is("67108864"),
        "Memory for cached pages of the store, in bytes.",
    ),
    key(
        "store.layer_bytes",
        Whole(65_536, MANY),
        Is("16777216"),
        "Changes that are gathered in memory and in a journal before the store sorts them in, in bytes; as much again may be on its way there.",
    ),
    key("store.readers", Whole(1, 256), Is("2"), "Threads that read the store."),
    key(
        "store.queue",
        Whole(1, MANY),
        Is("1024"),
        "Calls that wait for a thread of the store before further callers wait outside.",
    ),
    key(
        "store.reserve_bytes",
        Whole(0, 1 << 50),
        Is("67108864"),
        "Free space of the disk, in bytes, below which nothing more is accepted.",
    ),
    key(
        "log.format",
        Choice(&["text", "json"]),
        Is("\"text\""),
        "How log lines look: for people or for programs.",
    ),
    key("log.filter", Text, Is("\"info,openraft=warn\""), "What is logged, as in \"info,router=debug\"."),
    key(
        "metrics.listen",
        Address,
        Unset("\"127.0.0.1:5281\""),
        "Where Prometheus reads metrics, by HTTP at /metrics, and load balancers ask whether the node is ready (/ready) and alive (/live); not set, nowhere.",
    ),
    key(
        "web.websocket",
        Url("wss"),
        Unset("\"wss://{host}/xmpp-websocket\""),
        "Where a proxy of yours takes clients by WebSocket (RFC 7395), for `rookery config host-meta`; {host} stands for each host. The server itself has no such door.",
    ),
    key("web.bosh", Url("https"), Unset("\"https://{host}/http-bind\""), "The same for BOSH (XEP-0206)."),
    key(
        "web.addresses",
        Ips,
        Is("[]"),
        "The IP addresses at which clients reach the door for direct TLS and what stands in the other keys of [web]; where there are any, `rookery config host-meta --json` says all that clients need without DNS (XEP-0487).",
    ),
    key(
        "limits.before_auth_stanza_bytes",
        Whole(1_000, MANY),
        Is("8192"),
        "Largest stanza or stream element before login, in bytes; a larger one ends the stream.",
    ),
    key(
        "limits.before_auth_elements",
        Whole(4, MANY),
        Is("32"),
        "Most elements in one stanza before login; more end the stream.",
    ),
    key(
        "limits.before_auth_depth",
        Whole(2, 1_000),
        Is("8"),
        "Deepest nesting before login; deeper ends the stream.",
    ),
    key(
        "limits.stanza_bytes",
        Whole(10_000, MANY),
        Is("262144"),
        "Largest stanza after login, in bytes (never below the 10000 of RFC 6120); a larger one ends the stream.",
    ),
    key(
        "limits.stanza_elements",
        Whole(16, MANY),
        Is("2000"),
        "Most elements in one stanza after login; more end the stream.",
    ),
    key(
        "limits.stanza_depth",
        Whole(8, 1_000),
        Is("64"),
        "Deepest nesting after login; deeper ends the stream.",
    ),
    key(
        "limits.attributes",
        Whole(8, 10_000),
        Is("64"),
        "Most attributes of one element; more end the stream.",
    ),
    key(
        "limits.token_bytes",
        Whole(256, MANY),
        Is("10000"),
        "Longest name or attribute value, in bytes; a longer one ends the stream.",
    ),
    key(
        "limits.mailbox_stanzas",
        Whole(1, MANY),
        Is("5000"),
        "Stanzas that may wait to be written to one session; at the bound the slow session is closed and they go elsewhere.",
    ),
    key(
        "limits.mailbox_bytes",
        Whole(10_000, MANY),
        Is("1048576"),
        "Bytes that may wait to be written to one session; at the bound the slow session is closed and they go elsewhere.",
    ),
    key(
        "limits.connections",
        Whole(1, MANY),
        Is("100000"),
        "Client sockets of this node; further ones are closed at once.",
    ),
    key(
        "limits.connections_per_address",
        Whole(1, MANY),
        Is("1000"),
        "Sockets from one IPv4 address or one IPv6 /64; further ones are closed at once.",
    ),
    key(
        "limits.accepts_per_address_per_second",
        Whole(1, 1_000_000),
        Is("100"),
        "New sockets in a second from one IPv4 address or one IPv6 /64; further ones are closed at once.",
    ),
    key(
        "limits.accepts_per_second",
        Whole(1, 1_000_000),
        Is("1000"),
        "New sockets in a second of the whole node, of those that the other bounds let in; further ones wait in the queue of the system.",
    ),
    key(
        "limits.login_lag_us",
        Whole(0, 10_000_000),
        Is("250"),
        "Microseconds that the threads of sessions may be late while logins begin; as long as they are later, fewer logins begin and further ones wait, the first come first. 0: all begin at once.",
    ),
    key(
        "limits.logins_per_second_min",
        Whole(1, 1_000_000),
        Is("50"),
        "Logins that may begin in a second however late those threads are.",
    ),
    key(
        "limits.logins_waiting",
        Whole(1, MANY),
        Is("1000"),
        "Logins that may wait for their turn; further sockets wait in the queue of the system.",
    ),
    key(
        "limits.unauthenticated_connections",
        Whole(1, MANY),
        Is("10000"),
        "Sockets of this node that have not logged in; a further one closes the oldest of them, with `resource-constraint` where it has a stream.",
    ),
    key(
        "limits.proxy_header_timeout_s",
        Whole(1, DAY),
        Is("5"),
        "Seconds in which a proxy's header must be complete, then the socket is closed.",
    ),
    key(
        "limits.open_files_reserve",
        Whole(0, MANY),
        Is("256"),
        "Open files of the process that are kept for the store, links to other nodes and operators, at most a quarter of what the system allows; where only they are left, further sockets are closed at once.",
    ),
    key(
        "limits.limit_loopback",
        Flag,
        Is("false"),
        "Whether the bounds per address, the back-off after failed logins and the rates of a session hold for clients on loopback addresses too.",
    ),
    key(
        "limits.auth_failures_per_stream",
        Whole(1, 100),
        Is("3"),
        "Logins that may fail on one stream; one more ends it with `policy-violation`.",
    ),
    key(
        "limits.auth_delay_ms",
        Whole(0, 60_000),
        Is("250"),
        "Milliseconds that the answer to a first failed login is held back; doubled for each further failure of the same address or at the same account. Attempts of an address that failed wait as long before they are looked at; an address that has not failed never waits, so nobody is locked out.",
    ),
    key("limits.auth_delay_max_ms", Whole(0, 60_000), Is("10000"), "Longest such delay, in milliseconds."),
    key(
        "limits.auth_failure_memory_s",
        Whole(1, DAY),
        Is("900"),
        "Seconds until a failed login is forgotten.",
    ),
    key(
        "limits.auth_failures_remembered",
        Whole(2, MANY),
        Is("65536"),
        "Addresses (an IPv6 /64 is one), and accounts, whose failed logins are remembered; beyond it the oldest are forgotten.",
    ),
    key(
        "limits.auth_waiting_per_address",
        Whole(1, MANY),
        Is("32"),
        "Attempts of one address that may wait for such a delay; further ones hear `temporary-auth-failure`.",
    ),
    key(
        "limits.session_bytes_per_second",
        Whole(0, u32::MAX as i64),
        Is("131072"),
        "Bytes that one client may send in a second, on average; beyond it the client is read more slowly, and never disconnected. 0: no bound.",
    ),
    key(
        "limits.session_bytes_burst",
        Whole(16_384, u32::MAX as i64),
        Is("1048576"),
        "Bytes that one client may send at once before that rate holds.",
    ),
    key(
        "limits.session_stanzas_per_second",
        Whole(0, u32::MAX as i64),
        Is("200"),
        "Stanzas that one client may send in a second, on average; beyond it the client is read more slowly, and never disconnected. 0: no bound.",
    ),
    key(
        "limits.session_stanzas_burst",
        Whole(10, u32::MAX as i64),
        Is("2000"),
        "Stanzas that one client may send at once before that rate holds.",
    ),
    key(
        "limits.session_rates_exempt",
        Accounts,
        Is("[]"),
        "Accounts, or domains with all of their accounts, whose sessions may send as fast as they can.",
    ),
    key(
        "limits.sessions_per_account",
        Whole(1, MANY),
        Is("100"),
        "Sessions of one account on this node; a further bind is refused with `resource-constraint`.",
    ),
    key(
        "limits.first_byte_timeout_s",
        Whole(1, DAY),
        Is("10"),
        "Seconds in which a new socket must send its first byte, then it is closed.",
    ),
    key(
        "limits.header_timeout_s",
        Whole(1, DAY),
        Is("30"),
        "Seconds in which a stream header must be complete, then `connection-timeout`.",
    ),
    key(
        "limits.tls_handshake_timeout_s",
        Whole(1, DAY),
        Is("15"),
        "Seconds in which a TLS handshake must be complete, then the socket is closed.",
    ),
    key(
        "limits.login_timeout_s",
        Whole(1, DAY),
        Is("60"),
        "Seconds from the socket's start to a bound session, then `connection-timeout`.",
    ),
    key(
        "limits.stanza_timeout_s",
        Whole(1, DAY),
        Is("600"),
        "Seconds in which a started stanza must be complete, then `connection-timeout`.",
    ),
    key(
        "limits.write_timeout_s",
        Whole(1, DAY),
        Is("30"),
        "Seconds that a write may wait for a client that does not read, then the session is lost.",
    ),
    key(
        "limits.peer_timeout_s",
        Whole(0, DAY),
        Is("300"),
        "Seconds without traffic until the kernel asks whether the peer lives, and until unacknowledged bytes end the connection; 0 switches both off.",
    ),
    key(
        "limits.linger_ms",
        Whole(0, 600_000),
        Is("500"),
        "Milliseconds that a closed stream waits for the client to close its side.",
    ),
    key(
        "limits.stop_timeout_s",
        Whole(1, DAY),
        Is("10"),
        "Seconds that a stopping node gives its sessions to end.",
    ),
    key("limits.password_threads", Whole(1, 256), Is("2"), "Threads that check plain passwords."),
    key(
        "limits.password_queue",
        Whole(1, MANY),
        Is("128"),
        "Password checks that may wait; further ones are answered with `temporary-auth-failure`.",
    ),
    key(
        "limits.reply_bytes",
        Whole(1_024, MANY),
        Is("16384"),
        "Answers to a client's own mistakes that may wait, in bytes; beyond it the client is not read.",
    ),
    key(
        "limits.resumption_s",
        Whole(0, DAY),
        Is("300"),
        "Seconds that a session without a connection waits for its client to resume it (XEP-0198), at most; then it ends, and what the client has not acknowledged goes to another session of the account, is stored or bounced. 0: sessions end with their connections.",
    ),
    key(
        "limits.unacknowledged_stanzas",
        Whole(1, MANY),
        Is("2000"),
        "Stanzas written to a client that it has not acknowledged (XEP-0198); further ones wait in its mailbox.",
    ),
    key(
        "limits.unacknowledged_bytes",
        Whole(1_024, MANY),
        Is("1048576"),
        "Bytes of such stanzas; the same happens at this bound.",
    ),
    key(
        "limits.acknowledgement_timeout_s",
        Whole(1, DAY),
        Is("60"),
        "Seconds that a client may take to say what it has handled (XEP-0198); then its connection is lost.",
    ),
    key(
        "limits.held_stanzas",
        Whole(0, MANY),
        Is("500"),
        "Stanzas that wait while nobody looks at a client (XEP-0352); one more, and all of them are written.",
    ),
    key("limits.write_bytes", Whole(1_024, MANY), Is("65536"), "Bytes taken from the mailbox for one write."),
    key(
        "limits.account_queue_stanzas",
        Whole(1, MANY),
        Is("1000"),
        "Stanzas for one account that may wait while one of its handlers awaits the store; further ones are bounced with `resource-constraint`.",
    ),
    key(
        "limits.account_queues_at_once",
        Whole(1, MANY),
        Is("256"),
        "Accounts whose waiting stanzas are worked on at the same time; the others wait for their turn.",
    ),
    key(
        "limits.relay_window_stanzas",
        Whole(1, MANY),
        Is("8192"),
        "Stanzas on the way to another node, per lane, that it has not confirmed to have; further ones are bounced with `resource-constraint`.",
    ),
    key(
        "limits.relay_window_bytes",
        Whole(1, MANY),
        Is("8388608"),
        "Bytes on the way to another node, per lane, that it has not confirmed to have; further stanzas are bounced with `resource-constraint`.",
    ),
    key(
        "limits.relay_unsettled_stanzas",
        Whole(1, MANY),
        Is("65536"),
        "Stanzas per lane that another node has and has neither written, stored nor bounced; further ones are bounced with `resource-constraint`.",
    ),
    key(
        "limits.relay_unsettled_bytes",
        Whole(1, MANY),
        Is("67108864"),
        "Bytes of such stanzas; the same happens at this bound.",
    ),
    key(
        "limits.relay_batch_stanzas",
        Whole(1, MANY),
        Is("64"),
        "Stanzas that travel to another node in one batch, at most.",
    ),
    key(
        "limits.relay_batch_bytes",
        Whole(1, MANY),
        Is("262144"),
        "Bytes that travel to another node in one batch, at most; a larger stanza travels alone.",
    ),
    key(
        "limits.refused_wait_ms",
        Whole(1, MANY),
        Is("2000"),
        "Milliseconds that a stanza waits for the route table when another node refused it because the receiver has moved; after that it is stored or bounced.",
    ),
    key(
        "limits.backlog_wait_ms",
        Whole(0, 60_000),
        Is("5000"),
        "Milliseconds that messages which have waited for an account wait for room in the mailbox of its session, once half of what may wait there does; after that they go on, and at the mailbox's bound the session is closed as `mailbox_stanzas` says.",
    ),
    key(
        "limits.lost_sessions_at_once",
        Whole(1, MANY),
        Is("32"),
        "Sessions of a lost node whose contacts are told at the same time; the others wait for their turn.",
    ),
    key(
        "limits.new_password_queue",
        Whole(1, MANY),
        Is("64"),
        "New passwords that may wait to be turned into keys; for further ones the client hears `resource-constraint`.",
    ),
    key(
        "limits.unfinished_removal_s",
        Whole(1, DAY),
        Is("60"),
        "Seconds between two looks for removals of accounts that somebody began and nobody ended; what is seen twice is ended.",
    ),
];

/// The key of that path.
pub fn find(path: &str) -> Option<&'static Key> {
    KEYS.iter().find(|k| k.path == path)
}

/// Whether the path names a table that holds known keys.
pub fn is_table(path: &str) -> bool {
    KEYS.iter().any(|k| k.path.strip_prefix(path).is_some_and(|rest| rest.starts_with('.')))
}

/// Every path that may be meant: keys and the tables above them.
pub fn known_paths() -> Vec<&'static str> {
    let mut paths = Vec::new();
    for key in KEYS {
        let ends = key.path.match_indices('.').map(|(i, _)| i).chain([key.path.len()]);
        for end in ends {
            let path = &key.path[..end];
            if !paths.contains(&path) {
                paths.push(path);
            }
        }
    }
    paths.push("modules");
    paths
}
