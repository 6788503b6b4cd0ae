//! The page `docs/bad-input.md`: which row of bad input which test holds, read from the tests' sources.

use std::fmt::Write as _;

use crate::tree::{File, Tree};

/// Where the rows of strangers at the doors for clients are.
const FOLDER: &str = "tests/bad_input/";
/// Where those of nodes that misbehave are, or their clocks.
const CLUSTER: &[&str] = &["tests/cluster/", "crates/cluster/src/"];
const PAGE: &str = "docs/bad-input.md";

/// The chapters, by their first and last row.
const CHAPTERS: &[(u32, u32, &str)] = &[
    (1, 30, "XML and streams"),
    (31, 60, "Size, time and resources"),
    (61, 92, "TLS and authentication"),
    (93, 110, "Addresses, and who speaks in whose name"),
    (132, 139, "The nodes of a cluster"),
    (140, 141, "Nodes that stand still, and clocks that do not agree"),
];

/// Rows that no test can hold yet: what comes in, and the feature that they wait for.
const WAITING: &[(u32, &str, &str)] = &[
    (46, "an acknowledgement of more stanzas than were sent", "stream management"),
    (47, "a client that never acknowledges", "stream management"),
    (48, "a count of stanzas that passes 2^32", "stream management"),
    (49, "a resumption of somebody else's, a dead or an invented session", "stream management"),
    (50, "stream management switched on twice, or before binding", "stream management"),
    (51, "sessions that are killed and replaced one after the other", "stream management"),
    (52, "paging through an archive with marks that are none, or without measure", "archives"),
    (53, "an archive asked for with times and addresses that are none", "archives"),
    (85, "the resumption of a session that was replaced", "stream management"),
    (87, "a token for fast login used twice, too late, or by another client", "FAST"),
    (100, "a forged copy of a message", "carbons"),
    (102, "a query of somebody else's archive", "archives"),
    (103, "a capabilities hash that does not fit what is announced", "a cache of capabilities"),
    (106, "stanzas to and from who is blocked", "blocking"),
    (109, "an administrator's command from a user", "ad-hoc commands"),
    (110, "a stanza on its way to another server", "server-to-server links"),
];

/// One test of a row.
struct Row {
    number: u32,
    /// The function's name, and its file.
    test: String,
    file: String,
    input: String,
    outcome: String,
    ways: String,
}

/// The page as the tests make it, and what is wrong with the tests' comments.
pub fn page(tree: &Tree) -> (String, Vec<String>) {
    let mut wrong = Vec::new();
    let mut rows = Vec::new();
    let is_one =
        |f: &&File| f.path.starts_with(FOLDER) || CLUSTER.iter().any(|folder| f.path.starts_with(folder));
    for file in tree.rust().filter(is_one) {
        rows.extend(read(file, &mut wrong));
    }
    rows.sort_by(|a, b| (a.number, &a.test).cmp(&(b.number, &b.test)));
    for (number, ..) in WAITING {
        if rows.iter().any(|row| row.number == *number) {
            wrong.push(format!("row {number} has a test: take it out of the list of those that wait"));
        }
    }
    (write(&rows), wrong)
}

/// The page that is committed.
pub fn committed(tree: &Tree) -> String {
    tree.file(PAGE).map(|f| f.text.clone()).unwrap_or_default()
}

/// Writes the page anew.
pub fn regenerate(tree: &Tree, page: &str) {
    std::fs::write(tree.root.join(PAGE), page).expect("the page can be written");
}

