//! The commands that talk to the admin service of a running node.

mod check;
mod groups;
mod watch;

use std::{
    collections::BTreeMap,
    future::Future,
    io::{self, BufRead, IsTerminal, Read, Write},
    path::Path,
    time::{Duration, SystemTime},
};

use proto::admin::{self, admin_client::AdminClient};
use serde_json::json;
use tonic::transport::{Channel, Endpoint};

use crate::{
    cli::{Cluster, Format, Node, Password, Role, Session, User},
    parts::Failure,
    scram,
    table::Table,
};

pub use groups::group;

/// How long a call may take; removing an account with a large archive is the longest.
const CALL: Duration = Duration::from_secs(30);
/// The most that a file with the keys of one account may hold, in bytes.
const KEYS_MAX: u64 = 65_536;
/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(3);

/// What a command could not do, in words for whoever typed it.
#[derive(Debug, thiserror::Error)]
pub enum CtlError {
    #[error(
        "failed to reach the admin service at `{url}`: {reason} (is the node running? `--admin URL` names another)"
    )]
    Unreachable { url: String, reason: String },
    #[error("failed to {attempt}: {reason}")]
    Refused { attempt: String, reason: String },
    #[error("failed to read the password: {0}")]
    Password(String),
    #[error("failed to read keys from `{file}`: {what}")]
    Keys { file: String, what: String },
}

/// Runs one command on a runtime of its own.
pub fn run(command: impl Future<Output = Result<(), CtlError>>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(command)?)
}

/// Connects to an admin service.
pub async fn connect(url: &str) -> Result<AdminClient<Channel>, CtlError> {
    connect_for(url, Some(CALL)).await
}

/// As `connect`, with another bound for each call, or none.
async fn connect_for(url: &str, bound: Option<Duration>) -> Result<AdminClient<Channel>, CtlError> {
    Ok(AdminClient::new(channel(url, bound).await?))
}

async fn channel(url: &str, bound: Option<Duration>) -> Result<Channel, CtlError> {
    let unreachable = |reason: String| CtlError::Unreachable { url: url.to_owned(), reason };
    let endpoint = Endpoint::from_shared(url.to_owned()).map_err(|_| unreachable("this is no URL".into()))?;
    let endpoint = endpoint.connect_timeout(CONNECT);
    let endpoint = match bound {
        Some(bound) => endpoint.timeout(bound),
        None => endpoint,
    };
    endpoint.connect().await.map_err(|e| unreachable(innermost(&e)))
}

/// The last of the causes: what the system said.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

fn refused(attempt: impl Into<String>) -> impl FnOnce(tonic::Status) -> CtlError {
    let attempt = attempt.into();
    move |status| {
        let reason = match status.message() {
            "" => status.code().description().to_owned(),
            message => message.to_owned(),
        };
        CtlError::Refused { attempt, reason }
    }
}

/// `rookery user ...`
pub async fn user(admin: &str, what: User) -> Result<(), CtlError> {
    match what {
        User::Add { jid, password, scram } => {
            let (password, scram_keys) = match scram {
                Some(file) => (String::new(), scram_keys(&file)?),
                None => (ask(password, &jid)?, Vec::new()),
            };
            let mut client = connect(admin).await?;
            let request = admin::CreateAccountRequest { jid: jid.clone(), password, scram_keys };
            let done = client.create_account(request).await.map_err(refused(format!("add `{jid}`")))?;
            println!("added {}", done.into_inner().jid);
        }
        User::Remove { jid } => {
            let mut client = connect(admin).await?;
            let request = admin::RemoveAccountRequest { jid: jid.clone() };
            let done = client.remove_account(request).await.map_err(refused(format!("remove `{jid}`")))?;
            println!("removed {jid} ({})", ended(done.into_inner().kicked));
        }
        User::Passwd { jid, password, end_sessions } => {
            let password = ask(password, &jid)?;
            let mut client = connect(admin).await?;
            let request = admin::SetPasswordRequest { jid: jid.clone(), password, end_sessions };
            let done = client.set_password(request).await;
            let kicked = done.map_err(refused(format!("set the password of `{jid}`")))?.into_inner().kicked;
            match end_sessions {
                true => println!("password of {jid} set ({})", ended(kicked)),
                false => println!("password of {jid} set"),
            }
        }
        User::Disable { jid } => {
            let mut client = connect(admin).await?;
            let request = admin::DisableAccountRequest { jid: jid.clone() };
            let done = client.disable_account(request).await.map_err(refused(format!("disable `{jid}`")))?;
            println!("disabled {jid} ({})", ended(done.into_inner().kicked));
        }
        User::Enable { jid } => {
            let mut client = connect(admin).await?;
            let request = admin::EnableAccountRequest { jid: jid.clone() };
            client.enable_account(request).await.map_err(refused(format!("enable `{jid}`")))?;
            println!("enabled {jid}");
        }
        User::List { host, format } => {
            let mut client = connect(admin).await?;
            let request = admin::ListAccountsRequest { host: host.unwrap_or_default() };
            let mut list =
                client.list_accounts(request).await.map_err(refused("list the accounts"))?.into_inner();
            let mut jids = Vec::new();
            while let Some(account) = list.message().await.map_err(refused("list the accounts"))? {
                match format {
                    Format::Table if account.state == "open" => println!("{}", account.jid),
                    Format::Table => println!("{} ({})", account.jid, account.state),
                    Format::Json => jids.push(json!({ "jid": account.jid, "state": account.state })),
                }
            }
            if format == Format::Json {
                println!("{:#}", json!(jids));
            }
        }
    }
    Ok(())
}

