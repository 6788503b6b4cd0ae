//! The accounts that the load runs with: their names, and how they come to be.

use std::{fs, ops::Range, path::Path, process::Stdio, sync::Arc};

use anyhow::{Context, Result, ensure};
use tokio::process::Command;

use crate::{
    crowd,
    progress::Progress,
    target::{Account, Target},
};

/// How many accounts are made at a time.
const AT_ONCE: usize = 16;

/// How accounts come to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Making {
    /// They are there.
    Nothing,
    /// In-band (XEP-0077).
    Register,
    /// By a command, whose words may hold `{user}`, `{password}` and `{host}`.
    Command(String),
}

/// Accounts by number.
pub enum Accounts {
    /// Named by a prefix and the number, with one password.
    Numbered {
        /// What their names begin with.
        prefix: String,
        /// The password of all of them.
        password: String,
        /// How they come to be.
        making: Making,
    },
    /// Those of a file.
    Listed(Vec<Account>),
}

impl Accounts {
    /// Reads a file with an account in each line: its name and its password, with white space between them.
    ///
    /// # Errors
    /// Where it cannot be read, or a line is something else.
    pub fn read(file: &Path) -> Result<Accounts> {
        let text =
            fs::read_to_string(file).with_context(|| format!("failed to read `{}`", file.display()))?;
        Accounts::parse(&text)
    }

    fn parse(text: &str) -> Result<Accounts> {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let accounts = lines.map(|line| {
            let (name, password) = line
                .split_once(char::is_whitespace)
                .with_context(|| format!("expected a name and a password, found `{line}`"))?;
            // Addresses are taken as well: the domain is that of the server.
            let user = name.split('@').next().unwrap_or(name).to_owned();
            Ok(Account { user, password: password.trim().to_owned() })
        });
        Ok(Accounts::Listed(accounts.collect::<Result<_>>()?))
    }

    /// The account of a number.
    ///
    /// # Errors
    /// Where a file has fewer.
    pub fn account(&self, number: usize) -> Result<Account> {
        match self {
            Accounts::Numbered { prefix, password, .. } => {
                Ok(Account { user: format!("{prefix}{number}"), password: password.clone() })
            }
            Accounts::Listed(all) => {
                let account = all.get(number).cloned();
                account.with_context(|| format!("the file has {} accounts, more are needed", all.len()))
            }
        }
    }

    /// Makes those of these numbers, where they are to be made.
    ///
    /// # Errors
    /// Where one cannot be made.
    pub async fn make(&self, target: &Arc<Target>, numbers: Range<usize>) -> Result<()> {
        let Accounts::Numbered { making, .. } = self else {
            return self.account(numbers.end.saturating_sub(1)).map(drop);
        };
        if *making == Making::Nothing {
            return Ok(());
        }
        let progress = Progress::begin("accounts", numbers.len() as u64);
        let accounts = numbers.map(|number| self.account(number)).collect::<Result<Vec<_>>>()?;
        let making = making.clone();
        crowd::each(accounts, AT_ONCE, |account| {
            let (target, making, progress) = (target.clone(), making.clone(), progress.counter());
            async move {
                match making {
                    Making::Command(line) => run(&line, &account, &target.host).await?,
                    Making::Register | Making::Nothing => target.register(&account).await?,
                }
                progress.add(1);
                Ok(())
            }
        })
        .await
        .map(drop)
    }
}

fn words(line: &str, account: &Account, host: &str) -> Vec<String> {
    let filled = |word: &str| {
        word.replace("{user}", &account.user).replace("{password}", &account.password).replace("{host}", host)
    };
    line.split_whitespace().map(filled).collect()
}

async fn run(line: &str, account: &Account, host: &str) -> Result<()> {
    let words = words(line, account, host);
    let (program, arguments) = words.split_first().context("the command is empty")?;
    let out = Command::new(program).args(arguments).stdin(Stdio::null()).kill_on_drop(true).output().await;
    let out = out.with_context(|| format!("failed to run `{program}`"))?;
    let said = String::from_utf8_lossy(&out.stderr);
    ensure!(out.status.success(), "failed to make `{}`: {} {said}", account.user, out.status);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_names_accounts_and_passwords() {
        let accounts =
            Accounts::parse("# who\n\nann  secret\nbob@example.org two words\n").expect("a good file");
        let account = |user: &str, password: &str| Account { user: user.into(), password: password.into() };
        assert_eq!(accounts.account(0).expect("there"), account("ann", "secret"));
        assert_eq!(accounts.account(1).expect("there"), account("bob", "two words"));
        assert!(accounts.account(2).is_err());
        assert!(Accounts::parse("ann\n").is_err());
    }

    #[test]
    fn a_command_is_told_of_whom() {
        let account = Account { user: "ann".into(), password: "a secret".into() };
        let words = words("add {user}@{host} --password={password}", &account, "example.org");
        assert_eq!(words, ["add", "ann@example.org", "--password=a secret"]);
    }
}
