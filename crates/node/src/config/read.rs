//! Reads TOML into checked values that remember where they were said.

use std::{
    collections::BTreeMap,
    fmt, io,
    net::{IpAddr, SocketAddr},
    ops::Range,
    path::Path,
};

use toml_edit::{Document, Item, TableLike, Value};

use super::{
    keys::{self, Fallback, Form},
    nearest::nearest,
};

/// Where a value was said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Line of a file, counted from 1.
    Line(String, usize),
    /// A `--set` of the command line, as it was written.
    Set(String),
    /// Nowhere: it is a default, or missing.
    Nowhere(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Line(file, line) => write!(f, "{file}:{line}"),
            Place::Set(text) => write!(f, "--set {text}"),
            Place::Nowhere(file) if file.is_empty() => f.write_str("config"),
            Place::Nowhere(file) => f.write_str(file),
        }
    }
}

/// One thing that is wrong with a config.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Where it was said.
    pub place: Place,
    /// Path of the key; empty where the file is no TOML at all.
    pub key: String,
    /// What is wrong and what was expected.
    pub what: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.key.is_empty() {
            write!(f, "{}: {}", self.place, self.what)
        } else {
            write!(f, "{}: `{}`: {}", self.place, self.key, self.what)
        }
    }
}

/// All that is wrong with a config; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Faults(pub Vec<Fault>);

impl Faults {
    /// The file could not be read.
    pub fn unreadable(path: &Path, error: &io::Error) -> Faults {
        let place = Place::Nowhere(path.display().to_string());
        Faults(vec![Fault { place, key: String::new(), what: format!("failed to read: {error}") }])
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, fault) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            fault.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}

/// A value of the right form, and where it was said.
#[derive(Debug, Clone)]
pub struct Found {
    /// The value.
    pub value: Value,
    /// Where it was said.
    pub place: Place,
}

/// All values that were said, each of the right form.
#[derive(Debug, Default)]
pub struct Values {
    file: String,
    found: BTreeMap<String, Found>,
    /// Keys of `[modules.NAME]`: module, then key.
    pub modules: BTreeMap<String, Module>,
    /// Keys of `[tls.hosts."NAME"]`: host as it was written, then `cert` or `key`.
    pub tls_hosts: BTreeMap<String, Module>,
}

/// What was said about one module, or one host.
#[derive(Debug, Default)]
pub struct Module {
    /// Where its table begins.
    pub place: Option<Place>,
    /// Its keys.
    pub keys: BTreeMap<String, Found>,
}

impl Values {
    /// What the file or the command line says about a key, if they do.
    pub fn said(&self, path: &str) -> Option<&Found> {
        self.found.get(path)
    }

    /// Whether anything was said below a table.
    pub fn any_below(&self, table: &str) -> bool {
        self.found.keys().any(|k| k.strip_prefix(table).is_some_and(|rest| rest.starts_with('.')))
    }

    /// The value of a key: what was said, else its default.
    pub fn value(&self, path: &str) -> Option<Value> {
        if let Some(found) = self.said(path) {
            return Some(found.value.clone());
        }
        let key = keys::find(path).unwrap_or_else(|| panic!("`{path}` is in the table of keys"));
        match key.fallback {
            Fallback::Unset(_) => None,
            Fallback::Is(text) => Some(text.parse().unwrap_or_else(|e| panic!("default of `{path}`: {e}"))),
        }
    }

    /// A fault at the place where the key was said.
    pub fn fault(&self, path: &str, what: impl Into<String>) -> Fault {
        let place = self.said(path).map_or_else(|| Place::Nowhere(self.file.clone()), |f| f.place.clone());
        Fault { place, key: path.to_owned(), what: what.into() }
    }
}

/// Reads a text as TOML, then the `key=value` pairs over it.
pub fn read(file: &str, text: &str, set: &[String]) -> Result<Values, Faults> {
    let document = match Document::parse(text) {
        Ok(document) => document,
        Err(e) => {
            let line = line_of(text, e.span().as_ref());
            let what = format!("this is not TOML: {}", e.message().trim().replace('\n', ", "));
            let place = Place::Line(file.to_owned(), line);
            return Err(Faults(vec![Fault { place, key: String::new(), what }]));
        }
    };
    let mut reading =
        Reading { values: Values { file: file.to_owned(), ..Values::default() }, faults: Vec::new() };
    let place = |span: Option<Range<usize>>| Place::Line(file.to_owned(), line_of(text, span.as_ref()));
    reading.table("", document.as_table(), &place);
    for pair in set {
        reading.set(pair);
    }
    if reading.faults.is_empty() { Ok(reading.values) } else { Err(Faults(reading.faults)) }
}

