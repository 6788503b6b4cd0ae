//! [XEP-0202]: Entity Time. Says what time it is at the server, and how moments are written.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

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
        if passage.stanza.iq_type() != Ok(IqType::Get) || !passage.stanza.has_child("time", NS) {
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

/// A moment in UTC to the microsecond, counted from 1970.
pub fn utc_micros(micros: u64) -> String {
    let whole = utc(UNIX_EPOCH + Duration::from_micros(micros));
    format!("{}.{:06}Z", whole.trim_end_matches('Z'), micros % 1_000_000)
}

/// Reads a moment as microseconds since 1970 (XEP-0082, 3.2); moments before 1970 are 1970.
pub fn read(text: &str) -> Option<u64> {
    let (date, rest) = text.split_once('T')?;
    let number = |text: &str, digits: usize| -> Option<i64> {
        let all = text.len() == digits && text.bytes().all(|byte| byte.is_ascii_digit());
        all.then(|| text.parse().ok())?
    };
    let mut parts = date.splitn(3, '-');
    let (year, month, day) =
        (number(parts.next()?, 4)?, number(parts.next()?, 2)?, number(parts.next()?, 2)?);
    let zone = rest.find(['Z', '+', '-'])?;
    let (time, zone) = rest.split_at(zone);
    let (time, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let clock = |time: &str, sign: i64| -> Option<i64> {
        let (hour, minute) = time.split_once(':')?;
        let (hour, minute) = (number(hour, 2)?, number(minute, 2)?);
        (hour <= 23 && minute <= 59).then_some(sign * (hour * 60 + minute))
    };
    let (minutes, seconds) = time.rsplit_once(':')?;
    let (minutes, seconds) = (clock(minutes, 1)?, number(seconds, 2)?);
    let offset = match zone.split_at(1) {
        ("Z", "") => 0,
        ("+", zone) => clock(zone, 1)?,
        ("-", zone) => clock(zone, -1)?,
        _ => return None,
    };
    let fraction: String = fraction.chars().chain("000000".chars()).take(6).collect();
    let fraction = number(&fraction, 6)?;
    // 60 is a leap second.
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || seconds > 60 {
        return None;
    }
    let seconds = (days(year, month, day) * 1_440 + minutes - offset) * 60 + seconds;
    Some(u64::try_from(seconds * 1_000_000 + fraction).unwrap_or(0))
}

/// The day of a date of the Gregorian calendar, counted from 1970-01-01.
fn days(year: i64, month: i64, day: i64) -> i64 {
    // Counted from 0000-03-01, as in `date`.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let era = year.div_euclid(400);
    let year = year.rem_euclid(400);
    era * 146_097 + year * 365 + year / 4 - year / 100 + (153 * month + 2) / 5 + day - 1 - 719_468
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
            assert_eq!(read(text), Some(seconds * 1_000_000));
            let micros = seconds * 1_000_000 + 12;
            assert_eq!(read(&utc_micros(micros)), Some(micros), "{}", utc_micros(micros));
        }
    }

    #[test]
    fn a_moment_is_read_in_any_zone() {
        let second = 1_031_699_305_000_000;
        for (text, moment) in [
            ("2002-09-10T23:08:25Z", Some(second)),
            ("2002-09-10T23:08:25.5Z", Some(second + 500_000)),
            ("2002-09-10T23:08:25.1234567Z", Some(second + 123_456)),
            ("2002-09-10T18:08:25-05:00", Some(second)),
            ("2002-09-11T00:38:25+01:30", Some(second)),
            ("1969-12-31T23:59:59Z", Some(0)),
            ("0000-01-01T00:00:00Z", Some(0)),
            ("2002-09-10", None),
            ("2002-09-10T23:08:25", None),
            ("2002-13-10T23:08:25Z", None),
            ("2002-09-32T23:08:25Z", None),
            ("2002-09-10T24:08:25Z", None),
            ("2002-09-10T23:08:61Z", None),
            ("2002-09-10T23:08:25+1:00", None),
            ("2002-09-10T23:08:25Zulu", None),
            ("2002-09-10T23:08:\u{661}5Z", None),
            ("2002-9-10T23:08:25Z", None),
            ("2002-09-10T+3:08:25Z", None),
            ("2002-09-10T23:08:25.xZ", None),
            ("", None),
        ] {
            assert_eq!(read(text), moment, "{text}");
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