fn ended(sessions: u32) -> String {
    match sessions {
        1 => "1 session ended".to_owned(),
        n => format!("{n} sessions ended"),
    }
}

/// `rookery cluster ...`
pub async fn cluster(admin: &str, what: Cluster) -> Result<(), CtlError> {
    match what {
        Cluster::Status { format, watch: true } => watch::watch(admin, format).await,
        Cluster::Check { format } => check::check(admin, format).await,
        Cluster::Status { format, watch: false } => {
            let state = state(&mut connect(admin).await?).await?;
            match format {
                Format::Table => print!("{}", status_table(&state)),
                Format::Json => println!("{:#}", status_json(&state)),
            }
            Ok(())
        }
        Cluster::Token { list: true, format, .. } => list_tokens(admin, format).await,
        Cluster::Token { revoke: Some(id), .. } => {
            let request = admin::RevokeTokenRequest { id: id.clone() };
            let done = connect(admin).await?.revoke_token(request).await;
            done.map_err(refused(format!("revoke the join token `{id}`")))?;
            println!("revoked the join token {id}");
            Ok(())
        }
        Cluster::Token { role, ttl, .. } => create_token(admin, role, ttl).await,
        Cluster::Remove { node } => {
            let request = admin::RemoveNodeRequest { node: node.clone() };
            let done = connect(admin).await?.remove_node(request).await;
            let done = done.map_err(refused(format!("remove the node `{node}`")))?.into_inner();
            let lived = if done.lived { "it stops now" } else { "it was gone already" };
            println!("removed {} (id {}): {lived}", done.name, done.id);
            if !done.left_groups {
                println!("it still counts in a Raft group: the leader takes it out as soon as it can");
            }
            Ok(())
        }
        // These ask nobody; `main` sends them elsewhere.
        Cluster::Init(_) | Cluster::Join { .. } | Cluster::Recover { .. } => Ok(()),
    }
}

async fn create_token(admin: &str, role: Role, ttl: Duration) -> Result<(), CtlError> {
    let (frontend, backend) = match role {
        Role::Frontend => (true, false),
        Role::Backend => (false, true),
        Role::Both => (true, true),
    };
    let request = admin::CreateTokenRequest { frontend, backend, ttl_s: ttl.as_secs() };
    let made = connect(admin).await?.create_token(request).await;
    let made = made.map_err(refused("make a join token"))?.into_inner();
    println!("{}", made.token);
    let at = made.addresses.first().map_or("HOST:PORT", String::as_str);
    eprintln!(
        "This token (id {}) lets in one node, within {} s. On that node's machine:",
        made.id,
        ttl.as_secs()
    );
    eprintln!("  rookery cluster join {}@{at} --config FILE", made.token);
    if made.addresses.len() > 1 {
        eprintln!("It can also be used at {}.", made.addresses[1..].join(", "));
    }
    Ok(())
}