fn line_of(text: &str, span: Option<&Range<usize>>) -> usize {
    let start = span.map_or(0, |s| s.start).min(text.len());
    text.as_bytes()[..start].iter().filter(|b| **b == b'\n').count() + 1
}

/// What a host may have of its own.
const HOST_KEYS: [&str; 2] = ["cert", "key"];

struct Reading {
    values: Values,
    faults: Vec<Fault>,
}

impl Reading {
    fn table(&mut self, prefix: &str, table: &dyn TableLike, place: &dyn Fn(Option<Range<usize>>) -> Place) {
        for (name, item) in table.iter() {
            let path = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") };
            let span = table.key(name).and_then(toml_edit::Key::span).or_else(|| item.span());
            self.item(&path, item, place(span), place);
        }
    }

    fn item(&mut self, path: &str, item: &Item, at: Place, place: &dyn Fn(Option<Range<usize>>) -> Place) {
        if path == "modules" || path.starts_with("modules.") {
            return self.module(path, item, at, place);
        }
        if let Some(host) =
            path.strip_prefix("tls.hosts").filter(|rest| rest.is_empty() || rest.starts_with('.'))
        {
            return self.host(path, host.trim_start_matches('.'), item, at, place);
        }
        if let Some(key) = keys::find(path) {
            let what = match item.as_value() {
                Some(value) => match fits(key.form, value) {
                    Ok(()) => {
                        let found = Found { value: value.clone(), place: at };
                        self.values.found.insert(path.to_owned(), found);
                        return;
                    }
                    Err(why) => why,
                },
                None => "found a table".to_owned(),
            };
            let what = format!("expected {}, {what}", key.form.expected());
            self.faults.push(Fault { place: at, key: path.to_owned(), what });
        } else if keys::is_table(path) {
            match item.as_table_like() {
                Some(table) => self.table(path, table, place),
                None => {
                    let what =
                        format!("expected a table with keys such as {}, found {}", below(path), kind(item));
                    self.faults.push(Fault { place: at, key: path.to_owned(), what });
                }
            }
        } else {
            let what = match nearest(path, keys::known_paths()) {
                Some(known) => format!("unknown key; the nearest known key is `{known}`"),
                None => "unknown key; `rookery config print-default` lists all keys".to_owned(),
            };
            self.faults.push(Fault { place: at, key: path.to_owned(), what });
        }
    }

    /// `[modules.NAME]`: kept as it is, for the modules to judge.
    fn module(&mut self, path: &str, item: &Item, at: Place, place: &dyn Fn(Option<Range<usize>>) -> Place) {
        let mut parts = path.splitn(3, '.').skip(1);
        match (parts.next(), parts.next()) {
            (Some(name), Some(key)) => {
                let module = self.values.modules.entry(name.to_owned()).or_default();
                // A table below it is written with a header of its own, or in braces: both are the same value.
                match item.clone().into_value() {
                    Ok(value) => {
                        module.keys.insert(key.to_owned(), Found { value, place: at });
                    }
                    Err(_) => {
                        let what = "expected a value".to_owned();
                        self.faults.push(Fault { place: at, key: path.to_owned(), what });
                    }
                }
            }
            (name, _) => match item.as_table_like() {
                Some(table) => {
                    if let Some(name) = name {
                        self.values.modules.entry(name.to_owned()).or_default().place = Some(at);
                    }
                    self.table(path, table, place);
                }
                None => {
                    let what = format!("expected a table, as in [modules.offline], found {}", kind(item));
                    self.faults.push(Fault { place: at, key: path.to_owned(), what });
                }
            },
        }
    }

