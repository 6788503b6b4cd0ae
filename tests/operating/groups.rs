//! Groups of contacts: how operators keep them, and what they hear where that cannot be.

use anyhow::{Result, ensure};
use tests::nodes::{Layout, Nodes};

const CONFIG: &str = r#"
[modules.shared_groups]
enabled = true
hosts = ["localhost"]
groups_max = 2
groups = [{ host = "localhost", name = "Board", members = ["zoe"] }]
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_are_made_listed_at_every_node_and_ended() -> Result<()> {
    let nodes = Nodes::start_edited(Layout::Three, |_, _, before| Ok(before + CONFIG)).await?;
    let said = |words: &'static [&'static str], at: usize| {
        let nodes = &nodes;
        async move { nodes.cli_at(at, words).await }
    };
    let out = said(&["group", "add", "localhost", "The Crew", "alice", "bob@localhost"], 0).await?;
    ensure!(out.trim() == "The Crew: alice@localhost, bob@localhost", "{out}");
    let out = said(&["group", "add", "localhost", "All", "--everyone"], 1).await?;
    ensure!(out.trim() == "All: everyone", "{out}");
    let out = said(&["group", "remove", "localhost", "The Crew", "bob"], 2).await?;
    ensure!(out.trim() == "The Crew: alice@localhost", "{out}");
    for at in 0..3 {
        let out = said(&["group", "list"], at).await?;
        let lines: Vec<String> =
            out.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        let expected = [
            "HOST NAME KEPT BY MEMBERS",
            "localhost All command everyone",
            "localhost Board config zoe@localhost",
            "localhost The Crew command alice@localhost",
        ];
        ensure!(lines == expected, "{out}");
    }
    let out = said(&["group", "list", "--host", "localhost", "--format", "json"], 0).await?;
    ensure!(out.contains("\"configured\": true") && out.contains("\"everyone\": true"), "{out}");
    let refused: [(&[&str], &str); 6] = [
        (&["group", "add", "localhost", "Third", "alice"], "as many groups as it may have"),
        (&["group", "add", "localhost", "All", "a b"], "`a b` is no account"),
        (&["group", "add", "other.example", "Crew", "alice"], "`shared_groups` is not on"),
        (&["group", "add", "elsewhere.example", "Crew", "alice"], "is not one of the hosts"),
        (&["group", "remove", "localhost", "Board", "zoe"], "the config keeps it"),
        (&["group", "delete", "localhost", "Nobody"], "no such group"),
    ];
    for (words, why) in refused {
        let (ok, out) = nodes.ask(0, words).await?;
        ensure!(!ok && out.contains(why), "{words:?}: {out}");
    }
    said(&["group", "delete", "localhost", "All"], 0).await?;
    let out = said(&["group", "list"], 1).await?;
    ensure!(!out.contains("everyone"), "{out}");
    Ok(())
}
