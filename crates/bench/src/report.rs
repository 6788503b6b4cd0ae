//! What the generator says in the end: tables for people, lines of JSON for programs, and whether all was well.

use std::{
    fs::{File, OpenOptions},
    io::Write,
    path::Path,
};

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use crate::{
    flow::{Outcome, Tally},
    latency::Latency,
};

/// Failures that a table shows, at most.
const FAILURES: usize = 5;

/// What one measurement has found.
pub struct Report {
    title: String,
    rows: Vec<(String, String)>,
    json: Map<String, Value>,
    clean: bool,
}

impl Report {
    /// An empty one of a workload.
    pub fn new(workload: &str, title: impl Into<String>) -> Report {
        let json = Map::from_iter([("workload".to_owned(), workload.into())]);
        Report { title: title.into(), rows: Vec::new(), json, clean: true }
    }

    /// A figure, by its name in JSON, and in a table by what it is; nothing where there is none.
    pub fn row(mut self, key: &str, what: &str, value: impl Into<Value>) -> Report {
        let value = value.into();
        if !value.is_null() {
            self.rows.push((what.to_owned(), shown(&value)));
            self.json.insert(key.to_owned(), value);
        }
        self
    }

    /// Times, with their curve in JSON.
    pub fn latency(mut self, key: &str, what: &str, latency: &Latency) -> Report {
        if latency.count() == 0 {
            return self;
        }
        let (mut summary, mut parts) = (latency.summary(), Vec::new());
        for part in ["p50", "p90", "p99", "p99.9", "max"] {
            parts.push(format!("{part} {}", shown(&summary[part])));
        }
        self.rows.push((format!("{what}, us"), parts.join(", ")));
        summary["curve"] = latency.curve();
        self.json.insert(key.to_owned(), summary);
        self
    }

    /// Counts; whatever is not as it should be makes the whole run a failure.
    pub fn tally(mut self, of: &str, tally: &Tally) -> Report {
        self.clean &= tally.clean();
        let Tally { expected, heard, lost, doubled, disordered, refused, failures } = tally;
        self.json.extend(
            [
                ("expected", json!(expected)),
                ("heard", json!(heard)),
                ("lost", json!(lost)),
                ("doubled", json!(doubled)),
                ("disordered", json!(disordered)),
                ("refused", json!(refused)),
                ("failures", json!(failures)),
            ]
            .map(|(key, value)| (key.to_owned(), value)),
        );
        self.rows.push((of.to_owned(), format!("{expected} expected, {heard} heard")));
        let wrong =
            [(lost, "lost"), (doubled, "doubled"), (disordered, "out of order"), (refused, "refused")];
        self.rows.push((
            if tally.clean() { "all well" } else { "NOT WELL" }.to_owned(),
            wrong.map(|(count, what)| format!("{count} {what}")).join(", "),
        ));
        for failure in failures.iter().take(FAILURES) {
            self.rows.push(("failure".to_owned(), failure.clone()));
        }
        if failures.len() > FAILURES {
            self.rows.push(("further failures".to_owned(), (failures.len() - FAILURES).to_string()));
        }
        self
    }

    /// The usual rows of a flow of `thing`s.
    pub fn outcome(self, thing: &str, outcome: &Outcome) -> Report {
        let Outcome { tally, latency, late, elapsed, spent } = outcome;
        let per_second = tally.heard as f64 / elapsed.as_secs_f64().max(1e-9);
        self.row("seconds", "seconds", elapsed.as_secs_f64())
            .row("per_second", &format!("{thing}s a second"), per_second)
            .row("cpu_us", &format!("server CPU per {thing}, us"), spent.server_each(tally.heard))
            .row("generator_cpu_us", &format!("generator CPU per {thing}, us"), spent.own_each(tally.heard))
            .latency("latency_us", "latency", latency)
            .latency("late_us", "of it until it was written", late)
            .tally(&format!("{thing}s"), tally)
    }

    fn table(&self) -> String {
        let width = self.rows.iter().map(|(what, _)| what.chars().count()).max().unwrap_or(0);
        let rows = self.rows.iter().map(|(what, value)| format!("  {what:width$}  {value}\n"));
        format!("{}\n{}", self.title, rows.collect::<String>())
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::Number(number) if number.is_f64() => {
            let number = number.as_f64().unwrap_or_default();
            let digits = if number.abs() >= 1000.0 {
                0
            } else if number.abs() >= 100.0 {
                1
            } else {
                2
            };
            format!("{number:.digits$}")
        }
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Where reports go.
pub struct Reports {
    json: Option<File>,
    clean: bool,
}

impl Reports {
    /// To standard output, and as lines of JSON behind what stands in a file.
    ///
    /// # Errors
    /// Where the file cannot be opened.
    pub fn to(json: Option<&Path>) -> Result<Reports> {
        let open = |path: &Path| {
            let file = OpenOptions::new().create(true).append(true).open(path);
            file.with_context(|| format!("failed to open `{}`", path.display()))
        };
        Ok(Reports { json: json.map(open).transpose()?, clean: true })
    }

    /// Says one.
    ///
    /// # Errors
    /// Where the file takes no more.
    pub fn say(&mut self, report: Report) -> Result<()> {
        println!("{}", report.table());
        self.clean &= report.clean;
        if let Some(file) = &mut self.json {
            let mut line = Value::Object(report.json).to_string();
            line.push('\n');
            file.write_all(line.as_bytes()).context("failed to write a report")?;
        }
        Ok(())
    }

    /// Whether nothing was lost, doubled, out of order or refused in any of them.
    pub fn clean(&self) -> bool {
        self.clean
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_a_table_and_an_object() {
        let report = Report::new("ping", "ping, saturated")
            .row("cpu_us", "server CPU, us", 1.234)
            .row("none", "nothing", Value::Null)
            .tally("pings", &Tally { expected: 2, heard: 2, ..Tally::default() });
        assert!(report.clean);
        let table = report.table();
        assert!(table.contains("server CPU, us  1.23\n") && !table.contains("nothing"), "{table}");
        assert!(table.contains("all well"), "{table}");
        assert_eq!(report.json["workload"], "ping");
        assert_eq!(report.json["lost"], 0);
    }

    #[test]
    fn whatever_went_wrong_makes_it_a_failure() {
        let wrong = [
            Tally { lost: 1, ..Tally::default() },
            Tally { doubled: 1, ..Tally::default() },
            Tally { disordered: 1, ..Tally::default() },
            Tally { refused: 1, ..Tally::default() },
            Tally { failures: vec!["why".to_owned(); 7], ..Tally::default() },
        ];
        for tally in wrong {
            let mut reports = Reports::to(None).expect("no file");
            let report = Report::new("chat", "chat").tally("messages", &tally);
            assert!(report.table().contains("NOT WELL"));
            reports.say(report).expect("no file");
            assert!(!reports.clean());
        }
    }
}