async fn list_tokens(admin: &str, format: Format) -> Result<(), CtlError> {
    let listed = connect(admin).await?.list_tokens(admin::ListTokensRequest {}).await;
    let mut tokens = listed.map_err(refused("list the join tokens"))?.into_inner().tokens;
    tokens.sort_by(|a, b| (a.made, &a.id).cmp(&(b.made, &b.id)));
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    match format {
        Format::Table => {
            let mut table = Table::new(&["ID", "ROLES", "STATE", "LEFT", "NODE"]);
            for token in &tokens {
                let left = match token.state.as_str() {
                    "open" => format!("{} s", token.expires.saturating_sub(now)),
                    _ => String::new(),
                };
                table.row(&[&token.id, &token.roles.join("+"), &token.state, &left, &token.node]);
            }
            print!("{table}");
        }
        Format::Json => {
            let tokens = tokens.iter().map(|token| {
                json!({
                    "id": token.id,
                    "roles": token.roles,
                    "made": token.made,
                    "expires": token.expires,
                    "state": token.state,
                    "node": token.node,
                })
            });
            println!("{:#}", json!(tokens.collect::<Vec<_>>()));
        }
    }
    Ok(())
}

/// `rookery node ...`
pub async fn node(admin: &str, what: Node) -> Result<(), CtlError> {
    match what {
        Node::Drain { node, rate, stop } => drain(admin, node.unwrap_or_default(), rate, stop).await,
        Node::Undrain { node } => {
            let node = node.unwrap_or_default();
            let attempt = attempt("undrain", &node);
            let mut client = connect(admin).await?;
            let done =
                client.undrain_node(admin::UndrainNodeRequest { node }).await.map_err(refused(attempt))?;
            println!("{} takes what is new again", done.into_inner().node);
            Ok(())
        }
    }
}

fn attempt(verb: &str, node: &str) -> String {
    if node.is_empty() { format!("{verb} the node") } else { format!("{verb} `{node}`") }
}

async fn drain(admin: &str, node: String, rate: Option<u32>, stop: bool) -> Result<(), CtlError> {
    let attempt = attempt("drain", &node);
    let mut client = connect_for(admin, None).await?;
    let request = admin::DrainNodeRequest { node, rate_per_s: rate.unwrap_or(0), stop };
    let mut progress = client.drain_node(request).await.map_err(refused(&*attempt))?.into_inner();
    // A terminal shows one line that changes; a file gets a line for each change that is worth one.
    let (is_terminal, mut shown) = (io::stdout().is_terminal(), None);
    while let Some(now) = progress.message().await.map_err(refused(&*attempt))? {
        let line = progress_line(&now);
        if now.done {
            println!("{}{line}", if is_terminal { "\r\x1b[K" } else { "" });
            return Ok(());
        }
        if is_terminal {
            print!("\r\x1b[K{line}");
            // a terminal that has gone away misses nothing
            let _ = io::stdout().flush();
        } else if shown.is_none_or(|left| now.left * 10 <= left * 9) {
            println!("{line}");
            shown = Some(now.left);
        }
    }
    Err(CtlError::Refused { attempt, reason: "the node ended before all clients had left".to_owned() })
}

/// How a drain goes, for people.
fn progress_line(now: &admin::DrainProgress) -> String {
    let seconds = now.elapsed_ms as f64 / 1000.0;
    let admin::DrainProgress { node, total, left, .. } = now;
    if now.done {
        return format!("{node} is empty: {total} clients left in {seconds:.1} s");
    }
    let rate = now.rate_per_s;
    format!("{node}: {left} of {total} clients left, {rate}/s at most, about {} s to go", now.eta_s)
}

/// `rookery health`
pub async fn health(admin: &str, live: bool) -> Result<(), CtlError> {
    let mut client = connect(admin).await?;
    let health =
        client.get_health(admin::GetHealthRequest {}).await.map_err(refused("ask for its health"))?;
    let admin::GetHealthResponse { not_ready, not_live } = health.into_inner();
    let (word, wrong) = if live { ("alive", not_live) } else { ("ready", not_ready) };
    if wrong.is_empty() {
        println!("{word}");
        return Ok(());
    }
    Err(CtlError::Refused { attempt: format!("find it {word}"), reason: wrong.join("; ") })
}

