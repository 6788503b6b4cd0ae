//! Reads a story: a play in plain text, see `tests/stories/README.md` for the language.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail, ensure};

/// Who runs commands.
const OPERATOR: &str = "operator";

/// A story as it was written.
#[derive(Debug)]
pub struct Play {
    /// Folder and file name without ending: `presence/a_contact_sees_me_leave`.
    pub name: String,
    /// Accounts that exist when it begins, as written: `alice` or `carol@other.example`.
    pub accounts: Vec<String>,
    /// Accounts that exist as they came from another server, with the keys of SCRAM-SHA-1 alone.
    pub brought: Vec<String>,
    /// Hosts of those without an account, as written: `carol@other.example`.
    pub strangers: Vec<String>,
    /// Accounts that exist and may administer the server, by name; they are at `localhost`.
    pub admins: Vec<String>,
    /// Groups of accounts that see each other's presence when it begins.
    pub friends: Vec<Vec<String>>,
    pub lines: Vec<Line>,
}

/// One thing that happens.
#[derive(Debug)]
pub struct Line {
    /// Line in the file, from 1.
    pub number: usize,
    /// Who: `alice/phone`.
    pub who: String,
    pub deed: Deed,
}

/// Login by SASL; what the play does not say is a default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    pub mechanism: String,
    /// None for the right one.
    pub password: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Deed {
    /// Opens a connection and hears nothing yet.
    Dials {
        direct: bool,
    },
    /// Opens a stream inside TLS, up to its features.
    Opens {
        direct: bool,
    },
    /// Sends a stream header on whatever there is and takes the features.
    Restarts,
    /// STARTTLS on a stream that offers it.
    Secures,
    Authenticates(Credentials),
    /// Logs in by XEP-0388 and asks for this with it; the success is the next that is heard.
    SignsIn {
        credentials: Credentials,
        beside: String,
    },
    /// SASL fails with this condition.
    Refused {
        credentials: Credentials,
        condition: String,
    },
    /// From nothing to a bound resource; `named` is false when the server makes the resource.
    Connects {
        direct: bool,
        named: bool,
        credentials: Credentials,
    },
    /// Asks for the roster and sends initial presence; connects first if need be.
    ComesOnline {
        priority: Option<i8>,
    },
    Says(String),
    /// Bytes as they are, without the line end.
    Sends(String),
    Hears {
        block: String,
        any_order: bool,
    },
    HearsNothingElse,
    /// Closes the stream and sees the server do the same.
    Leaves,
    /// Cuts the connection.
    Vanishes,
    /// The server ends the stream; the block, if any, is what came before.
    Loses(String),
    /// The operator runs `rookery` with these words.
    Runs(Vec<String>),
}

impl Play {
    /// Reads one file below `root`.
    pub fn read(root: &Path, path: &Path) -> Result<Play> {
        let below = path.strip_prefix(root)?.with_extension("");
        let text = fs::read_to_string(path)?;
        Play::parse(&below.to_string_lossy(), &text)
    }

    /// Reads the text of a story.
    pub fn parse(name: &str, text: &str) -> Result<Play> {
        let mut play = Play {
            name: name.to_owned(),
            accounts: vec![],
            brought: vec![],
            strangers: vec![],
            admins: vec![],
            friends: vec![],
            lines: vec![],
        };
        let mut lines = text.lines().enumerate().peekable();
        while let Some((n, line)) = lines.next() {
            let number = n + 1;
            if line.trim().is_empty() || line.starts_with('#') {
                continue;
            }
            ensure!(
                !line.starts_with([' ', '\t']),
                "{name}:{number}: a block belongs under `says` or `hears`"
            );
            if let Some(words) = line.strip_prefix("accounts:") {
                play.accounts.extend(words.split_whitespace().map(str::to_owned));
                continue;
            }
            if let Some(words) = line.strip_prefix("brought:") {
                play.brought.extend(words.split_whitespace().map(str::to_owned));
                continue;
            }
            if let Some(words) = line.strip_prefix("strangers:") {
                play.strangers.extend(words.split_whitespace().map(str::to_owned));
                continue;
            }
            if let Some(words) = line.strip_prefix("admins:") {
                play.admins.extend(words.split_whitespace().map(str::to_owned));
                continue;
            }
            if let Some(words) = line.strip_prefix("friends:") {
                play.friends.push(words.split_whitespace().map(str::to_owned).collect());
                continue;
            }
            if let Some(words) = line.strip_prefix("operator runs ") {
                let deed = Deed::Runs(words.split_whitespace().map(str::to_owned).collect());
                play.lines.push(Line { number, who: OPERATOR.to_owned(), deed });
                continue;
            }
            let mut block = String::new();
            while let Some((_, inner)) =
                lines.next_if(|(_, l)| l.starts_with([' ', '\t']) || l.trim().is_empty())
            {
                if !inner.trim().is_empty() {
                    block.push_str(inner);
                    block.push('\n');
                }
            }
            let (who, what) =
                line.split_once(' ').with_context(|| format!("{name}:{number}: who does what?"))?;
            ensure!(who.contains('/'), "{name}:{number}: `{who}` has no resource");
            let deed = deed(what.trim(), block).with_context(|| format!("{name}:{number}: `{line}`"))?;
            play.lines.push(Line { number, who: who.to_owned(), deed });
        }
        ensure!(text.starts_with("# "), "{name}: the first line says what the story shows: `# ...`");
        ensure!(!play.lines.is_empty(), "{name}: nothing happens");
        Ok(play)
    }

