//! `rookery group ...`: contacts that users find in their rosters.

use proto::admin;
use serde_json::json;

use super::{CtlError, connect, refused};
use crate::{
    cli::{Format, Group},
    table::Table,
};

/// Runs one of the commands.
pub async fn group(admin: &str, what: Group) -> Result<(), CtlError> {
    match what {
        Group::List { host, format } => list(admin, host.unwrap_or_default(), format).await,
        Group::Add { host, name, members, everyone } => {
            let remove = false;
            change(admin, admin::ChangeGroupRequest { host, name, members, everyone, remove }).await
        }
        Group::Remove { host, name, members, everyone } => {
            let remove = true;
            change(admin, admin::ChangeGroupRequest { host, name, members, everyone, remove }).await
        }
        Group::Delete { host, name } => {
            let request = admin::DeleteGroupRequest { host, name: name.clone() };
            let done = connect(admin).await?.delete_group(request).await;
            done.map_err(refused(format!("delete the group `{name}`")))?;
            println!("deleted {name}");
            Ok(())
        }
    }
}

async fn change(admin: &str, request: admin::ChangeGroupRequest) -> Result<(), CtlError> {
    let name = request.name.clone();
    let done = connect(admin).await?.change_group(request).await;
    let group = done.map_err(refused(format!("change the group `{name}`")))?.into_inner();
    println!("{name}: {}", members(&group.members, group.everyone));
    Ok(())
}

fn members(named: &[String], everyone: bool) -> String {
    let everyone = everyone.then(|| "everyone".to_owned());
    let all: Vec<String> = everyone.into_iter().chain(named.iter().cloned()).collect();
    if all.is_empty() { "nobody".to_owned() } else { all.join(", ") }
}

async fn list(admin: &str, host: String, format: Format) -> Result<(), CtlError> {
    let listed = connect(admin).await?.list_groups(admin::ListGroupsRequest { host }).await;
    let groups = listed.map_err(refused("list the groups"))?.into_inner().groups;
    match format {
        Format::Table => {
            let mut table = Table::new(&["HOST", "NAME", "KEPT BY", "MEMBERS"]);
            for group in &groups {
                let keeper = if group.configured { "config" } else { "command" };
                table.row(&[&group.host, &group.name, &keeper, &members(&group.members, group.everyone)]);
            }
            print!("{table}");
        }
        Format::Json => {
            let groups = groups.iter().map(|group| {
                json!({
                    "host": group.host,
                    "name": group.name,
                    "members": group.members,
                    "everyone": group.everyone,
                    "configured": group.configured,
                })
            });
            println!("{:#}", json!(groups.collect::<Vec<_>>()));
        }
    }
    Ok(())
}