/// `rookery session ...`
pub async fn session(admin: &str, what: Session) -> Result<(), CtlError> {
    let mut client = connect(admin).await?;
    match what {
        Session::List { format, account } => {
            let sessions = sessions(&mut client, account.unwrap_or_default()).await?;
            match format {
                Format::Table => print!("{}", session_table(&sessions)),
                Format::Json => {
                    println!("{:#}", json!(sessions.iter().map(session_json).collect::<Vec<_>>()));
                }
            }
        }
        Session::Kick { jid } => {
            let request = admin::KickSessionRequest { jid: jid.clone() };
            let done = client.kick_session(request).await.map_err(refused(format!("kick `{jid}`")))?;
            match done.into_inner().kicked {
                1 => println!("kicked 1 session of {jid}"),
                n => println!("kicked {n} sessions of {jid}"),
            }
        }
    }
    Ok(())
}

/// The state of the cluster as a node sees it.
pub async fn state(client: &mut AdminClient<Channel>) -> Result<admin::GetClusterResponse, CtlError> {
    let answer = client.get_cluster(admin::GetClusterRequest {}).await;
    Ok(answer.map_err(refused("read the state of the cluster"))?.into_inner())
}

/// All sessions of the cluster, or those of one account.
pub async fn sessions(
    client: &mut AdminClient<Channel>,
    account: String,
) -> Result<Vec<admin::Session>, CtlError> {
    let request = admin::ListSessionsRequest { account, node: 0 };
    let mut list = client.list_sessions(request).await.map_err(refused("list the sessions"))?.into_inner();
    let mut sessions = Vec::new();
    while let Some(session) = list.message().await.map_err(refused("list the sessions"))? {
        sessions.push(session);
    }
    Ok(sessions)
}

/// The state of a cluster for people.
pub fn status_table(state: &admin::GetClusterResponse) -> String {
    let mut table =
        Table::new(&["NODE", "ID", "INCARNATION", "ROLES", "STATE", "LEADER", "SESSIONS", "ADDRESS"]);
    let mut nodes: Vec<_> = state.nodes.iter().collect();
    nodes.sort_by(|a, b| (&a.name, a.id).cmp(&(&b.name, b.id)));
    for node in nodes {
        table.row(&[
            &node.name,
            &node.id,
            &node.incarnation,
            &node.roles.join("+"),
            &node.state,
            &if node.leader { "leader" } else { "" },
            &node.sessions,
            &node.address,
        ]);
    }
    let cluster = if state.cluster_id.is_empty() { "not formed" } else { &state.cluster_id };
    let serving = if state.serving { "serving" } else { "not serving" };
    let answered = state.nodes.iter().find(|n| n.id == state.answered_by);
    let by = answered.map_or_else(|| state.answered_by.to_string(), |n| n.name.clone());
    format!("cluster {cluster}, answered by {by} ({serving}), index {}\n{table}", state.index)
}

/// The state of a cluster for programs.
pub fn status_json(state: &admin::GetClusterResponse) -> serde_json::Value {
    json!({
        "cluster_id": state.cluster_id,
        "answered_by": state.answered_by,
        "serving": state.serving,
        "index": state.index,
        "leader": state.leader,
        "hosts": state.hosts,
        "version": state.version,
        "nodes": state.nodes.iter().map(|n| json!({
            "id": n.id,
            "name": n.name,
            "incarnation": n.incarnation,
            "roles": n.roles,
            "state": n.state,
            "leader": n.leader,
            "sessions": n.sessions,
            "address": n.address,
        })).collect::<Vec<_>>(),
        "groups": state.groups.iter().map(|g| json!({
            "name": g.name,
            "leader": g.leader,
            "term": g.term,
            "last_log": g.last_log,
            "applied": g.applied,
            "voters": g.voters,
        })).collect::<Vec<_>>(),
    })
}