    /// All stories below a folder, sorted by name.
    pub fn read_all(root: &Path) -> Result<Vec<Play>> {
        let mut plays = Vec::new();
        let mut open = vec![root.to_owned()];
        while let Some(folder) = open.pop() {
            for entry in fs::read_dir(&folder)? {
                let path = entry?.path();
                if path.is_dir() {
                    open.push(path);
                } else if path.extension().is_some_and(|e| e == "xmpp") {
                    plays.push(Play::read(root, &path)?);
                }
            }
        }
        plays.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(plays)
    }
}

fn deed(what: &str, block: String) -> Result<Deed> {
    let needs_block = ["says", "sends", "hears", "hears in any order"].contains(&what);
    let may_have_block = what == "loses the stream" || what.starts_with("signs in");
    ensure!(needs_block != block.is_empty() || may_have_block, "a block under it is missing or too much");
    let mut words: Vec<&str> = what.split_whitespace().collect();
    let direct = take(&mut words, &["directly"]);
    let anonymous = take(&mut words, &["without", "a", "resource"]);
    let condition = take_value(&mut words, "for");
    let priority = take_value(&mut words, "priority");
    let credentials = Credentials {
        password: take_value(&mut words, "password"),
        mechanism: take_value(&mut words, "by").unwrap_or_else(|| "SCRAM-SHA-256".to_owned()),
    };
    Ok(match words.join(" ").as_str() {
        "dials" => Deed::Dials { direct },
        "opens a stream" => Deed::Opens { direct },
        "restarts the stream" => Deed::Restarts,
        "starts TLS" => Deed::Secures,
        "authenticates" => Deed::Authenticates(credentials),
        "signs in" => Deed::SignsIn { credentials, beside: block },
        "is refused" => Deed::Refused { credentials, condition: condition.context("refused `for` what?")? },
        "connects" => Deed::Connects { direct, named: !anonymous, credentials },
        "comes online" | "comes online with" => {
            Deed::ComesOnline { priority: priority.map(|p| p.parse()).transpose()? }
        }
        "says" => Deed::Says(block),
        "sends" => Deed::Sends(block.trim_start().trim_end_matches('\n').to_owned()),
        "hears" => Deed::Hears { block, any_order: false },
        "hears in any order" => Deed::Hears { block, any_order: true },
        "hears nothing else" => Deed::HearsNothingElse,
        "leaves" => Deed::Leaves,
        "vanishes" => Deed::Vanishes,
        "loses the stream" => Deed::Loses(block),
        other => bail!("nobody knows how to `{other}`"),
    })
}

/// Takes these words out of the sentence, if they stand there in a row.
fn take(words: &mut Vec<&str>, wanted: &[&str]) -> bool {
    let at = words.windows(wanted.len()).position(|w| w == wanted);
    if let Some(at) = at {
        words.drain(at..at + wanted.len());
    }
    at.is_some()
}

/// Takes a word and the one behind it out of the sentence.
fn take_value(words: &mut Vec<&str>, key: &str) -> Option<String> {
    let at = words.iter().position(|w| *w == key).filter(|at| at + 1 < words.len())?;
    words.drain(at..at + 2).nth(1).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_story_is_read_as_it_is_written() {
        let play = Play::parse(
            "x",
            "# Says what it shows.\naccounts: alice bob\nfriends: alice bob\n\nalice/phone comes online with priority -1\n\
             alice/phone says\n    <message/>\n\n    <presence/>\nbob/tab is refused by PLAIN password wrong for not-authorized\n",
        )
        .expect("a good story");
        assert_eq!(play.accounts, ["alice", "bob"]);
        assert_eq!(play.lines[0].deed, Deed::ComesOnline { priority: Some(-1) });
        assert_eq!(play.lines[1].deed, Deed::Says("    <message/>\n    <presence/>\n".to_owned()));
        let credentials = Credentials { mechanism: "PLAIN".into(), password: Some("wrong".into()) };
        assert_eq!(play.lines[2].deed, Deed::Refused { credentials, condition: "not-authorized".into() });
        assert_eq!(play.lines[2].number, 10);
    }

    #[test]
    fn what_nobody_understands_is_refused_with_its_line() {
        let error = Play::parse("x", "# T.\nalice/phone dances\n").expect_err("no such deed");
        assert!(format!("{error:#}").contains("x:2") && format!("{error:#}").contains("dances"), "{error:#}");
    }
}
