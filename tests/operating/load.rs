//! The load generator against a real server, and against servers that lose, double, reorder and refuse.

use std::{
    collections::HashMap,
    path::Path,
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::Value;
use tests::nodes::{Layout, Nodes, generator};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    process::Command,
    sync::mpsc,
    time::timeout,
};

/// How long one workload may take, on a busy machine.
const BOUND: Duration = Duration::from_secs(120);

/// Runs the generator; its exit status and the figures that it wrote.
async fn load(folder: &Path, words: &[String]) -> Result<(Option<i32>, Vec<Value>)> {
    let json = folder.join("load.json");
    // There is none before the first run.
    drop(std::fs::remove_file(&json));
    let mut command = Command::new(generator()?);
    command.args(words).arg("--json").arg(&json).stdin(Stdio::null()).kill_on_drop(true);
    let out = timeout(BOUND, command.output()).await.context("the generator does not end")??;
    let lines = std::fs::read_to_string(&json).unwrap_or_default();
    let lines = lines.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>()?;
    ensure!(!lines.is_empty(), "no figures of {words:?}: {}", String::from_utf8_lossy(&out.stderr));
    Ok((out.status.code(), lines))
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

fn number(line: &Value, pointer: &str) -> Result<f64> {
    let found = line.pointer(pointer).and_then(Value::as_f64);
    found.with_context(|| format!("no `{pointer}` in {line}"))
}

/// Nothing is wrong in a line, and its figures can be.
fn plausible(line: &Value, expected: f64) -> Result<()> {
    ensure!(number(line, "/expected")? == expected && number(line, "/heard")? == expected, "{line}");
    for wrong in ["/lost", "/doubled", "/disordered", "/refused"] {
        ensure!(number(line, wrong)? == 0.0, "{line}");
    }
    ensure!(line["failures"].as_array().is_some_and(Vec::is_empty), "{line}");
    if line.get("latency_us").is_some() {
        let parts = ["/latency_us/p50", "/latency_us/p90", "/latency_us/p99", "/latency_us/max"];
        let times = parts.iter().map(|part| number(line, part)).collect::<Result<Vec<f64>>>()?;
        ensure!(times[0] > 0.0 && times.is_sorted() && times[3] < 60e6, "{line}");
        ensure!(number(line, "/per_second")? > 0.0, "{line}");
    }
    if line.get("cpu_us").is_some() {
        let (cpu, own) = (number(line, "/cpu_us")?, number(line, "/generator_cpu_us")?);
        ensure!((0.0..1e6).contains(&cpu) && (0.0..1e6).contains(&own), "{line}");
    }
    Ok(())
}

/// Whether TLS begins at once, what is run, and the reports of it, each with what it is to count.
type Row = (bool, &'static str, &'static [(&'static str, f64)]);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_server_loses_nothing_and_its_figures_are_plausible() -> Result<()> {
    let nodes = Nodes::start_edited(Layout::One, |_, _, config| {
        // On everywhere, what stories have on one host only.
        Ok(config.replace("hosts = [\"other.example\"]\n", ""))
    })
    .await?;
    let door = nodes.door(0);
    let process = nodes.process(0).context("no process")?;
    let common = |direct: bool| match direct {
        true => format!("--server {} --tls direct --pid {process}", door.direct),
        false => format!("--server {} --pid {process}", door.c2s),
    };
    let command = tests::nodes::binary()?.display();
    let create = format!(
        "{command} user add {{user}}@{{host}} --password {{password}} --admin http://{}",
        nodes.nodes[0].admin
    );
    // Each way of making accounts, of TLS and of logging in at least once.
    let table: [Row; 10] = [
        (true, "--users c chat --saturate --pairs 3 --count 600 --warm-up 30", &[("chat", 600.0)]),
        (
            false,
            "--users c --management --mechanism scram-sha-256 --from 127.0.0.2-127.0.0.3 chat --pairs 3 --rate 300 \
             --seconds 1 --warm-up 30",
            &[("chat", 300.0)],
        ),
        (
            true,
            "--users q --register --mechanism plain ping --saturate --sessions 3 --count 300 --warm-up 0",
            &[("ping", 300.0)],
        ),
        (
            true,
            "--users q --register disco --sessions 2 --rate 100 --seconds 1 --warm-up 0",
            &[("disco", 100.0)],
        ),
        (
            false,
            "--users l --register --mechanism scram-sha-1 --at-once 4 login --count 8 --rounds 2",
            &[("login", 8.0), ("login", 8.0)],
        ),
        (
            true,
            "--users p --register presence --publishers 2 --contacts 3 --updates 20 --warm-up 2",
            &[("presence", 120.0)],
        ),
        (
            true,
            "--users r --register roster --sessions 2 --size 20 --reads 5",
            &[("roster_set", 40.0), ("roster_get", 10.0)],
        ),
        (true, "--users o --register offline --away 2 --messages 5 --settle-s 0.1", &[("offline", 10.0)]),
        (
            true,
            "--users a --register archive --pairs 2 --rate 60 --seconds 2 --sessions 2 --pages 5 --warm-up 0",
            &[("archive_messages", 120.0), ("archive_pages", 10.0)],
        ),
        (true, "--users l --register churn --rate 20 --seconds 1 --pool 4", &[("churn", 20.0)]),
    ];
    let folder = tempfile::tempdir()?;
    for (direct, text, reports) in table {
        let mut line = words(&format!("{} {text}", common(direct)));
        if !text.contains("--register") {
            line.extend(["--create".to_owned(), create.clone()]);
        }
        // The second chat finds its accounts made.
        if text.contains("--management") {
            line.truncate(line.len() - 2);
        }
        let (status, found) = load(folder.path(), &line).await?;
        ensure!(status == Some(0) && found.len() == reports.len(), "{text}: {status:?} {found:?}");
        for ((workload, expected), report) in reports.iter().zip(&found) {
            ensure!(report["workload"] == *workload, "{text}: {report}");
            plausible(report, *expected).with_context(|| text.to_owned())?;
        }
    }
    let idle = format!("{} --users i --register idle --steps 4,8 --warm-up 2 --settle-s 0.2", common(true));
    let (status, found) = load(folder.path(), &words(&idle)).await?;
    ensure!(status == Some(0) && found.len() == 3, "{found:?}");
    ensure!(number(&found[1], "/pss_kib")? > 1000.0 && number(&found[1], "/sessions")? == 8.0, "{found:?}");
    plausible(&found[2], 8.0)
}

/// What a server does to the fifth message of each pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fifth {
    Delivered,
    Dropped,
    Doubled,
    BehindTheNext,
    Refused,
}

/// A server that knows just enough to be measured, without TLS.
#[derive(Clone)]
struct Fake {
    fifth: Fifth,
    sessions: Arc<Mutex<HashMap<String, mpsc::UnboundedSender<String>>>>,
}

impl Fake {
    async fn listen(fifth: Fifth) -> Result<String> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?.to_string();
        let fake = Fake { fifth, sessions: Arc::default() };
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let fake = fake.clone();
                // A client that ends its connection ends this as well.
                tokio::spawn(async move { drop(fake.serve(socket).await) });
            }
        });
        Ok(address)
    }

    async fn serve(self, socket: TcpStream) -> Result<()> {
        let (mut reading, mut writing) = socket.into_split();
        let (queue, mut waiting) = mpsc::unbounded_channel::<String>();
        tokio::spawn(async move {
            while let Some(text) = waiting.recv().await {
                if writing.write_all(text.as_bytes()).await.is_err() {
                    break;
                }
            }
        });
        let (mut text, mut user, mut held) = (String::new(), None, None);
        let mut buffer = vec![0; 16 << 10];
        loop {
            let read = reading.read(&mut buffer).await?;
            ensure!(read > 0, "the client is gone");
            text += std::str::from_utf8(&buffer[..read])?;
            while let Some(element) = cut(&mut text) {
                self.answer(&element, &queue, &mut user, &mut held)?;
            }
        }
    }

    fn answer(
        &self,
        element: &str,
        queue: &mpsc::UnboundedSender<String>,
        user: &mut Option<String>,
        held: &mut Option<String>,
    ) -> Result<()> {
        let me = user.as_deref().map(|user| format!("{user}@localhost/bench"));
        let id = attribute(element, "id").unwrap_or_default();
        if element.starts_with("<?xml") {
            let features = match me {
                None => {
                    "<mechanisms xmlns='urn:ietf:params:xml:ns:xmpp-sasl'><mechanism>PLAIN</mechanism></mechanisms>"
                }
                Some(_) => "<bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/>",
            };
            queue.send(format!(
                "<?xml version='1.0'?><stream:stream xmlns='jabber:client' \
                 xmlns:stream='http://etherx.jabber.org/streams' from='localhost' id='1' version='1.0'>\
                 <stream:features>{features}</stream:features>"
            ))?;
        } else if element.starts_with("<auth") {
            let begin = element.find('>').context("no payload")? + 1;
            let end = element.rfind("</").context("no end")?;
            let said = String::from_utf8(BASE64_STANDARD.decode(&element[begin..end])?)?;
            *user = said.split('\0').nth(1).map(str::to_owned);
            queue.send("<success xmlns='urn:ietf:params:xml:ns:xmpp-sasl'/>".to_owned())?;
        } else if element.contains("<bind") {
            let me = me.context("nobody")?;
            self.sessions.lock().expect("no panic").insert(me.clone(), queue.clone());
            queue.send(format!("<iq type='result' id='{id}'><bind><jid>{me}</jid></bind></iq>"))?;
        } else if element.starts_with("<iq") {
            queue.send(format!("<iq type='result' id='{id}'/>"))?;
        } else if element.starts_with("<presence") {
            queue.send(format!("<presence from='{}'/>", me.context("nobody")?))?;
        } else if element.starts_with("<message") {
            let to = attribute(element, "to").context("to nobody")?;
            let sessions = self.sessions.lock().expect("no panic");
            let other = sessions.get(to).context("nobody there")?;
            match self.fifth {
                Fifth::Dropped if id == "c4" => {}
                Fifth::Doubled if id == "c4" => {
                    other.send(element.to_owned())?;
                    other.send(element.to_owned())?;
                }
                Fifth::BehindTheNext if id == "c4" => *held = Some(element.to_owned()),
                Fifth::Refused if id == "c4" => {
                    other.send(element.to_owned())?;
                    queue.send("<message type='error' id='c4'/>".to_owned())?;
                }
                _ => other.send(element.to_owned())?,
            }
            if id != "c4"
                && let Some(late) = held.take()
            {
                other.send(late)?;
            }
        } else {
            queue.send("</stream:stream>".to_owned())?;
            bail!("the client says goodbye");
        }
        Ok(())
    }
}