/// Sessions for people.
pub fn session_table(sessions: &[admin::Session]) -> String {
    let mut table = Table::new(&["SESSION", "NODE", "PRIORITY", "FROM", "TLS", "MECHANISM", "AGE", "QUEUED"]);
    for session in by_jid(sessions) {
        let priority = session.priority.map_or_else(|| "-".to_owned(), |p| p.to_string());
        let c = session.connection.clone().unwrap_or_default();
        let known = session.connection.is_some();
        let number = |n: u64, unit: &str| if known { format!("{n}{unit}") } else { String::new() };
        table.row(&[
            &session.jid,
            &session.node_name,
            &priority,
            &c.peer_address,
            &c.tls,
            &c.mechanism,
            &number(c.age_s, " s"),
            &number(c.queued, ""),
        ]);
    }
    let silent: BTreeMap<&str, &str> = sessions
        .iter()
        .filter(|s| !s.unanswered.is_empty())
        .map(|s| (s.node_name.as_str(), s.unanswered.as_str()))
        .collect();
    let notes =
        silent.iter().map(|(node, why)| format!("{node} did not say more about its sessions: {why}\n"));
    table.to_string() + &notes.collect::<String>()
}

/// Sessions and where they are, in short.
pub fn where_table(sessions: &[admin::Session]) -> String {
    let mut table = Table::new(&["SESSION", "NODE", "PRIORITY"]);
    for session in by_jid(sessions) {
        let priority = session.priority.map_or_else(|| "-".to_owned(), |p| p.to_string());
        table.row(&[&session.jid, &session.node_name, &priority]);
    }
    table.to_string()
}

fn by_jid(sessions: &[admin::Session]) -> Vec<&admin::Session> {
    let mut sorted: Vec<_> = sessions.iter().collect();
    sorted.sort_by(|a, b| a.jid.cmp(&b.jid));
    sorted
}

fn session_json(session: &admin::Session) -> serde_json::Value {
    json!({
        "jid": session.jid,
        "node": session.node,
        "node_name": session.node_name,
        "sid": session.sid,
        "priority": session.priority,
        "detached": session.detached,
        "connection": session.connection.as_ref().map(|c| json!({
            "peer_address": c.peer_address,
            "age_s": c.age_s,
            "tls": c.tls,
            "mechanism": c.mechanism,
            "queued": c.queued,
        })),
        "unanswered": session.unanswered,
    })
}

/// The password from the flag, else from a prompt, else one line of stdin.
fn ask(given: Password, jid: &str) -> Result<String, CtlError> {
    let failed = |e: io::Error| CtlError::Password(e.to_string());
    let password = match given.password {
        Some(password) => password,
        None if io::stdin().is_terminal() => {
            let first = rpassword::prompt_password(format!("password for {jid}: ")).map_err(failed)?;
            let second = rpassword::prompt_password("once more: ").map_err(failed)?;
            if first != second {
                return Err(CtlError::Password("the two are not the same".into()));
            }
            first
        }
        None => {
            let mut line = String::new();
            io::stdin().lock().read_line(&mut line).map_err(failed)?;
            line.trim_end_matches(['\r', '\n']).to_owned()
        }
    };
    io::stdout().flush().map_err(failed)?;
    if password.is_empty() {
        return Err(CtlError::Password("it is empty".into()));
    }
    Ok(password)
}

/// The lines with keys of a file, or of stdin; those that are empty, or begin with `#`, are passed over.
fn scram_keys(file: &Path) -> Result<Vec<String>, CtlError> {
    let wrong = |what: String| CtlError::Keys { file: file.display().to_string(), what };
    let read = match file.as_os_str() == "-" {
        true => read_bounded(io::stdin().lock()),
        false => std::fs::File::open(file).and_then(read_bounded),
    };
    let text = read.map_err(|error| wrong(error.to_string()))?;
    let is_said = |line: &&str| !line.trim().is_empty() && !line.trim_start().starts_with('#');
    let said: Vec<(usize, &str)> = (1..).zip(text.lines()).filter(|(_, line)| is_said(line)).collect();
    // Here as well as at the node, to name the line of the file.
    scram::keys(said.iter().map(|(_, line)| *line)).map_err(|(number, what)| {
        match number.checked_sub(1).and_then(|at| said.get(at)) {
            Some((line, _)) => wrong(format!("line {line}: {what}")),
            None => wrong(what),
        }
    })?;
    Ok(said.into_iter().map(|(_, line)| line.trim().to_owned()).collect())
}

fn read_bounded(from: impl Read) -> io::Result<String> {
    let mut text = String::new();
    from.take(KEYS_MAX + 1).read_to_string(&mut text)?;
    match text.len() as u64 > KEYS_MAX {
        true => Err(io::Error::other(format!("more than {KEYS_MAX} bytes"))),
        false => Ok(text),
    }
}
