//! Requests with an answer each: what `ping`, `disco`, `roster` and `archive` share.

use std::{fmt::Write, sync::Arc};

use anyhow::Result;

use super::stage::{Amount, Stage};
use crate::{
    flow::{self, Heard, Line, Outcome, Plan, Talk},
    link::Link,
    scanner::{Stanza, number},
};

/// An iq to a place, answered with a result that has its id.
pub struct Request {
    /// Attributes and payload: what stands around the id.
    pub before: String,
    /// The rest of it.
    pub after: String,
}

impl Request {
    /// A request `get` to an address, or to one's own account, with this payload.
    pub fn get(to: Option<&str>, payload: &str) -> Request {
        Request::of_type("get", to, payload)
    }

    /// The same of any type.
    pub fn of_type(kind: &str, to: Option<&str>, payload: &str) -> Request {
        let to = to.map(|to| format!(" to='{to}'")).unwrap_or_default();
        Request { before: format!("<iq type='{kind}'{to} id='"), after: format!("'>{payload}</iq>") }
    }
}

impl Talk for Request {
    fn say(&self, out: &mut String, number: u64, ns: u64) {
        let written = write!(out, "{}{number}.{ns}{}", self.before, self.after);
        debug_assert!(written.is_ok(), "a string takes everything");
    }

    fn end(&self, out: &mut String) {
        *out += &format!("{}end{}", self.before, self.after);
    }

    fn hear(&self, stanza: Stanza<'_>) -> Heard {
        if stanza.name() != b"iq" {
            return Heard::Other;
        }
        match (stanza.attribute(b"type"), stanza.attribute(b"id")) {
            (Some(b"error"), _) => Heard::Refused,
            (Some(b"result"), Some(b"end")) => Heard::End,
            (Some(b"result"), Some(id)) => {
                let numbers = number(id).and_then(|(n, rest)| Some((n, number(rest.strip_prefix(b".")?)?.0)));
                numbers.map_or(Heard::Other, |(number, ns)| Heard::Number(number, ns))
            }
            _ => Heard::Other,
        }
    }

    // Answers carry the id of their question: nobody needs their order.
    fn ordered(&self) -> bool {
        false
    }
}

/// Asks in each session, first to warm up, then to be measured.
///
/// # Errors
/// Where the machine refuses what the generator needs.
pub async fn ask<T: Talk>(stage: &Stage, links: Vec<Link>, request: T, amount: &Amount) -> Result<Outcome> {
    let (watched, patience) = (&stage.watched, stage.target.patience);
    let (talk, (warm_up, each)) = (Arc::new(request), amount.each(links.len()));
    let lines = links.into_iter().map(|link| {
        let Link { reader, writer, .. } = link;
        Line { talk: talk.clone(), writer, ears: vec![reader], aside: None }
    });
    let mut plan = Plan { first: 0, each: warm_up, pace: amount.pace(), patience };
    let (lines, before) = flow::run("warm-up", lines.collect(), plan, watched).await?;
    (plan.first, plan.each) = (warm_up, each);
    let (_open, mut outcome) = flow::run("requests", lines, plan, watched).await?;
    if !before.tally.clean() {
        outcome.tally.failures.push(format!("while warming up {} were lost", before.tally.lost));
        outcome.tally.failures.extend(before.tally.failures);
    }
    Ok(outcome)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_tells_its_question() {
        let request = Request::get(Some("localhost"), "<ping xmlns='urn:xmpp:ping'/>");
        let mut said = String::new();
        request.say(&mut said, 3, 99);
        assert_eq!(said, "<iq type='get' to='localhost' id='3.99'><ping xmlns='urn:xmpp:ping'/></iq>");
        let hear = |text: &str| request.hear(Stanza(text.as_bytes()));
        assert!(matches!(hear("<iq type='result' id='3.99'/>"), Heard::Number(3, 99)));
        assert!(matches!(hear("<iq type='result' id='end'/>"), Heard::End));
        assert!(matches!(hear("<iq type='error' id='3.99'/>"), Heard::Refused));
        assert!(matches!(hear("<iq type='get' id='3.99'/>"), Heard::Other));
        assert!(matches!(hear("<message id='3.99'/>"), Heard::Other));
    }
}