    /// `[tls.hosts."NAME"]`, however its dots are written; `rest` is the path below `tls.hosts`.
    fn host(
        &mut self,
        path: &str,
        rest: &str,
        item: &Item,
        at: Place,
        place: &dyn Fn(Option<Range<usize>>) -> Place,
    ) {
        if let Some(table) = item.as_table_like() {
            let is_leaf = table.iter().any(|(_, item)| item.as_table_like().is_none());
            if is_leaf && !rest.is_empty() {
                self.values.tls_hosts.entry(rest.to_owned()).or_default().place = Some(at);
            }
            return self.table(path, table, place);
        }
        let (host, key) = rest.rsplit_once('.').unwrap_or(("", rest));
        let what = match item.as_value() {
            Some(_) if host.is_empty() => {
                format!("expected {}, found {}", Form::HostFiles.expected(), kind(item))
            }
            Some(_) if !HOST_KEYS.contains(&key) => match nearest(key, HOST_KEYS) {
                Some(near) => format!("unknown key; the nearest known key is `{near}`"),
                None => "unknown key; a host has `cert` and `key`".to_owned(),
            },
            Some(value) => match fits(Form::Path, value) {
                Ok(()) => {
                    let host = self.values.tls_hosts.entry(host.to_owned()).or_default();
                    host.keys.insert(key.to_owned(), Found { value: value.clone(), place: at });
                    return;
                }
                Err(why) => format!("expected {}, {why}", Form::Path.expected()),
            },
            None => "found a list of tables".to_owned(),
        };
        self.faults.push(Fault { place: at, key: path.to_owned(), what });
    }

    fn set(&mut self, pair: &str) {
        let at = Place::Set(pair.to_owned());
        let Some((path, text)) = pair.split_once('=') else {
            let what = "expected KEY=VALUE".to_owned();
            return self.faults.push(Fault { place: at, key: String::new(), what });
        };
        let (path, text) = (path.trim(), text.trim());
        // a bare word is a text, so that a shell needs no second pair of quotes
        let value = text.parse::<Value>().unwrap_or_else(|_| Value::from(text));
        self.item(path, &Item::Value(value), at.clone(), &|_| at.clone());
    }
}

fn below(table: &str) -> String {
    let names = keys::KEYS.iter().filter(|k| k.path.starts_with(&format!("{table}.")));
    names.take(3).map(|k| format!("`{}`", k.path)).collect::<Vec<_>>().join(", ")
}

fn kind(item: &Item) -> String {
    match item {
        Item::Value(value) => kind_of(value).to_owned(),
        Item::ArrayOfTables(_) => "a list of tables".to_owned(),
        _ => "a table".to_owned(),
    }
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "a text",
        Value::Integer(_) => "a whole number",
        Value::Float(_) => "a number with a fraction",
        Value::Boolean(_) => "`true` or `false`",
        Value::Datetime(_) => "a date",
        Value::Array(_) => "a list",
        Value::InlineTable(_) => "a table",
    }
}

/// Whether a value has the form; else what was found in its place.
fn fits(form: Form, value: &Value) -> Result<(), String> {
    let found = || format!("found {}", kind_of(value));
    let text = || value.as_str().ok_or_else(found);
    match form {
        Form::Flag => value.as_bool().map(|_| ()).ok_or_else(found),
        Form::Whole(min, max) => match value.as_integer() {
            Some(n) if (min..=max).contains(&n) => Ok(()),
            Some(n) => Err(format!("found `{n}`")),
            None => Err(found()),
        },
        Form::Text | Form::Path => match text()? {
            "" => Err("found an empty text".to_owned()),
            _ => Ok(()),
        },
        Form::Choice(words) => one_of(words, text()?),
        Form::Choices(words) => each(value, 1, |word| one_of(words, word)),
        Form::Address => address(text()?).map(|_| ()),
        Form::Addresses => each(value, 0, |t| address(t).map(|_| ())),
        Form::HostPort => host_port(text()?),
        Form::HostPorts => each(value, 1, host_port),
        Form::Domains => each(value, 1, |t| domain(t).map(|_| ())),
        Form::SomeDomains => each(value, 0, |t| domain(t).map(|_| ())),
        // read where the tables are
        Form::HostFiles => Err(found()),
        Form::Networks => each(value, 0, |t| {
            let network: Result<session::Network, _> = t.parse();
            network.map(|_| ()).map_err(|_| format!("found `{t}`"))
        }),
        Form::Accounts => {
            each(value, 0, |t| jid::BareJid::new(t).map(|_| ()).map_err(|e| format!("found `{t}`: {e}")))
        }
        Form::People => each(value, 0, |t| person(t).map(|_| ())),
        Form::Names => each(value, 0, account_name),
        Form::Url(scheme) => url(scheme, text()?),
        Form::Ips => each(value, 0, |t| t.parse::<IpAddr>().map(|_| ()).map_err(|_| format!("found `{t}`"))),
    }
}

