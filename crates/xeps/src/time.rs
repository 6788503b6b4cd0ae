//! [XEP-0202]: Entity Time. Says what time it is at the server, and how moments are written.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use hooks::{Addressee, Answer, Answering, Card, Hooks, Module, Passage, Reply, Status, Xep};
use stanza::{Condition, IqType, StanzaError};

use crate::xml::{Build, element};

const NS: &str = "urn:xmpp:time";

/// Answers time requests to a host.
pub struct Time;

impl Module for Time {
    fn card(&self) -> Card {
        Card {
            xeps: &[
                Xep { number: 202, title: "Entity Time", version: "2.0", status: Status::Final },
                Xep {
                    number: 82,
                    title: "XMPP Date and Time Profiles",
                    version: "1.1.1",
                    status: Status::Active,
                },
            ],
            host_features: &[NS],
            ..Card::new("time", "Says what time it is at the server.")
        }
    }

    fn plug(self: Arc<Self>, hooks: &mut Hooks) {
        hooks.answering(Addressee::Host, NS, self);
    }
}

impl Answering for Time {
    fn answering<'a>(&'a self, passage: &'a mut Passage) -> Answer<'a, Reply> {
        if passage.stanza.iq_type() != Ok(IqType::Get) || passage.stanza.child("time", NS).is_none() {
            return Answer::Now(Reply::Error(StanzaError::new(Condition::BadRequest)));
        }
        let time = element("time", NS)
            .child(element("tzo", NS).text_node("+00:00"))
            .child(element("utc", NS).text_node(&utc(passage.services.now())));
        Answer::Now(Reply::with(time))
    }
}

/// A moment in UTC to the second (XEP-0082, section 3.2); moments before 1970 are 1970.
pub fn utc(moment: SystemTime) -> String {
    let seconds = moment.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (day, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = date(day);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// Year, month and day of the Gregorian calendar, of a day counted from 1970-01-01.
fn date(days: u64) -> (u64, u64, u64) {
    // Counted from 0000-03-01, so that a leap day is the last day of its year; 146,097 days are 400 years.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use futures::executor::block_on;
    use hooks::bench::Bench;

    #[test]
    fn a_moment_is_written_in_utc() {
        let cases = [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_031_699_305, "2002-09-10T23:08:25Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ];
        for (seconds, text) in cases {
            assert_eq!(utc(UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn the_server_says_its_time() {
        block_on(async {
            let bench = Bench::new(&["localhost"], || vec![Arc::new(Time)]);
            let alice = bench.login("alice@localhost/phone").await;
            alice.send("<iq type='get' id='1' to='localhost'><time xmlns='urn:xmpp:time'/></iq>").await;
            assert_eq!(
                alice.hears(),
                ["<iq to='alice@localhost/phone' from='localhost' id='1' type='result'>\
                  <time xmlns='urn:xmpp:time'><tzo>+00:00</tzo><utc>2026-01-01T00:00:00Z</utc></time></iq>"]
            );
        });
    }
}