fn read(file: &File, wrong: &mut Vec<String>) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut comment: Vec<&str> = Vec::new();
    let mut lines = file.lines();
    while let Some((at, line)) = lines.next() {
        // A row that needs no process is inside a module.
        let indent = line.len() - line.trim_start().len();
        let line = line.trim_start();
        if let Some(text) = line.strip_prefix("///") {
            comment.push(text.trim());
            continue;
        }
        let name = line.strip_prefix("async fn row_").or_else(|| line.strip_prefix("fn row_"));
        if let Some(name) = name {
            let name = name.split('(').next().unwrap_or(name);
            let mut body = String::new();
            for (_, line) in
                lines.by_ref().take_while(|(_, line)| line.len() != indent + 1 || line.trim_start() != "}")
            {
                body += line;
                body.push('\n');
            }
            let paragraph = |label: &str| paragraph(&comment, label);
            let number = name.get(..3).and_then(|n| n.parse().ok()).filter(|_| name[3..].starts_with('_'));
            match (number, paragraph("Input:"), paragraph("Outcome:")) {
                (Some(number), Some(input), Some(outcome)) => rows.push(Row {
                    number,
                    test: format!("row_{name}"),
                    file: file.path.trim_start_matches(FOLDER).to_owned(),
                    input,
                    outcome,
                    ways: ways(&body),
                }),
                _ => wrong.push(format!(
                    "{}:{at}: a row is named `row_NNN_what_happens` and has the paragraphs `Input: ...` and `Outcome: ...`",
                    file.path
                )),
            }
        }
        if !line.starts_with("#[") {
            comment.clear();
        }
    }
    rows
}

/// The paragraph of a comment that begins with the label, in one line, without the label.
fn paragraph(comment: &[&str], label: &str) -> Option<String> {
    let from = comment.iter().position(|line| line.starts_with(label))?;
    let lines: Vec<&str> = comment[from..].iter().copied().take_while(|line| !line.is_empty()).collect();
    let text = lines.join(" ");
    Some(text[label.len()..].trim().replace('|', "\\|"))
}

/// Over what a row runs, as far as its function says.
fn ways(body: &str) -> String {
    let named: [(&str, &[&str]); 3] = [
        ("TCP", &["Way::ALL", "Way::Plain"]),
        ("STARTTLS", &["Way::ALL", "Way::StartTls", "Way::TLS"]),
        ("direct TLS", &["Way::ALL", "Way::Direct", "Way::TLS"]),
    ];
    let ways = named.into_iter().filter(|(_, words)| words.iter().any(|word| body.contains(word)));
    ways.map(|(way, _)| way).collect::<Vec<_>>().join(", ")
}

fn write(rows: &[Row]) -> String {
    let mut page = String::from(
        "# Bad input\n\n\
         What strangers may send to the ports for clients and for other nodes, and what they get. Each line is a test over real \
         sockets in [tests/bad_input](../tests/bad_input/main.rs). After every one of them the process lives, \
         a bystander's session works and has heard nothing, memory is where it was, nothing has panicked, no \
         password is in the log, and a metric has counted what happened.\n\n\
         The last chapter is of the cluster itself; its tests are named with their folders.\n\n\
         Made from the tests: `ROOKERY_REGENERATE=1 cargo test -p tests --test tidy bad_input`.\n",
    );
    for (first, last, title) in CHAPTERS {
        let _ = write!(
            page,
            "\n## {title}\n\n| row | what comes in | what happens | over | test |\n|---|---|---|---|---|\n"
        );
        for number in *first..=*last {
            chapter_row(&mut page, number, rows);
        }
    }
    page
}

fn chapter_row(page: &mut String, number: u32, rows: &[Row]) {
    let here: Vec<&Row> = rows.iter().filter(|row| row.number == number).collect();
    for Row { number, test, file, input, outcome, ways } in &here {
        let (input, outcome) = (capital(input), capital(outcome));
        let _ = writeln!(page, "| {number} | {input} | {outcome} | {ways} | `{file}` `{test}` |");
    }
    if here.is_empty() {
        let (input, why) = match WAITING.iter().find(|(n, ..)| *n == number) {
            Some((_, input, feature)) => (capital(input), format!("waits for {feature}")),
            None => ("".to_owned(), "no test yet".to_owned()),
        };
        let _ = writeln!(page, "| {number} | {input} | {why} | | |");
    }
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or(String::new(), |first| first.to_uppercase().chain(letters).collect())
}
