//! `rookery cluster check`: whether the invariants of the cluster hold.

use proto::admin;
use serde_json::json;

use super::{CtlError, connect, refused};
use crate::{cli::Format, table::Table};

/// Prints the report; an error unless all of it holds.
pub async fn check(admin: &str, format: Format) -> Result<(), CtlError> {
    let answer = connect(admin).await?.check_cluster(admin::CheckClusterRequest {}).await;
    let report = answer.map_err(refused("check the cluster"))?.into_inner();
    match format {
        Format::Table => print!("{}", for_people(&report)),
        Format::Json => println!("{:#}", for_programs(&report)),
    }
    let broken = report.invariants.iter().filter(|invariant| invariant.verdict != "holds");
    let broken: Vec<String> = broken.map(|i| format!("`{}` is {}", i.name, i.verdict)).collect();
    match broken.is_empty() {
        true => Ok(()),
        false => Err(CtlError::Refused {
            attempt: "find that all invariants hold".to_owned(),
            reason: broken.join(", "),
        }),
    }
}

fn for_people(report: &admin::CheckClusterResponse) -> String {
    let mut table = Table::new(&["INVARIANT", "VERDICT", "WHAT"]);
    for invariant in &report.invariants {
        table.row(&[&invariant.name, &invariant.verdict, &invariant.text]);
    }
    let mut text = table.to_string();
    for invariant in &report.invariants {
        for finding in &invariant.findings {
            let admin::Finding { node, node_name, verdict, text: what, sessions, .. } = finding;
            text += &format!("{}: {node_name} (id {node}): {verdict}: {what}\n", invariant.name);
            for session in sessions {
                text += &format!("  {session}\n");
            }
        }
    }
    text
}

fn for_programs(report: &admin::CheckClusterResponse) -> serde_json::Value {
    let finding = |finding: &admin::Finding| {
        json!({
            "node": finding.node,
            "node_name": finding.node_name,
            "verdict": finding.verdict,
            "text": finding.text,
            "index": finding.index,
            "sessions": finding.sessions,
        })
    };
    let invariant = |invariant: &admin::Invariant| {
        json!({
            "name": invariant.name,
            "verdict": invariant.verdict,
            "text": invariant.text,
            "findings": invariant.findings.iter().map(finding).collect::<Vec<_>>(),
        })
    };
    json!(report.invariants.iter().map(invariant).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_names_the_node_and_the_sessions() {
        let finding = admin::Finding {
            node: 7,
            node_name: "node2".into(),
            verdict: "violated".into(),
            text: "1 sessions there have no row".into(),
            index: 0,
            sessions: vec!["a@x/r".into()],
        };
        let invariant = admin::Invariant {
            name: "sessions-routed".into(),
            verdict: "violated".into(),
            text: "not so at 1 node".into(),
            findings: vec![finding],
        };
        let report = admin::CheckClusterResponse { invariants: vec![invariant] };
        let expected = "INVARIANT        VERDICT   WHAT\n\
             sessions-routed  violated  not so at 1 node\n\
             sessions-routed: node2 (id 7): violated: 1 sessions there have no row\n  a@x/r\n";
        assert_eq!(for_people(&report), expected);
        assert_eq!(for_programs(&report)[0]["findings"][0]["sessions"][0], "a@x/r");
    }
}
