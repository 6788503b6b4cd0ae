//! What pages of a large archive cost, wherever in it they are.

use std::{path::Path, sync::Arc};

use anyhow::{Context, Result, ensure};
use rustls::ClientConfig;

use crate::{
    Load, PASSWORD,
    extras::{all_is_archived, cost, first_of, is_whole, query},
    link::{self, Link},
    middle,
    process::Server,
};

/// Messages of the archive, and how many are sent before they are waited for.
const MESSAGES: usize = 1_000_000;
const WINDOW: usize = 256;
/// Of so many messages one is from somebody who writes seldom.
const SELDOM: usize = 5_000;
/// Pages that are asked for in a round.
const PAGES: usize = 200;

/// Fills an archive, then reads pages of 50 of it.
pub async fn run(binary: &Path, base_port: u16, load: Load) -> Result<()> {
    let tls = link::tls_config()?;
    let archive = "[modules.archive]\nenabled = true\nmessages_max = 2000000";
    let server = Server::start_with(binary, base_port, archive)?;
    for name in ["often", "seldom", "reader"] {
        server.add_user(name, PASSWORD)?;
    }
    let filled = fill(&server, &tls);
    let cpu = cost(&server, filled).await?;
    all_is_archived(&server)?;
    println!(
        "{MESSAGES} messages, archived for both sides: {:.1} us of server CPU each",
        cpu / MESSAGES as f64
    );

    let mut reader = log_in(&server, &tls, "reader").await?;
    let number = |result: &str| {
        let text = result.split("<body>").nth(1)?.split(' ').next()?;
        Some((usize::from(result.contains("from='seldom")), text.parse().ok()?))
    };
    is_whole(&mut reader, MESSAGES, number).await?;
    println!("all of them are there, in order");
    let middle_of_all = middle_id(&mut reader).await?;
    let set =
        |paging: &str| format!("<set xmlns='http://jabber.org/protocol/rsm'><max>50</max>{paging}</set>");
    let with = |who: &str, paging: &str| {
        format!(
            "<x xmlns='jabber:x:data' type='submit'><field var='FORM_TYPE' type='hidden'><value>urn:xmpp:mam:2</value>\
             </field><field var='with'><value>{who}@localhost</value></field></x>{}",
            set(paging)
        )
    };
    let before_middle = format!("<before>{middle_of_all}</before>");
    let after_middle = format!("<after>{middle_of_all}</after>");
    let pages = [
        ("the last page", set("<before/>")),
        ("the first page", set("")),
        ("the page before the midst", set(&before_middle)),
        ("the page behind the midst", set(&after_middle)),
        ("the last page with who writes often", with("often", "<before/>")),
        ("the last page with who writes seldom", with("seldom", "<before/>")),
        ("the page behind the midst with who writes seldom", with("seldom", &after_middle)),
    ];
    for (what, asked) in pages {
        let mut figures = Vec::new();
        for _ in 0..load.rounds {
            let read = async {
                for _ in 0..PAGES {
                    let page = query(&mut reader, &asked).await?;
                    let count = page.matches("<result ").count();
                    ensure!(count == 50, "{what} has {count} messages");
                }
                Ok(())
            };
            figures.push(cost(&server, read).await? / PAGES as f64);
        }
        let (median, least) = middle(&mut figures);
        println!("{what} of 50 of {MESSAGES}: {median:.0} us of server CPU (least {least:.0})");
    }
    Ok(())
}

async fn log_in(server: &Server, tls: &Arc<ClientConfig>, name: &str) -> Result<Link> {
    let mut link = Link::log_in(&server.direct_tls, tls, name, PASSWORD, "bench").await?;
    link.appear().await?;
    Ok(link)
}

/// Two write to the third, never more at a time than are waited for.
async fn fill(server: &Server, tls: &Arc<ClientConfig>) -> Result<()> {
    let mut often = log_in(server, tls, "often").await?;
    let mut seldom = log_in(server, tls, "seldom").await?;
    let mut reader = log_in(server, tls, "reader").await?;
    let mut sent = 0;
    while sent < MESSAGES {
        let next = (sent + WINDOW).min(MESSAGES);
        let (mut from_often, mut from_seldom) = (String::new(), String::new());
        for n in sent..next {
            let text = if n % SELDOM == 0 { &mut from_seldom } else { &mut from_often };
            text.push_str(&format!(
                "<message to='reader@localhost/bench' type='chat' id='h{n:08}'><body>{n} A message of usual length, as people \
                 write them to each other all day long.</body></message>"
            ));
        }
        often.write(&from_often).await?;
        if !from_seldom.is_empty() {
            seldom.write(&from_seldom).await?;
        }
        for _ in sent..next {
            reader.until("</message>").await?;
        }
        sent = next;
    }
    Ok(())
}

/// The id of a message in the midst, found by when it came.
async fn middle_id(reader: &mut Link) -> Result<String> {
    let mut ends = Vec::new();
    for paging in ["", "<before/>"] {
        let asked = format!("<set xmlns='http://jabber.org/protocol/rsm'><max>1</max>{paging}</set>");
        let page = query(reader, &asked).await?;
        let id = first_of(&page).context("the archive is empty")?;
        ends.push(u64::from_str_radix(&id[..16], 16)?);
    }
    // Ids begin with the moment, in microseconds.
    let moment = (ends[0] + ends[1]) / 2;
    let start = format!(
        "<x xmlns='jabber:x:data' type='submit'><field var='FORM_TYPE' type='hidden'><value>urn:xmpp:mam:2</value></field>\
         <field var='start'><value>{}</value></field></x><set xmlns='http://jabber.org/protocol/rsm'><max>1</max></set>",
        xeps::time::utc_micros(moment)
    );
    first_of(&query(reader, &start).await?).context("nothing is in the midst")
}