/// RFC 3986: a URL with a host, without an account or a fragment, in characters that stand for themselves in XML too.
fn url(scheme: &str, text: &str) -> Result<(), String> {
    let wrong = || format!("found `{text}`");
    let filled = text.replace("{host}", "host.example");
    let rest = filled.strip_prefix(scheme).and_then(|rest| rest.strip_prefix("://")).ok_or_else(wrong)?;
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| !port.ends_with(']'));
    match has_port {
        true => host_port(authority).map_err(|_| wrong())?,
        false => host_port(&format!("{authority}:1")).map_err(|_| wrong())?,
    }
    let stands_for_itself = |b: u8| b.is_ascii_alphanumeric() || b"-._~!$()*+,;:@%/?=".contains(&b);
    if path.bytes().all(stands_for_itself) { Ok(()) } else { Err(wrong()) }
}

/// An account with its host, prepared.
pub fn person(text: &str) -> Result<jid::BareJid, String> {
    match jid::BareJid::new(text) {
        Ok(account) if account.node().is_some() => Ok(account),
        Ok(_) => Err(format!("found `{text}`, which is a host")),
        Err(e) => Err(format!("found `{text}`: {e}")),
    }
}

fn each(value: &Value, least: usize, check: impl Fn(&str) -> Result<(), String>) -> Result<(), String> {
    let list = value.as_array().ok_or_else(|| format!("found {}", kind_of(value)))?;
    if list.len() < least {
        return Err("found an empty list".to_owned());
    }
    for (i, entry) in list.iter().enumerate() {
        let text = entry.as_str().ok_or_else(|| format!("found {} in the list", kind_of(entry)))?;
        check(text)?;
        if list.iter().take(i).any(|earlier| earlier.as_str() == Some(text)) {
            return Err(format!("found `{text}` twice"));
        }
    }
    Ok(())
}

fn one_of(words: &[&str], word: &str) -> Result<(), String> {
    if words.contains(&word) {
        return Ok(());
    }
    match nearest(word, words.iter().copied()) {
        Some(near) => Err(format!("found `{word}`; the nearest is `{near}`")),
        None => Err(format!("found `{word}`")),
    }
}

/// An address to listen on; `localhost` stands for 127.0.0.1.
pub fn address(text: &str) -> Result<SocketAddr, String> {
    let parsed = match text.strip_prefix("localhost:") {
        Some(port) => port.parse().map(|port| SocketAddr::from(([127, 0, 0, 1], port))).ok(),
        None => text.parse().ok(),
    };
    parsed.ok_or_else(|| format!("found `{text}`"))
}

fn host_port(text: &str) -> Result<(), String> {
    let wrong = || format!("found `{text}`");
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    let good_host = match bare {
        Some(ip) => ip.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            !host.is_empty()
                && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
        }
    };
    match port.parse::<u16>() {
        Ok(port) if port > 0 && good_host => Ok(()),
        _ => Err(wrong()),
    }
}

/// A domain, prepared as in addresses.
pub fn domain(text: &str) -> Result<String, String> {
    let parsed = stanza::address::bare_jid(text).map_err(|e| format!("found `{text}`: {e}"))?;
    if parsed.node().is_some() {
        return Err(format!("found the address `{text}`"));
    }
    Ok(parsed.domain().as_str().to_owned())
}

fn account_name(text: &str) -> Result<(), String> {
    jid::NodePart::new(text).map(|_| ()).map_err(|e| format!("found `{text}`: {e}"))
}

/// Whether `host:port` can only be reached from this machine.
pub fn is_loopback(host_port: &str) -> bool {
    let Some((host, _)) = host_port.rsplit_once(':') else { return false };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}