/// Takes the first whole element of what was read.
fn cut(text: &mut String) -> Option<String> {
    let end = if text.starts_with("<?xml") {
        ">"
    } else if text.starts_with("<presence/>") || text.starts_with("</stream:stream>") {
        "/>"
    } else {
        let name: String = text.strip_prefix('<')?.chars().take_while(char::is_ascii_alphabetic).collect();
        let close = format!("</{name}>");
        let at = text.find(&close)? + close.len();
        return Some(text.drain(..at).collect());
    };
    // The declaration has one of its own before that of the stream's opening tag.
    let skip = if text.starts_with("<?xml") { text.find("?>")? + 2 } else { 0 };
    let end = if text.starts_with("</") { ">" } else { end };
    let at = skip + text[skip..].find(end)? + end.len();
    Some(text.drain(..at).collect())
}

fn attribute<'a>(element: &'a str, name: &str) -> Option<&'a str> {
    let begin = element.find(&format!(" {name}='"))? + name.len() + 3;
    let length = element[begin..].find('\'')?;
    Some(&element[begin..begin + length])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_a_server_does_wrong_is_counted_and_makes_the_run_fail() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let table = [
        (Fifth::Delivered, Some(0), ""),
        (Fifth::Dropped, Some(1), "/lost"),
        (Fifth::Doubled, Some(1), "/doubled"),
        (Fifth::BehindTheNext, Some(1), "/disordered"),
        (Fifth::Refused, Some(1), "/refused"),
    ];
    for (fifth, expected, wrong) in table {
        let server = Fake::listen(fifth).await?;
        for pace in ["--saturate --count 40 --window 8", "--rate 200 --seconds 0.2"] {
            let line =
                format!("--server {server} --tls none --patience-s 1 chat --pairs 2 --warm-up 0 {pace}");
            let (status, found) = load(folder.path(), &words(&line)).await?;
            ensure!(status == expected, "{fifth:?}, {pace}: {status:?} {found:?}");
            for count in ["/lost", "/doubled", "/disordered", "/refused"] {
                // One of each of the two pairs.
                let right = if count == wrong { 2.0 } else { 0.0 };
                ensure!(number(&found[0], count)? == right, "{fifth:?}, {pace}: {found:?}");
            }
        }
    }
    Ok(())
}
